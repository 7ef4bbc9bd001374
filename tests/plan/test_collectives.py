import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import tiny
from groupvit_jax import parallel
from groupvit_jax.plan.collectives import find_collectives, purpose, replica_groups
from groupvit_jax.plan.compiling import compile_step
from groupvit_jax.plan.costs import logits_bytes
from groupvit_jax.plan.program import parse_program
from tests.devices import first_devices
from tests.plan.machines import host

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x={}", [[0, 2], [1, 3]]),
        ("channel_id=1, replica_groups={}, x", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}, x", [[0, 1, 2, 3]]),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
            [[0, 1], [2, 3]],
        ),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", [[0, 1], [0, 3], [1, 2], [2, 3]]),
    ],
)
def test_replica_groups(attributes, groups):
    found = replica_groups(attributes, 4)
    assert sorted(map(sorted, found.tolist())) == groups


def test_unknown_replica_groups():
    with pytest.raises(ValueError, match="no replica groups in 'replica_groups=new"):
        replica_groups("replica_groups=new", 4)


def collectives_of(function, *shapes, slice_of=(0,) * 8):
    mesh = parallel.make_mesh(MESH, first_devices(8))
    with jax.set_mesh(mesh):
        arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        text = jax.jit(function).lower(*arguments).compile().as_text()
    return find_collectives(parse_program(text), MESH, slice_of)


def mapped(function, spec):
    return jax.shard_map(function, in_specs=spec, out_specs=P(), check_vma=False)


@pytest.mark.parametrize("axes", [("data",), ("fsdp",), ("tensor",), ("data", "tensor")])
def test_axes_and_bytes_of_a_reduction(axes):
    sums = mapped(lambda x: jax.lax.psum(x, axes), P(axes))
    (found,) = collectives_of(sums, (16, 4))
    n = 2 ** len(axes)
    assert (found.kind, found.axes, found.group_size) == ("all-reduce", "+".join(axes), n)
    assert found.num_bytes == 4 * 16 * 4 / n
    assert found.sent_bytes == 2 * (n - 1) / n * found.num_bytes
    assert not found.in_loop


def test_a_gather_in_a_loop():
    def layers(x, kernels):
        def layer(x, kernel):
            return x @ jax.lax.all_gather(kernel, "fsdp", tiled=True), None

        return jax.lax.scan(layer, x, kernels)[0]

    sharded = mapped(layers, (P(), P(None, "fsdp")))
    (found,) = collectives_of(sharded, (4, 8), (5, 8, 8))
    assert (found.kind, found.axes, found.count, found.in_loop) == ("all-gather", "fsdp", 5, True)
    assert found.num_bytes == 4 * 8 * 8
    assert found.sent_bytes == 5 * found.num_bytes / 2


def test_what_crosses_slices():
    sums = mapped(lambda x: jax.lax.psum(jax.lax.psum(x, "tensor") ** 2, "data"), P())
    found = collectives_of(sums, (4,), slice_of=(0, 0, 0, 0, 1, 1, 1, 1))
    assert {c.axes: c.crosses_slices for c in found} == {"tensor": False, "data": True}


def test_pieces_of_one_collective_count_once():
    # A TPU runs it beside other work: it stands in every fusion of its stretch.
    text = """\
%piece.1 (x: f32[2]) -> f32[4] {
  %x = f32[2] parameter(0)
  ROOT %g = f32[4] all-gather(%x), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}
%piece.2 (y: f32[2]) -> f32[4] {
  %y = f32[2] parameter(0)
  ROOT %h = f32[4] all-gather(%y), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}
ENTRY %main (a: f32[2]) -> f32[4] {
  %a = f32[2] parameter(0)
  %b = f32[4] fusion(%a), kind=kCustom, calls=%piece.1
  ROOT %c = f32[4] fusion(%a), kind=kCustom, calls=%piece.2
}
"""
    (found,) = find_collectives(parse_program(text), {"data": 2}, (0, 0))
    assert found.num_bytes == 16


def test_the_purpose_of_a_view_is_that_of_its_array():
    text = """\
ENTRY %main (a: f32[4]) -> (f32[4], f32[2]) {
  %a = f32[4] parameter(0)
  %g = f32[4] negate(%a), metadata={op_name="jit(s)/transpose(jvp(TwoTower))/text_encoder/mul"}
  %view = f32[4] bitcast(%g)
  %n = f32[2] slice(%a), metadata={op_name="jit(s)/jvp()/slice"}
  ROOT %sum = (f32[4], f32[2]) all-reduce(%view, %n), replica_groups={{0,1}}, to_apply=%add
}
"""
    (found,) = find_collectives(parse_program(text), {"data": 2}, (0, 0))
    assert (found.purpose, found.dtypes, found.num_bytes) == ("gradients", "f32", 24)


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/jvp(TwoTower)/image_projector/norm/reduce_sum", "BatchNorm"),
        ("jit(train_step)/transpose(jvp(TwoTower))/text_encoder/norm/reduce_sum", "gradients"),
        ("jit(train_step)/jvp(TwoTower)/text_encoder/blocks_0/attn/qkv/dot_general", "model"),
        ("jit(train_step)/transpose(jvp(on_each_device))/shard_map/psum", "gradients"),
        ("jit(train_step)/jvp()/dot_general", "loss"),
        ("jit(train_step)/reduce_sum", "optimizer and norms"),
        ("", "unnamed"),
    ],
)
def test_purpose(op_name, expected):
    assert purpose(op_name) == expected


@pytest.fixture(scope="module")
def data_parallel():
    step = compile_step(tiny.get_config(), host(4))
    return step, parse_program(step.text)


def test_gradients_are_reduced_once_and_never_in_a_loop(data_parallel):
    step, program = data_parallel
    found = find_collectives(program, step.mesh_shape, step.slice_of)
    assert {c.axes for c in found} == {"data"}
    assert not any(c.in_loop for c in found)
    reduced = [c.count * c.num_bytes for c in found if c.kind == "all-reduce"]
    # What else is reduced are sums of a row or a column.
    assert step.memory.parameters <= sum(reduced) <= 1.05 * step.memory.parameters
    largest = max(found, key=lambda c: c.num_bytes)
    assert largest.purpose == "gradients"
    assert largest.num_bytes >= 0.9 * step.memory.parameters


def test_what_else_travels_is_small(data_parallel):
    step, program = data_parallel
    config = tiny.get_config()
    found = find_collectives(program, step.mesh_shape, step.slice_of)
    kinds = {c.purpose for c in found}
    assert kinds <= {"gradients", "loss", "BatchNorm", "unnamed"}
    embeddings = 4 * 16 * (1 + 1 + config.data.num_nouns) * config.model.projector.output_dim
    travelled = sum(c.count * c.num_bytes for c in found if c.purpose == "loss")
    assert travelled <= 4 * embeddings


def test_bytes_of_the_logits(data_parallel):
    _, program = data_parallel
    # Of one device's 4 images with all texts, or with a block of them.
    assert 0 < logits_bytes(program, 32) <= 4 * 4 * 16 * 4
