"""Runs every test on 8 host devices and checks shape annotations at run time.

GROUPVIT_TEST_XLA_FLAGS adds flags, GROUPVIT_TEST_DEVICES sets another number of devices.
"""

import os
from pathlib import Path

# Tests compile much and compute little. LLVM's optimisations cost three times what they save, XLA's
# newer emitters of fused loops half of the compile time, and modules split for other cores find
# these busy with another worker. A cache of compiled programs serves the subprocesses that tests
# start, and the next run.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("GLIBC_TUNABLES", "")  # else every command starts twice
os.environ["XLA_FLAGS"] = " ".join(
    [
        f"--xla_force_host_platform_device_count={os.environ.get('GROUPVIT_TEST_DEVICES', '8')}",
        "--xla_backend_optimization_level=0",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("GROUPVIT_TEST_XLA_FLAGS", ""),
    ]
)
cache = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gc
import logging

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("groupvit_jax", "beartype.beartype")

pytest_plugins = ["tests.skips"]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Keep what the imports made out of later collections, which would walk millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Drop compiled programs after each module: a worker would otherwise hold gigabytes of them."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _restore_log_levels():
    """Commands set levels for their process; a test that reads the log must not depend on that."""
    names = ("groupvit_jax", *logging.root.manager.loggerDict)
    loggers = [logging.root, *(logging.getLogger(n) for n in names if n.startswith("groupvit_jax"))]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
