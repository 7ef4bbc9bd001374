import pytest

from groupvit_jax.plan.chips import TPUS
from groupvit_jax.plan.collectives import Collective
from groupvit_jax.plan.instructions import InstructionCost, instruction_costs
from groupvit_jax.plan.parts import part_of
from groupvit_jax.plan.prediction import exposed_seconds, predict
from groupvit_jax.plan.program import parse_program

CHIP = TPUS["v5e"]

# A loop of 12 rounds of one product, then a kernel. [8,128] takes a tile of 4,096 bytes.
TEXT = """\
HloModule jit_step, is_scheduled=true

%product (p.1: f32[8,128], p.2: f32[128,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p.2 = f32[128,128]{1,0:T(8,128)} parameter(1)
  ROOT %dot = f32[8,128]{1,0:T(8,128)} convolution(%p.1, %p.2), dim_labels=bf_io->bf, \
metadata={op_name="jit(step)/jvp(TwoTower)/text_encoder/blocks_0/mlp/dot_general"}
}

%body (p.3: (s32[], f32[8,128], f32[128,128])) -> (s32[], f32[8,128], f32[128,128]) {
  %p.3 = (s32[], f32[8,128]{1,0:T(8,128)}, f32[128,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[] get-tuple-element(%p.3), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.3), index=1
  %w = f32[128,128]{1,0:T(8,128)} get-tuple-element(%p.3), index=2
  %relaid = f32[8,128]{0,1:T(8,128)} copy(%y), backend_config={"estimated_cycles":"50"}
  %y = f32[8,128]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%product, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %next = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) tuple(%n, %y, %w)
}

%condition (p.4: (s32[], f32[8,128], f32[128,128])) -> pred[] {
  %p.4 = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) parameter(0)
  %m = s32[] get-tuple-element(%p.4), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%m, %limit), direction=LT, backend_config={"estimated_cycles":"1"}
}

ENTRY %main (a: f32[8,128], b: f32[128,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params"}
  %b = f32[128,128]{1,0:T(8,128)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) tuple(%zero, %a, %b)
  %loop = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) while(%start), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %z = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%z), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(TwoTower)/image_encoder/stages_1/blocks_0/pallas_call"}, \
backend_config={"custom_call_config":{"body":"","cost_estimate":{"flops":"640","transcendentals":"0"}}}
}
"""


@pytest.fixture(scope="module")
def costs():
    return instruction_costs(parse_program(TEXT), {"kernel": 30_000})


def test_cycles_and_flops_of_loops_and_kernels(costs):
    found = {cost.name: (cost.count, cost.cycles, cost.flops, cost.num_bytes) for cost in costs}
    assert found == {
        "y": (12, 1000, 2 * 8 * 128 * 128, (8 + 128 + 8) * 512),
        "relaid": (12, 50, 0, 4096 + 128 * 128 * 4),  # lies there in rows of 8, padded to 128
        "less": (12, 1, 0, 9),
        "kernel": (1, 30_000, 640, 2 * 4096),
    }


def test_predicted_seconds_by_part(costs):
    prediction = predict(costs, CHIP)
    cycles = {part.name: part.seconds * CHIP.clock_rate for part in prediction.parts}
    assert cycles == {
        "image, stage 1: Pallas kernels": pytest.approx(30_000),
        # The copy has no name and belongs to the product whose result it copies.
        "text: MLP": pytest.approx(12 * 1050),
        "unnamed": pytest.approx(12),
    }
    assert prediction.seconds == pytest.approx(42_612 / CHIP.clock_rate)
    assert prediction.estimated == pytest.approx(1.0)
    assert [part.launches for part in prediction.parts] == [1, 24, 12]
    assert prediction.matrix_seconds == pytest.approx((12 * 262_144 + 640) / 197e12)


def cost(**changes):
    fields = dict(name="x", opcode="fusion", part="p", count=1, cycles=None, flops=0, num_bytes=0,
                  takes_no_time=False)  # fmt: skip
    return InstructionCost(**(fields | changes))


def test_without_an_estimate_the_roofline_counts():
    prediction = predict([cost(num_bytes=819_000, flops=197_000)], CHIP)
    assert prediction.seconds == pytest.approx(1e-6)
    assert prediction.estimated == 0


def test_copies_beside_the_work_take_no_time_until_they_are_most_of_it():
    work = cost(cycles=round(CHIP.clock_rate))
    copy = cost(num_bytes=819 * 10**9 // 2, takes_no_time=True)
    assert predict([work, copy], CHIP).seconds == pytest.approx(1.0)
    assert predict([work, copy, copy, copy], CHIP).seconds == pytest.approx(1.5)


def test_a_kernel_waits_for_its_data():
    kernel = cost(opcode="custom-call", cycles=1, num_bytes=819 * 10**9, count=2)
    assert predict([kernel], CHIP).seconds == pytest.approx(2.0)


def collective(**changes):
    fields = dict(kind="all-gather", axes="data", group_size=2, dtypes="f32", num_bytes=10**9,
                  count=1, in_loop=False, overlaps=False, crosses_slices=False,
                  purpose="loss")  # fmt: skip
    return Collective(**(fields | changes))


def test_only_collectives_that_stop_the_chip_are_exposed():
    near, far = collective(), collective(crosses_slices=True)
    hidden = collective(overlaps=True)
    expected = 0.5e9 / CHIP.link_bandwidth + 0.5e9 / CHIP.network_bandwidth
    assert exposed_seconds([near, far, hidden], CHIP) == pytest.approx(expected)
    # Eight GPUs of a host share the way to the next one.
    shared = collective(crosses_slices=True, lanes=8)
    assert exposed_seconds([shared], CHIP) == pytest.approx(0.5e9 / 8 / CHIP.network_bandwidth)


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("", "unnamed"),
        ("jit(s)/jvp(T)/image_encoder/stages_0/blocks_3/attn/qkv/dot_general",
         "image, stage 0: attention, linear layers"),
        ("jit(s)/transpose(jvp(T))/image_encoder/stages_0/blocks_3/attn/exp",
         "image, stage 0: attention, core"),
        ("jit(s)/jvp(T)/image_encoder/stages_2/blocks_1/mlp/erf", "image, stage 2: MLP"),
        ("jit(s)/jvp(T)/image_encoder/stages_1/downsample/assign/div", "image: grouping"),
        ("jit(s)/jvp(T)/image_encoder/stages_1/group_projector/norm/mul", "image: grouping"),
        ("jit(s)/jvp(T)/image_encoder/patch_embed/proj/dot_general", "image: patch embedding"),
        ("jit(s)/jvp(T)/text_encoder/token_embedding/gather", "text: embedding"),
        ("jit(s)/jvp(T)/image_projector/norm/reduce_sum", "projectors"),
        ("jit(s)/jvp()/shard_map/dot_general", "losses"),
        ("jit(s)/random_erasing/select_n", "input"),
        ("jit(s)/mul", "optimizer and norms"),
    ],
)  # fmt: skip
def test_part_of(op_name, expected):
    assert part_of(op_name) == expected
