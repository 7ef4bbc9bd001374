"""The Makefile's check of Python, in a folder with spaces."""

import shutil
import subprocess
import sys

import pytest

PRETENDED = """#!/bin/sh
if [ "$1" = -c ]; then
  exec "{python}" -c "import sys; sys.version_info = (3, {minor}, 0, 'final', 0)
$2"
fi
echo "would run $*"
"""


@pytest.mark.parametrize("minor", [10, 11, 14, 15])
def test_unsupported_pythons_are_named(tmp_path, minor):
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy("Makefile", folder)
    python = folder / "python"
    python.write_text(PRETENDED.format(python=sys.executable, minor=minor))
    python.chmod(0o755)
    result = subprocess.run(
        ["make", ".venv/bin/pip", f"PYTHON={python}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"Python 3.{minor} found, 3.11 to 3.14 expected"
    assert (message in result.stderr) == (minor in (10, 15))
    assert ("would run -m venv .venv" in result.stdout) == (minor not in (10, 15))
