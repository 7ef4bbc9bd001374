import importlib.util

import pytest

from groupvit_jax.plan.kernel_schedule import kernel_cycles, schedule_cycles
from groupvit_jax.plan.program import parse_program

# A grid of 4 x 2 with a pipeline of two more rounds; sums are set to zero in its first program, and
# a loop of 13 rounds is inside. Addresses and markers as libtpu writes them.
SCHEDULE = """\
= control target key start
LB: loop body
= control target key end
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %p2_p8 = scmp.eq.s32.totalorder %s3, 0  ;;  %p3_p9 = scmp.eq.s32.totalorder %s4, 0 }
   0x2   : > { %dma = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s6
base_bounds: (4, 256, 3)
iteration_bounds: (4, 2)
strides: (1, 32, 3)
 */ }
   0x3   : > { %p5_p1 = pnand %p2_p8, %p3_p9 }
   0x4   : > { %9 = sbr.rel (%p5_p1) target = $region40 }
   0x5   :  {}
   0x6   : > { %v1 = vst 0 }
   0x7 PF: > { %s7 = smov 0 } /* Start/End empty region 40 :: Start region 91 */
   0x8 LB: >> { %v2 = vadd.f32 %v1, %v1 }
   0x9   : > { %v3 = vmov %v2 }
   0xa   : >> { %p7_p1 = scmp.ge.s32.totalorder %s5, 13 /* loop exit test */ }
   0xb   : >> { %10 = sbr.rel (!%p7_p1) target = $region96 }
   0xc   : > { %p8_p2 = scmp.ge.s32.totalorder %s8, 10 /* loop exit test */ }
   0xd   : > { %11 = sbr.rel (!%p8_p2) target = $region107 }
   0xe   :  { %s9 = smov 0 }
"""


def test_bundles_count_as_often_as_they_run():
    inner = 8 * 13 * 4
    first_program_only = 2
    assert schedule_cycles(SCHEDULE) == 2 + 8 * (4 + 1 + 2) + first_program_only + inner


def test_a_region_of_several_programs_counts_in_each():
    # Only one of the grid's two indices is compared.
    text = SCHEDULE.replace("pnand %p2_p8, %p3_p9", "pneg %p2_p8")
    assert schedule_cycles(text) == schedule_cycles(SCHEDULE) + 7 * 2


def test_a_region_that_is_left_out_once():
    text = SCHEDULE.replace("pnand %p2_p8, %p3_p9", "pand %p2_p8, %p3_p9")
    assert schedule_cycles(text) == schedule_cycles(SCHEDULE) + 7 * 2


def test_without_kernels_nothing_is_compiled():
    text = "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2] parameter(0)\n}\n"
    assert kernel_cycles(parse_program(text), "v5e:1x1") == {}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)
def test_kernels_of_a_program_for_tpus():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import pallas as pl
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from groupvit_jax.plan.hardware import find_topology

    def kernel(x, w, out):
        product = jnp.dot(x[0], w[...], preferred_element_type=jnp.float32)
        out[0] = jnp.tanh(product).astype(out.dtype)

    def apply(x, w):
        return pl.pallas_call(
            kernel,
            grid=x.shape[:1],
            in_specs=[
                pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0)),
                pl.BlockSpec(w.shape, lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0)),
            out_shape=x,
        )(x, w)

    device = find_topology("v5e:1x1").devices[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("chip",)), PartitionSpec())

    def cycles(batch_size):
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
            for shape in ((batch_size, 256, 384), (384, 384))
        ]
        compiled = jax.jit(lambda x, w: apply(apply(x, w), w)).lower(*shapes).compile()
        return kernel_cycles(parse_program(compiled.as_text()), "v5e:1x1")

    few, many = cycles(8), cycles(40)
    assert len(few) == len(many) == 2  # the same kernel twice
    (first,), (second,) = set(few.values()), set(many.values())
    a_program = (second - first) / 32
    # Four matrix units of 128 x 128 need 256 x 3 x 3 / 4 = 576 cycles a program at their peak; the
    # schedule, which doesn't wait for them, is a little shorter.
    assert 0.9 * 576 <= a_program < 2 * 576
    assert first < 8.5 * a_program
