import importlib.util
import os
from pathlib import Path

import pytest

from groupvit_jax.plan import hardware
from groupvit_jax.plan.chips import GPUS, TPUS, read_gpu
from groupvit_jax.plan.hardware import find_topology, target_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)


def test_figures_are_of_one_order():
    for kind, chip in (TPUS | {kind: read_gpu(kind) for kind in GPUS}).items():
        assert chip.kind == kind
        assert 1e14 < chip.peak_flops < 1e16
        assert 1e10 < chip.memory_bytes < 1e12
        # A byte from afar costs more than one from near.
        assert chip.memory_bandwidth > chip.link_bandwidth > chip.network_bandwidth > 1e9
        assert 100 < chip.peak_flops / chip.memory_bandwidth < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "--topology=v9:2x2: unknown, expected one of v4, v5e, v5p, v6e, tpu7x, a100"),
        ("v5e", "--topology=v5e: unknown"),
        ("v5e:16by16", "unknown, expected .* v5e:16x16"),
        ("h100:16", "--topology=h100:16: expected hosts x GPUs of each, at most 8"),
        ("h100:2x2x2", "--topology=h100:2x2x2: expected hosts x GPUs"),
        ("my.toml:8", r"my.toml: .* No such file .* found, expected a GPU's description in TOML"),
    ],
)
def test_unknown_topology(name, message):
    with pytest.raises(ValueError, match=message):
        find_topology(name)


def test_a_description_of_ones_own(tmp_path):
    own = tmp_path / "mine.toml"
    h100 = (Path(hardware.__file__).parent / "gpus/h100.toml").read_text()
    own.write_text(h100.replace("multiprocessors = 132", "multiprocessors = 78"))
    chip = read_gpu(str(own))
    assert (chip.kind, chip.gpu.multiprocessors) == ("mine", 78)
    assert chip.memory_bytes == 0.75 * 80e9  # what JAX takes of it
    config = target_config(chip.gpu)
    assert "core_count: 78\n" in config
    assert "cuda_compute_capability { major: 9 minor: 0 }" in config
    own.write_text(h100.replace("host_gpus = 8", ""))
    with pytest.raises(ValueError, match="host_gpus missing or unknown, expected clock_ghz"):
        read_gpu(str(own))
    own.write_text(h100.replace("host_gpus = 8", "host_gpus = 'eight'"))
    with pytest.raises(ValueError, match="host_gpus = 'eight' found, expected int"):
        read_gpu(str(own))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("v5e:16x16", "v5e", "v5e:1x1"),
        ("v5p:4x4x8", "v5p", "v5p:1x1x1"),
        ("v6e:1x1", "v6e", "v6e:1x1"),
    ],
)
def test_one_chip_of_a_topology(name, kind, expected):
    assert hardware.Topology(name, 1, TPUS[kind], 1, ()).one_chip == expected


def test_gpus_come_in_hosts_not_in_slices():
    with pytest.raises(ValueError, match="--num_slices=2: expected 1 with GPUs"):
        find_topology("h100:8", 2)


def test_number_of_slices():
    with pytest.raises(ValueError, match="--num_slices=0: expected at least 1"):
        find_topology("v5e:2x2", 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:2x2", r"libtpu is not installed, expected the extra 'tpu'"),
        ("h100:8", r"jax_cuda13_plugin is not installed, expected the extra 'cuda'"),
    ],
)
def test_without_the_compiler(name, message, monkeypatch):
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        find_topology(name)


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
        topology = find_topology(name, num_slices)
        assert (topology.num_chips, len(topology.devices)) == (num_chips, num_devices)
        slices = {getattr(device, "slice_index", None) or 0 for device in topology.devices}
        assert len(slices) == num_slices
        assert dict(os.environ) == before

    def test_shape_that_no_host_has(self):
        with pytest.raises(ValueError, match=r"--topology=v5e:3x5: .*not divisible"):
            find_topology("v5e:3x5")
