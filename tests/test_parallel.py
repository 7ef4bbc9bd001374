from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import base
from groupvit_jax import optim, parallel
from tests.devices import first_devices


def mesh_of(data=1, fsdp=1, tensor=1):
    devices = first_devices(data * fsdp * tensor) if data > 0 else None
    return parallel.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices)


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


class TestMesh:
    def test_rest_of_the_devices(self):
        mesh = parallel.make_mesh({"data": -1, "fsdp": 2, "tensor": 2}, first_devices(8))
        assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
        assert mesh.axis_names == ("data", "fsdp", "tensor")
        assert mesh.axis_types == (AxisType.Auto,) * 3

    def test_shipped_config(self):
        sizes = base.get_config().parallel.mesh.to_dict()
        assert parallel.make_mesh(sizes).shape["data"] == jax.device_count()

    @pytest.mark.parametrize(
        "sizes",
        [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (-1, 0, 1), (4, 1, 1), (16, 1, 1), (-1, 16, 1)],
    )
    def test_sizes_that_do_not_fit(self, sizes):
        with pytest.raises(ValueError, match=r"config.parallel.mesh: .* the 8 devices"):
            parallel.make_mesh(dict(zip(parallel.AXES, sizes, strict=True)), first_devices(8))

    def test_unknown_axis(self):
        with pytest.raises(ValueError, match=r"model.*expected .*'tensor'"):
            parallel.make_mesh({"data": -1, "fsdp": 1, "model": 1})

    def test_divides_a_side_of_the_torus(self):
        chips = []
        for i, coords in enumerate(np.ndindex(4, 4, 4)):
            chip = stand_in(i, 0, platform="tpu", device_kind="TPU v5")
            chip.coords, chip.core_on_chip = coords, 0
            chips.append(chip)
        mesh = parallel.make_mesh({"data": -1, "fsdp": 2, "tensor": 1}, chips)
        assert dict(mesh.shape) == {"data": 32, "fsdp": 2, "tensor": 1}
        assert {chip.id for chip in mesh.devices.flat} == set(range(64))
        for one, other in mesh.devices[:, :, 0]:
            distances = np.abs(np.subtract(one.coords, other.coords))
            assert sorted(distances) in ([0, 0, 1], [0, 0, 3])  # neighbours; rings are closed


def stand_in(i, slice_index, platform="gpu", device_kind="stand-in"):
    """A device of a slice, as far as a mesh asks."""
    device = mock.Mock(spec=jax.Device, id=i, process_index=slice_index, platform=platform)
    device.slice_index, device.device_kind = slice_index, device_kind
    return device


def slices_of(sizes, num_slices, per_slice):
    """Returns the slice of each place of the mesh; the devices come in no order."""
    devices = [stand_in(i, i % num_slices) for i in range(num_slices * per_slice)]
    mesh = parallel.make_mesh(dict(zip(parallel.AXES, sizes, strict=True)), devices)
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert {device.id for device in mesh.devices.flat} == set(range(len(devices)))
    return np.vectorize(lambda device: device.slice_index)(mesh.devices)


class TestMeshOverSlices:
    def test_data_crosses_between_slices(self):
        slices = slices_of((-1, 4, 1), num_slices=2, per_slice=8)
        assert slices.shape == (4, 4, 1)
        np.testing.assert_array_equal(slices[:, 0, 0], [0, 0, 1, 1])
        assert (slices == slices[:, :1]).all()

    def test_fsdp_crosses_where_data_is_too_small(self):
        slices = slices_of((2, 4, 2), num_slices=4, per_slice=4)
        np.testing.assert_array_equal(slices[..., 0], [[0, 0, 1, 1], [2, 2, 3, 3]])
        assert (slices == slices[..., :1]).all()

    def test_tensor_crosses_last(self):
        slices = slices_of((1, 1, 8), num_slices=2, per_slice=4)
        np.testing.assert_array_equal(slices[0, 0], [0, 0, 0, 0, 1, 1, 1, 1])

    def test_slices_of_different_sizes(self):
        devices = [stand_in(i, i // 5) for i in range(8)]
        with pytest.raises(ValueError, match=r"devices per slice: \{0: 5, 1: 3\} found"):
            parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)


class TestBatchPart:
    """Two processes with four devices each."""

    def part(self, monkeypatch, process, sizes):
        devices = [stand_in(i, i // 4) for i in range(8)]
        sizes = dict(zip(parallel.AXES, sizes, strict=True))
        monkeypatch.setattr(jax, "process_index", lambda: process)
        return parallel.batch_part(parallel.make_mesh(sizes, devices))

    @pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (4, 1, 2), (2, 1, 4), (1, 8, 1)])
    def test_a_part_each(self, monkeypatch, sizes):
        assert [self.part(monkeypatch, i, sizes) for i in range(2)] == [(0, 2), (1, 2)]

    def test_the_same_rows_where_only_tensor_tells_the_processes_apart(self, monkeypatch):
        assert [self.part(monkeypatch, i, (1, 1, 8)) for i in range(2)] == [(0, 1), (0, 1)]

    def test_parts_that_overlap(self):
        devices = [stand_in(i, 0) for i in range(8)]
        for device, process in zip(devices, (0, 0, 0, 1, 1, 1, 1, 0), strict=True):
            device.process_index = process
        mesh = parallel.make_mesh({"data": 4, "fsdp": 1, "tensor": 2}, devices)
        with pytest.raises(ValueError, match="2 processes hold whole and equal parts"):
            parallel.batch_part(mesh)


class TestRules:
    RULES = (
        (r"attn/kernel$", ("fsdp", "tensor")),
        (r"kernel$", (None, ("data", "fsdp"))),
        (r"token$", (None, None, "fsdp")),
        (r".*", ()),
    )

    def test_first_match_wins(self):
        tree = {"a": {"attn": shapes(kernel=(8, 8)), "mlp": shapes(kernel=(8, 8), bias=(8,))}}
        assert parallel.partition_specs(tree, self.RULES) == {
            "a": {
                "attn": {"kernel": P("fsdp", "tensor")},
                "mlp": {"kernel": P(None, ("data", "fsdp")), "bias": P()},
            }
        }

    def test_leaf_with_fewer_dimensions_is_replicated(self):
        specs = parallel.partition_specs(shapes(token=(8,), scale=()), self.RULES)
        assert specs == {"token": P(), "scale": P()}

    def test_leaf_with_more_dimensions(self):
        assert parallel.partition_specs(shapes(kernel=(2, 8, 8)), self.RULES) == {
            "kernel": P(None, ("data", "fsdp"))
        }

    def test_rules_from_a_config(self):
        config = ConfigDict({"rules": self.RULES})
        tree = {"mlp": shapes(kernel=(8, 8))}
        specs = parallel.partition_specs(tree, config.rules)
        assert specs == {"mlp": {"kernel": P(None, ("data", "fsdp"))}}

    def test_moments_are_sharded_like_their_parameters(self):
        params = {"attn": {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}}
        optimizer = optim.make_optimizer(base.get_config().optimizer, lambda step: 0.1, params)
        state = jax.eval_shape(optimizer.init, params)
        specs = parallel.partition_specs(state, self.RULES)
        adam = optax.tree_utils.tree_get(specs, "ScaleByAdamState")
        assert adam.mu == adam.nu == {"attn": {"kernel": P("fsdp", "tensor"), "bias": P()}}
        assert adam.count == P()

    def test_no_rule(self):
        with pytest.raises(ValueError, match="no rule for a/b"):
            parallel.partition_specs({"a": shapes(b=(2,))}, ((r"c$", ()),))


class TestShardings:
    def shard(self, tree, rules, **sizes):
        specs = parallel.partition_specs(tree, rules)
        return parallel.shardings(mesh_of(**sizes), specs, tree)

    def test_shards_what_the_rule_names(self):
        tree = shapes(kernel=(16, 8), bias=(8,))
        result = self.shard(tree, TestRules.RULES, data=2, fsdp=4)
        assert result["kernel"].shard_shape((16, 8)) == (16, 1)
        assert result["bias"].is_fully_replicated

    def test_dimension_that_does_not_divide(self):
        tree = {"mlp": shapes(kernel=(16, 12))}
        message = r"mlp/kernel with shape \(16, 12\) .* dimension of 12 .* dataxfsdp = 8"
        with pytest.raises(ValueError, match=message):
            self.shard(tree, TestRules.RULES, data=2, fsdp=4)

    def test_unknown_axis(self):
        with pytest.raises(ValueError, match=r"\['model'\] found for kernel"):
            self.shard(shapes(kernel=(8, 8)), ((r".*", ("model",)),), data=8)


class TestBatch:
    @pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 1, 1)])
    def test_order_does_not_depend_on_the_mesh(self, sizes):
        mesh = mesh_of(*sizes)
        host = {"image": np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3)}
        host["index"] = np.arange(8, dtype=np.int32)
        batch = parallel.to_global_batch(mesh, host)
        for name, array in batch.items():
            assert array.sharding == parallel.batch_sharding(mesh)
            assert array.dtype == host[name].dtype
            np.testing.assert_array_equal(array, host[name])
        rows = 8 // (sizes[0] * sizes[1])
        assert {s.data.shape for s in batch["index"].addressable_shards} == {(rows,)}

    def test_batch_size(self):
        parallel.check_batch_size(16, mesh_of(data=2, fsdp=4))
        parallel.check_batch_size(4, mesh_of(data=4, tensor=2))
        with pytest.raises(ValueError, match=r"batch_size: 12 found, expected a multiple of 8"):
            parallel.check_batch_size(12, mesh_of(data=2, fsdp=4))
        with pytest.raises(ValueError, match=r"batch_size: 0 found"):
            parallel.check_batch_size(0, mesh_of(data=2))
