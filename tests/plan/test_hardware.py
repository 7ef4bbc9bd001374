import importlib.util
import os

import pytest

from groupvit_jax.plan import hardware
from groupvit_jax.plan.hardware import CHIPS, describe

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)


def test_figures_are_of_one_order():
    for kind, chip in CHIPS.items():
        assert chip.kind == kind
        assert 1e14 < chip.peak_flops < 1e16
        assert 1e10 < chip.memory_bytes < 1e12
        # A byte from afar costs more than one from near.
        assert chip.memory_bandwidth > chip.link_bandwidth > chip.network_bandwidth > 1e9
        assert 100 < chip.peak_flops / chip.memory_bandwidth < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "--topology=v9:2x2: unknown, expected one of v4, v5e, v5p, v6e, tpu7x"),
        ("v5e", "--topology=v5e: unknown"),
        ("v5e:16by16", "unknown, expected .* v5e:16x16"),
        ("h100:8", "--topology=h100:8: a GPU found, expected TPUs"),
    ],
)
def test_unknown_topology(name, message):
    with pytest.raises(ValueError, match=message):
        describe(name)


def test_number_of_slices():
    with pytest.raises(ValueError, match="--num_slices=0: expected at least 1"):
        describe("v5e:2x2", 0)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu is not installed, expected the extra 'tpu'"):
        describe("v5e:2x2")


@needs_libtpu
@pytest.mark.slow
class TestWithLibtpu:
    @pytest.mark.parametrize(
        ("name", "num_slices", "num_chips", "num_devices"),
        [
            ("v5e:1x1", 1, 1, 1),
            ("v5e:16x16", 2, 512, 512),
            ("v6e:16x16", 1, 256, 256),
            ("v5p:16x16x16", 1, 4096, 4096),
            ("tpu7x:2x2x1", 1, 4, 8),
        ],
    )
    def test_topologies(self, name, num_slices, num_chips, num_devices):
        before = dict(os.environ)
        topology = describe(name, num_slices)
        assert (topology.num_chips, len(topology.devices)) == (num_chips, num_devices)
        slices = {getattr(device, "slice_index", None) or 0 for device in topology.devices}
        assert len(slices) == num_slices
        assert dict(os.environ) == before

    def test_shape_that_no_host_has(self):
        with pytest.raises(ValueError, match=r"--topology=v5e:3x5: .*not divisible"):
            describe("v5e:3x5")
