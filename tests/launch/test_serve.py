import importlib.util
import socket

import pytest

from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.serve import server
from launch import serve
from tests.serve import models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "export"
    save_pretrained(path, models.pretrained(), "safetensors")
    return path


def run(checkpoint, *flags):
    return serve.main(serve.parse_flags(["serve", f"--checkpoint={checkpoint}", *flags]))


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name)
    )
    errors = failure(capsys, "none")
    assert "gradio is not installed: pip install 'groupvit_jax[serve]'" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint=none"], "none: no such file or directory"),
        (["--labels=dog,dog"], "labels: 'dog' found twice"),
        (["--labels=@none.txt"], "--labels=@none.txt: no such file"),
        (["--vocabulary=,"], "labels: an empty label found"),
        (["--background_threshold=7"], "background=7.0: expected"),
        (["--side=0"], "side=0: expected more than 0"),
        (["--window=-1"], "window=-1"),
        (["--host=192.0.2.1"], "192.0.2.1:7860: Cannot assign"),
    ],
)
def test_a_wrong_flag_ends_with_one_line(checkpoint, capsys, flags, message):
    assert message in failure(capsys, checkpoint, *flags)


def test_prompts_from_a_file_may_be_of_labels_that_a_visitor_names_later(
    checkpoint, monkeypatch, tmp_path
):
    pages = []
    monkeypatch.setattr(server, "make_app", pages.append)
    stopped = type("Server", (), {"run": lambda self, sockets: None})
    monkeypatch.setattr(server, "make_server", lambda app: stopped())
    (tmp_path / "prompts.json").write_text('{"*": ["a {}."], "crane": ["a bird"]}')
    flags = ["--labels=cat", "--vocabulary=sea,sand", "--side=64", "--window=32"]
    assert run(checkpoint, *flags, f"--prompts=@{tmp_path / 'prompts.json'}") == 0
    segmenter = pages[0].segmenter
    assert segmenter.protocol.texts == {"": ("a {}.",), "crane": ("a bird",)}
    assert segmenter.mask_labels(["crane", "cat"]) == ("crane", "cat")


def test_a_taken_port_ends_with_one_line(checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: Address already in use" in failure(
            capsys, checkpoint, f"--port={port}"
        )


def test_the_page_is_served_on_this_machine_alone_and_its_address_told(
    checkpoint, capsys, monkeypatch
):
    served = {}

    class Server:
        def run(self, sockets):
            served["address"] = sockets[0].getsockname()

    def make_app(page):
        served["page"] = page
        return page

    monkeypatch.setattr(server, "make_app", make_app)
    monkeypatch.setattr(server, "make_server", lambda app: Server())
    flags = ["--labels=cat, red mat", "--vocabulary=sea,sand", "--side=64", "--window=32"]
    assert run(checkpoint, *flags) == 0
    host, port = served["address"]
    assert host == "127.0.0.1"
    assert f"open http://127.0.0.1:{port} " in capsys.readouterr().out
    page = served["page"]
    assert page.labels == ("cat", "red mat")
    assert page.vocabulary == ("sea", "sand")
    assert page.limits.side == page.segmenter.protocol.window * 2 == 64
