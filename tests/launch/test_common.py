import importlib.machinery
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from groupvit_jax.runs import exit_codes
from launch import (
    common,
    train,  # noqa: F401  It defines --config.
)
from tests.waiting import PATIENCE

TINY = "--config=configs/tiny.py"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.batchsize=4", "the nearest is config.train.batch_size"),
        ("--config.batch_size=4", "the nearest is config.train.batch_size"),
        ("--config.optimiser.weight_decay=1", "the nearest is config.optimizer.weight_decay"),
        ("--config.data.sources.pairs.patern=x", "config.data.sources.pairs.pattern"),
        (
            "--config.train.batch_size=abc",
            "config.train.batch_size: 'abc' found, expected a whole number",
        ),
        (
            "--config.train.batch_size=1.5",
            "config.train.batch_size: '1.5' found, expected a whole number",
        ),
        (
            "--config.train.batch_size=",
            "config.train.batch_size: '' found, expected a whole number",
        ),
        (
            "--config.optimizer.clip_norm=x",
            "config.optimizer.clip_norm: 'x' found, expected a number over 0",
        ),
        ("--config.train=5", "config.train: '5' found, expected --config.train.NAME=VALUE"),
    ],
)
def test_a_wrong_override_is_one_line(argument, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as end:
        common.parse_flags(["launch.train", TINY, argument])
    assert end.value.code == exit_codes.BAD_INPUT
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", ["groupvit_jax.somewhere", "elsewhere"])
def test_only_errors_of_this_project_are_said_in_one_line(name):
    code = compile("raise ValueError('x')", "file", "exec")
    with pytest.raises(ValueError, match="x") as error:
        exec(code, {"__name__": name})
    assert common.is_user_error(error.value) == (name == "groupvit_jax.somewhere")


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ON_REQUEST = _HUGE_PAGES.exists() and "[madvise]" in _HUGE_PAGES.read_text()
_REQUESTED = """
import os, sys
from launch import common

common.use_huge_pages()
print(os.getpid(), repr(os.environ.get("GLIBC_TUNABLES")), *sys.argv[1:], sep=",")
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_PLATFORMS": "cpu"}, "glibc.malloc.hugetlb=1" if _ON_REQUEST else None),
        ({"JAX_PLATFORMS": ""}, None),
        (
            {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.check=0"},
            "glibc.malloc.check=0",
        ),
    ],
)
def test_huge_pages_are_requested_on_a_cpu_unless_glibc_is_told_otherwise(environment, expected):
    inherited = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", _REQUESTED, "an argument"],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert printed == f"{process.pid},{expected!r},an argument\n"


def test_errors_of_a_command_that_runs_as_main_are_its_own():
    code = compile("raise ValueError('x')", "file", "exec")
    spec = importlib.machinery.ModuleSpec("launch.somewhere", None)
    with pytest.raises(ValueError, match="x") as error:
        exec(code, {"__name__": "__main__", "__spec__": spec})
    assert common.is_user_error(error.value)


def test_help_lists_the_flags_of_the_command_with_config_and_workdir_first():
    command = [sys.executable, "-m", "launch.train", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^  --([\w.]+)", text, re.MULTILINE)
    assert names[:2] == ["config", "workdir"]
    assert {"distributed", "coordinator", "compilation_cache"} < set(names)
    assert "--verbosity" not in text  # a library's


def test_commands_that_read_a_checkpoint_say_which_step():
    code = """
from pathlib import Path
from groupvit_jax.runs import checkpoints
from launch import common
common.name_steps()
checkpoints.find_damage = lambda step, items: None
checkpoints._is_step = lambda path: True
checkpoints.find_whole_step(Path("run/checkpoints/12"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr.count("step 12 is read (/") == 1


@pytest.fixture
def cache_setting():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch, cache_setting):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common.keep_compiled_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "groupvit_jax/compiled"
    assert folder.is_dir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    common.keep_compiled_programs()
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    code = """
import jax, jax.numpy as jnp
from launch import common
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
common.keep_compiled_programs()
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 4)))
print(*(events.count(name) for name in ("compile_requests_use_cache", "cache_hits")))
"""
    # The tests' own settings of the cache don't hold here.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment["JAX_PLATFORMS"] = "cpu"
    environment["XDG_CACHE_HOME"] = str(tmp_path / "a user's cache")
    command = [sys.executable, "-c", code]
    found = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment
        ).stdout.split()
        for _ in range(2)
    ]
    (first, none), (second, hits) = found
    assert none == "0"
    assert first == second == hits != "0"


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, cache_setting, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    common.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert "compiled programs are not kept" in capsys.readouterr().err
