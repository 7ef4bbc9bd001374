import os
import subprocess
import sys

import pytest

from groupvit_jax.interop.save import save_pretrained
from launch import publish
from tests.interop import weights
from tests.launch.standin_hub import TOKEN, serve_hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish") / "groupvit"
    config = weights.small_config()
    config.text.update(vocab_size=49408, end_of_text_id=49407)
    save_pretrained(folder, weights.random_pretrained(config), "huggingface", licence="cc-by-4.0")
    return folder


@pytest.fixture
def hub():
    with serve_hub() as hub:
        yield hub


def run(folder, url, token=TOKEN, repo="ada/groupvit", **more):
    # Without Xet, the storage behind the hub, which has a protocol of its own.
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **hub, **more}
    environment.pop("HF_TOKEN", None)
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "launch.publish", f"--folder={folder}", f"--repo={repo}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_folder_is_uploaded_as_it_is(folder, hub):
    result = run(folder, hub.url)
    assert result.returncode == 0, result.stderr
    assert f"{hub.url}/ada/groupvit" in result.stdout
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.repos == {"ada/groupvit": expected}
    assert hub.private == {"ada/groupvit"}
    assert hub.messages == ["Upload a GroupViT"]


@pytest.mark.slow
def test_the_token_is_never_printed(folder, hub):
    result = run(folder, hub.url, HF_HUB_VERBOSITY="debug", HF_DEBUG="1")
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("token", ["wrong", ""])
def test_a_refusal_is_one_line_without_the_token(folder, hub, token):
    result = run(folder, hub.url, token)
    assert result.returncode in (1, 2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --repo=ada/groupvit: ")
    assert not token or token not in line
    assert hub.repos == {}


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_line(folder):
    result = run(folder, "http://127.0.0.1:9")
    assert result.returncode == 1
    # The lines before are the library's retries.
    assert result.stderr.splitlines()[-1].startswith("error: --repo=ada/groupvit: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folder=none", "--repo=ada/x"], "--folder=none: no config.json found"),
        (["--repo=x"], "--repo=x: expected NAME/MODEL"),
        (["--repo=a/b/c"], "--repo=a/b/c: expected NAME/MODEL"),
    ],
)
def test_wrong_flags_end_with_one_line(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        publish.main(publish.parse_flags(["publish", f"--folder={folder}", *flags]))
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_an_export_of_another_format_is_refused(tmp_path):
    pretrained = weights.random_pretrained(weights.small_config())
    save_pretrained(tmp_path / "native", pretrained, "safetensors")
    with pytest.raises(FileNotFoundError, match=r"no README\.md found"):
        publish.check_folder(tmp_path / "native")
