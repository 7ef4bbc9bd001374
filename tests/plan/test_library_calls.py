"""FLOPs and bytes of calls into cuBLAS and cuDNN, as XLA's GPU compiler writes them."""

import pytest

from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.program import parse_program

GEMM = """{"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["1","2"],"rhs_contracting_dimensions":["0","1"]}}}"""
ATTENTION = """{"cudnn_fmha_backend_config": {"fmha_scale": 0.125, "intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["2", "3", "10", "12"], "tuple_shapes": []}}}"""
TEXT = f"""\
HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[20,4,8], w: bf16[4,8,16]) -> bf16[20,16] {{
  %x = bf16[20,4,8]{{2,1,0}} parameter(0)
  %w = bf16[4,8,16]{{2,1,0}} parameter(1)
  %q = bf16[2,10,3,64]{{3,2,1,0}} parameter(2)
  %k = bf16[2,12,3,64]{{3,2,1,0}} parameter(3)
  %image = f32[2,3,16,16]{{3,2,1,0}} parameter(4)
  %patches = f32[5,3,4,4]{{3,2,1,0}} parameter(5)
  %gemm = (bf16[20,16]{{1,0}}, s8[4194304]{{0}}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={GEMM}
  %forward = (bf16[2,10,3,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={ATTENTION}
  %backward = (bf16[2,10,3,64]{{3,2,1,0}}, u8[9]{{0}}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={ATTENTION}
  %convolution = (f32[2,5,4,4]{{3,2,1,0}}, u8[9]{{0}}) custom-call(%image, %patches), \
custom_call_target="__cudnn$convForward", window={{size=4x4 stride=4x4}}, dim_labels=bf01_oi01->bf01
  %to_filter = (f32[5,3,4,4]{{3,2,1,0}}, u8[9]{{0}}) custom-call(%image, %maps), \
custom_call_target="__cudnn$convBackwardFilter", window={{size=4x4 stride=4x4}}, \
dim_labels=bf01_oi01->bf01
  %maps = f32[2,5,4,4]{{3,2,1,0}} get-tuple-element(%convolution), index=0
  ROOT %out = bf16[20,16]{{1,0}} get-tuple-element(%gemm), index=0
}}
"""
PAIRS = 2 * 3 * 10 * 12 * 64
CONVOLUTION = 2 * (2 * 5 * 4 * 4) * (3 * 4 * 4)


@pytest.mark.parametrize(
    ("name", "flops", "num_bytes"),
    [
        ("gemm", 2 * 20 * 16 * 32, 2 * (20 * 32 + 32 * 16 + 20 * 16)),  # without the workspace
        ("forward", 2 * 2 * PAIRS, 2 * 64 * 2 * 3 * (10 + 12 + 12 + 10)),
        ("backward", 5 * 2 * PAIRS, 2 * 64 * 2 * 3 * (10 + 12 + 12 + 10)),
        ("convolution", CONVOLUTION, 4 * (2 * 3 * 256 + 5 * 48 + 2 * 5 * 16)),
        ("to_filter", CONVOLUTION, 4 * (2 * 3 * 256 + 5 * 48 + 2 * 5 * 16)),
    ],
)
def test_library_call(name, flops, num_bytes):
    found = {cost.name: cost for cost in instruction_costs(parse_program(TEXT))}
    assert (found[name].flops, found[name].num_bytes) == (flops, num_bytes)
