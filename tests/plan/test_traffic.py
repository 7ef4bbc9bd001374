"""Traffic of a program as a TPU's compiler writes it, against bytes counted by hand."""

import pytest

from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.program import parse_program

# Every array lies in tiles of 8 x 128: [6,100] in float32 takes 8 x 128 x 4 bytes.
TEXT = """\
HloModule jit_step, is_scheduled=true

%double (p.1: f32[6,100]) -> f32[6,100] {
  %p.1 = f32[6,100]{1,0:T(8,128)} parameter(0)
  ROOT %twice = f32[6,100]{1,0:T(8,128)} add(%p.1, %p.1)
}

%one_layer (p.2: f32[12,6,100], p.3: s32[]) -> f32[1,6,100] {
  %p.2 = f32[12,6,100]{2,1,0:T(8,128)} parameter(0)
  %p.3 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %layer = f32[1,6,100]{2,1,0:T(8,128)} dynamic-slice(%p.2, %p.3, %zero.1, %zero.1)
}

%put_layer (p.4: f32[12,6,100], p.5: f32[1,6,100], p.6: s32[]) -> f32[12,6,100] {
  %p.4 = f32[12,6,100]{2,1,0:T(8,128)} parameter(0)
  %p.5 = f32[1,6,100]{2,1,0:T(8,128)} parameter(1)
  %p.6 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  ROOT %put = f32[12,6,100]{2,1,0:T(8,128)} dynamic-update-slice(%p.4, %p.5, %p.6, %zero.2, %zero.2)
}

ENTRY %main (a: f32[6,100], stack: f32[12,6,100], i: s32[]) -> f32[12,6,100] {
  %a = f32[6,100]{1,0:T(8,128)} parameter(0)
  %stack = f32[12,6,100]{2,1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  %doubled = f32[6,100]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%double
  %near = f32[6,100]{1,0:T(8,128)S(1)} fusion(%a), kind=kLoop, calls=%double
  %picked = f32[1,6,100]{2,1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%one_layer
  %written = f32[12,6,100]{2,1,0:T(8,128)} fusion(%stack, %picked, %i), kind=kLoop, calls=%put_layer
  %room = f32[12,6,100]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %view = f32[6,100]{1,0:T(8,128)} custom-call(%doubled), custom_call_target="ConcatBitcast"
  %copy-start = (f32[6,100]{1,0:T(8,128)S(1)}, f32[6,100]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%a)
  %copy-done = f32[6,100]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %copy-start.1 = (f32[6,100]{1,0:T(8,128)}, f32[6,100]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%a)
  %copy-done.1 = f32[6,100]{1,0:T(8,128)} copy-done(%copy-start.1)
  %slice-start = ((f32[12,6,100]{2,1,0:T(8,128)}), f32[1,6,100]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%stack), slice={[3:4], [0:6], [0:100]}
  %slice-done = f32[1,6,100]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  ROOT %out = f32[12,6,100]{2,1,0:T(8,128)} copy(%written)
}
"""
TILE = 4 * 8 * 128
INDEX = 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("doubled", 2 * TILE),
        ("near", TILE),  # the result stays on the chip
        ("picked", 2 * TILE + INDEX),  # a layer, not the stack of 12
        ("written", 2 * TILE + INDEX),
        ("room", 0),
        ("view", 0),
        ("copy-start", TILE),  # to the chip's own memory: read once
        ("copy-start.1", 2 * TILE),
        ("slice-start", TILE),
        ("copy-done", 0),
        ("slice-done", 0),
        ("out", 2 * 12 * TILE),
    ],
)
def test_bytes_of_each_instruction(name, expected):
    found = {cost.name: cost.num_bytes for cost in instruction_costs(parse_program(TEXT))}
    assert found[name] == expected


def test_nothing_else_counts():
    costs = instruction_costs(parse_program(TEXT))
    assert sum(cost.launches for cost in costs) == len(costs) - 3  # but for the ends of copies
    assert sum(cost.num_bytes for cost in costs) == (2 + 1 + 2 + 2 + 1 + 2 + 1 + 24) * TILE + 8
    assert {cost.name for cost in costs if cost.takes_no_time} == {
        "copy-start", "copy-done", "copy-start.1", "copy-done.1", "slice-start", "slice-done",
    }  # fmt: skip
