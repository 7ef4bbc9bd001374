"""The plugin that lists skipped tests, in a run of its own."""

import os
import subprocess
import sys

import pytest

from tests import skips

TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.parametrize("i", range(3))
def test_skipped(i): pytest.skip("timm is not installed")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("no_skips", ["0", "1"])
def test_skipped_tests_are_listed_and_fail_where_none_may_be(tmp_path, workers, no_skips):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text('__import__("pytest").importorskip("absent_module")')
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "xdist", "-n", workers]
    # Plugins that are installed, Hypothesis's among them, take seconds to import.
    more = {skips.NO_SKIPS: no_skips, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **more}
    result = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    listed = result.stdout.partition("skipped tests")[2]
    assert "    3  timm is not installed" in listed
    assert "    1  could not import 'absent_module'" in listed
    assert listed.count("make extras") == 1
    assert listed.count("the reason not allowed") == (4 if no_skips == "1" else 0)
    assert result.returncode == (1 if no_skips == "1" else 0)


def test_allowed_reasons(monkeypatch):
    monkeypatch.setenv(skips.NO_SKIPS, "1")
    monkeypatch.setattr(skips, "ALLOWED", {"no browser": "a reason"})
    assert skips.forbidden(["no browser: none found", "no timm"]) == ["no timm"]
