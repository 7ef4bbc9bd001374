"""The type in which gradients are summed over the devices."""

import importlib.util
import math
import re

import jax
import pytest

from groupvit_jax.plan.compiling import compile_step, lower_step
from groupvit_jax.plan.hardware import find_topology
from tests.plan.machines import host
from tests.train.test_step import tiny_config
from tests.train.test_tasks import masks_config

CONFIGS = {"contrastive": tiny_config, "segmentation": masks_config}
# Operands and results of a sum written out in StableHLO; XLA adds those of its own later.
SUM = re.compile(r'"stablehlo.all_reduce".*?\}\) : \((.*?)\) ->', re.DOTALL)


def in_bfloat16(task, reduce_dtype):
    config = CONFIGS[task]()
    config.model.dtype = "bfloat16"
    config.parallel.reduce_dtype = reduce_dtype
    return config


def num_values(shape):
    return math.prod(map(int, re.findall(r"\d+(?=x)", shape)))


@pytest.mark.parametrize("task", CONFIGS)
def test_float32_sums_every_gradient_of_the_encoders_in_float32(task):
    lowered, _, state, _ = lower_step(in_bfloat16(task, "float32"), host(8))
    text = lowered.as_text()
    summed = [shape for found in SUM.findall(text) for shape in re.findall(r"tensor<(.*?)>", found)]
    assert "bf16" in text  # the computation
    assert not [shape for shape in summed if "bf16" in shape]
    encoders = {k: v for k, v in state.params.items() if k.endswith(("encoder", "head"))}
    size = sum(leaf.size for leaf in jax.tree.leaves(encoders))
    assert size <= sum(map(num_values, summed)) <= 1.1 * size


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)
@pytest.mark.parametrize(("reduce_dtype", "expected"), [("auto", "bf16"), ("float32", "f32")])
def test_sums_of_the_compiled_step(reduce_dtype, expected):
    """XLA may read bfloat16, where that is what was computed; what counts is the sum's type."""
    config = in_bfloat16("contrastive", reduce_dtype)
    config.model.kernels = "plain"
    step = compile_step(config, find_topology("v5e:2x2"))
    sums = re.findall(r"= (.*?) all-reduce(?:-start)?\(", step.text)
    sizes = {"bf16": 0, "f32": 0, "s32": 0}
    for dtype, shape in re.findall(r"(bf16|f32|s32)\[([\d,]*)\]", " ".join(sums)):
        sizes[dtype] += math.prod(map(int, shape.split(","))) if shape else 1
    assert sizes[expected] >= 0.9 * step.memory.parameters / 4
    assert reduce_dtype == "auto" or not sizes["bf16"]
