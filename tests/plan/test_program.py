import jax
import jax.numpy as jnp
import pytest

from groupvit_jax.plan.costs import matrix_flops
from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.program import Buffer, executions, parse_program, trip_count


def memory_traffic(program):
    return sum(cost.count * cost.num_bytes for cost in instruction_costs(program))


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    result = jax.jit(function).lower(*arguments).compile()
    return parse_program(result.as_text()), result


def layers(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def test_a_loop_counts_as_often_as_it_runs():
    program, _ = compiled(layers, (16, 32), (7, 32, 32))
    assert matrix_flops(program) == 7 * 2 * 16 * 32 * 32
    loops = [run for run in executions(program) if run.instruction.opcode == "while"]
    assert [trip_count(program, run.instruction) for run in loops] == [7]
    products = [run for run in executions(program) if run.instruction.opcode == "dot"]
    assert {(run.loops, run.count) for run in products} == {(1, 7)}


def test_a_loop_reads_each_layer_once():
    few, _ = compiled(layers, (16, 32), (4, 32, 32))
    many, _ = compiled(layers, (16, 32), (8, 32, 32))
    a_layer = (memory_traffic(many) - memory_traffic(few)) / 4
    kernel, x = 4 * 32 * 32, 4 * 16 * 32
    assert kernel <= a_layer < 4 * kernel + 8 * x  # the slice, not all kernels


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, y: x @ y, ((16, 32), (32, 8))),
        (lambda x, y: jnp.einsum("bnth,bnsh->bnts", x, y), ((2, 3, 5, 4), (2, 3, 6, 4))),
        (
            lambda x, y: jax.lax.conv_general_dilated(x, y, (4, 4), "VALID"),
            ((2, 3, 16, 16), (8, 3, 4, 4)),
        ),
        (
            lambda x, y: jax.lax.conv_general_dilated(x, y, (1, 1), "SAME"),
            ((2, 3, 8, 8), (4, 3, 3, 3)),
        ),
    ],
    ids=["product", "batched", "patches", "padded"],
)
def test_products_are_counted_as_xla_does(function, shapes):
    program, result = compiled(function, *shapes)
    assert matrix_flops(program) == pytest.approx(result.cost_analysis()["flops"], rel=0.01)


def test_bytes_that_are_read_and_written():
    program, result = compiled(lambda x, y: jnp.sin(x) + y, (100, 10), (100, 10))
    assert memory_traffic(program) == 3 * 4 * 1000
    assert memory_traffic(program) == result.cost_analysis()["bytes accessed"]


TPU_TEXT = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/here/groupvit_jax/losses.py"

FunctionNames
1 "loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=8 end_line=8 column=2 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  ROOT %y = f32[4,4,1]{1,0,2:T(8,128)} convolution(%x, %x), dim_labels=fb_io->bf, \
metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=1}
}

%condition (q: (s32[], bf16[8,4])) -> pred[] {
  %q = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: bf16[8,4]) -> (s32[], bf16[8,4]) {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="batch[\\'text\\']"}
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,4]{1,0}) tuple(%zero, %a)
  ROOT %loop = (s32[], bf16[8,4]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_text_of_a_tpu():
    program = parse_program(TPU_TEXT)
    body = program.computations["body"]
    assert body["p"].outputs == (
        Buffer("s32", (), layout="{:T(128)}"),
        Buffer("bf16", (8, 4), on_chip=True, layout="{1,0:T(8,128)(2,1)S(1)}"),
    )
    assert body["p"].outputs[1].num_bytes == 64
    assert body["y"].operands == ("x", "x")
    assert body["y"].op_name == "jit(step)/jvp()/dot_general"
    assert program.stems_from(body["y"], "groupvit_jax/losses.py")
    assert not program.stems_from(body["x"], "groupvit_jax/losses.py")
    # No trip count is told: the condition's limit is taken.
    assert trip_count(program, program.computations["main"]["loop"]) == 12
    # The product goes to memory, four tiles of it, and its operands don't come from there; a
    # comparison takes 9 bytes.
    assert memory_traffic(program) == 12 * (4 * 8 * 128 + 9)


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (Buffer("f32", (260, 260), layout="{1,0:T(8,128)}"), 4 * 264 * 384),
        (Buffer("f32", (2, 260, 8), layout="{1,2,0:T(8,128)}"), 4 * 2 * 8 * 384),
        (Buffer("bf16", (1, 128), layout="{1,0:T(1,128)(2,1)}"), 2 * 2 * 128),
        (Buffer("f32", (300,), layout="{0:T(256)}"), 4 * 512),
        (Buffer("f32", (260, 260), layout="{1,0}"), 4 * 260 * 260),
        (Buffer("f32", (260, 260)), 4 * 260 * 260),
        (Buffer("f32", (), layout="{:T(128)}"), 4),
    ],
)
def test_arrays_lie_in_whole_tiles(buffer, expected):
    assert buffer.stored_bytes == expected


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation found"):
        parse_program("error: nothing here")
