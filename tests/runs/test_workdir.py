import pytest

from groupvit_jax.runs.workdir import check_writable


def test_a_workdir_below_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"--workdir=.*/file/run: not writable \(Not a directory\)"
    ):
        check_writable(tmp_path / "file" / "run")


def test_a_writable_workdir_is_left_empty(tmp_path):
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
