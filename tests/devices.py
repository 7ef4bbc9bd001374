"""The host devices that `conftest.py` forces, for the tests and the processes they start."""

import os
import re

import jax
import pytest


def first_devices(count):
    """Return the first `count` devices; skip the test where fewer are forced."""
    found = jax.devices()
    if len(found) < count:
        pytest.skip(f"needs {count} devices, GROUPVIT_TEST_DEVICES={len(found)}")
    return found[:count]


def xla_flags(num_devices):
    """Return the flags of these tests for a process with another number of devices."""
    return re.sub(r"device_count=\d+", f"device_count={num_devices}", os.environ["XLA_FLAGS"])
