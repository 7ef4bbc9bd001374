"""Stacks of transformer blocks as Pallas kernels for TPUs: a block of a few rows a program.

The blocks of a ViT this narrow fit a TPU's vector memory whole, weights included (3.5 MB of 128 in
bfloat16 at width 384). So one program of the grid reads its rows once, computes the whole block and
writes its rows once: no logits, no hidden layer and no normalised tokens go through HBM, which is
where XLA's own program spends two thirds of its time. The weights are fetched in the first program
and stay; the backward kernel adds up their gradients in vector memory over all programs, in
float32, and writes them once.

A stack runs as a scan over its blocks, for the compiler compiles every kernel call on its own:
about 15 CPU seconds a block, forward and backward. Unlike XLA's scans this one costs nothing: the
kernels read the stacked weights and saved inputs in place, by the block's number, and nothing but
the blocks' inputs is saved.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from groupvit_jax.models.kernels import block_math
from groupvit_jax.models.kernels.block_math import Block, Branches, Weights
from groupvit_jax.typing import Array

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Stack:
    """How a stack of blocks is computed.

    Attributes:
      block: shape of the blocks.
      rows: of each program; divides the number of rows.
      vmem_bytes: of vector memory that a kernel may take.
      interpret: runs on any device, by Pallas's interpreter; for tests.
    """

    block: Block
    rows: int
    vmem_bytes: int
    interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_stack(
    stack: Stack, x: Array, weights: Weights, mask: Array | None, scales: Array | None
) -> Array:
    """Return the output of the stack's last block.

    Args:
      stack: how.
      x: the tokens of all rows [B * T, C], T = `stack.block.row_length`.
      weights: a `TransformerBlock`'s tree, of all D blocks: matrices [D, C, O] in the type of the
        computation, vectors [D, 1, C] in float32.
      mask: [B, T, T] int8: 1 where a token (second axis) sees another; None: all see all.
      scales: of the branches [D, 2, B], float32; None for 1. They get no gradient.
    """
    depth = _depth(weights)

    def block(x: Array, layer: Array) -> tuple[Array, None]:
        return forward(stack, layer, x, weights, mask, scales), None

    return jax.lax.scan(block, x, jnp.arange(depth))[0]


def _run_and_keep(
    stack: Stack, x: Array, weights: Weights, mask: Array | None, scales: Array | None
) -> tuple[Array, Any]:
    def block(x: Array, layer: Array) -> tuple[Array, Array]:
        return forward(stack, layer, x, weights, mask, scales), x

    y, inputs = jax.lax.scan(block, x, jnp.arange(_depth(weights)))  # inputs: [D, B * T, C]
    return y, (inputs, weights, mask, scales)


def _run_backward(stack: Stack, kept: Any, gradient: Array) -> tuple[Any, ...]:
    inputs, weights, mask, scales = kept

    def block(gradient: Array, layer: Array) -> tuple[Array, Weights]:
        return backward(stack, layer, inputs, gradient, weights, mask, scales)

    gradient, gradients = jax.lax.scan(block, gradient, jnp.arange(_depth(weights)), reverse=True)
    # An int8 mask has no gradient; the scales' zeros are never used, since `stacks` stops them.
    return gradient, gradients, None, jax.tree.map(jnp.zeros_like, scales)


run_stack.defvjp(_run_and_keep, _run_backward)


def _depth(weights: Weights) -> int:
    return jax.tree.leaves(weights)[0].shape[0]


def forward(
    stack: Stack,
    layer: Array,
    x: Array,
    weights: Weights,
    mask: Array | None,
    scales: Array | None,
) -> Array:
    """Return the output of block number `layer`."""

    def kernel(branches: Branches | None, x: Any, mask: Any, weights: Weights, out: Any) -> None:
        y = block_math.forward(stack.block, x[...], weights, _rows(mask), branches)
        out[...] = y.astype(out.dtype)

    tokens = _tokens_spec(stack, x)
    inputs = (x, _optional(mask), weights)
    specs = (tokens, _mask_spec(stack, mask), _weight_specs(weights))
    return _call(stack, "block_forward", kernel, layer, scales, inputs, specs, _shape(x), tokens)


def backward(
    stack: Stack,
    layer: Array,
    inputs: Array,
    gradient: Array,
    weights: Weights,
    mask: Array | None,
    scales: Array | None,
) -> tuple[Array, Weights]:
    """Return the gradients of the input and of the weights of block number `layer`.

    Args:
      stack: how.
      layer: number of the block.
      inputs: of all blocks, [D, B * T, C].
      gradient: of the block's output [B * T, C].
      weights: of all blocks.
      mask: see `run_stack`.
      scales: likewise.
    """
    tokens = _tokens_spec(stack, gradient)
    # `None` drops the axis of blocks: the kernel sees one block's tokens, read in place.
    own_input = pl.BlockSpec(
        (None, *(tokens.block_shape or ())), lambda program, layer, *_: (layer[0], program, 0)
    )
    of_one = jax.tree.map(lambda w: _shape(w, of_one=True), weights)
    # The same output block for every program, so that it goes to HBM once, after the last.
    whole = jax.tree.map(lambda w: pl.BlockSpec(w.shape, lambda *_: (0, 0)), of_one)
    return _call(
        stack,
        "block_backward",
        functools.partial(_backward_kernel, stack),
        layer,
        scales,
        inputs=(inputs, gradient, _optional(mask), weights),
        specs=(own_input, tokens, _mask_spec(stack, mask), _weight_specs(weights)),
        out_shape=(_shape(gradient), of_one),
        out_specs=(tokens, whole),
        # In float32: the outputs have the weights' type, in which a long sum loses small shares.
        scratch=(jax.tree.map(lambda w: pltpu.VMEM(w.shape, F32), of_one),),
    )


def _backward_kernel(
    stack: Stack,
    branches: Branches | None,
    x: Any,
    gradient: Any,
    mask: Any,
    weights: Weights,
    d_x: Any,
    d_weights: Weights,
    sums: Weights,
) -> None:
    """Compute a program's share; the sums stay in vector memory from the first to the last one.

    Programs of a TPU core run one after another, so no two add at once.
    """
    program, last = pl.program_id(0), pl.num_programs(0) - 1

    # Scratch memory isn't cleared between kernels.
    @pl.when(program == 0)
    def _() -> None:
        for total in jax.tree.leaves(sums):
            total[...] = jnp.zeros_like(total)

    d_input = block_math.backward(
        stack.block, x[...], gradient[...], weights, sums, _rows(mask), branches
    )
    d_x[...] = d_input.astype(d_x.dtype)

    @pl.when(program == last)
    def _() -> None:
        for out, total in zip(jax.tree.leaves(d_weights), jax.tree.leaves(sums), strict=True):
            out[...] = total[...].astype(out.dtype)


def _call(
    stack: Stack,
    name: str,
    kernel: Callable[..., None],
    layer: Array,
    scales: Array | None,
    inputs: Any,
    specs: Any,
    out_shape: Any,
    out_specs: Any,
    scratch: Any = (),
) -> Any:
    """Run `kernel(branches, *input refs, *output refs, *scratch refs)` over all rows."""
    num_rows = jax.tree.leaves(out_shape)[0].shape[0] // stack.block.row_length

    def program(layer: Any, *refs: Any) -> None:
        branches = None
        if scales is not None:
            factors, refs = refs[0], refs[1:]
            # Into the flattened [D, 2, rows]: branch b of row r is `b * num_rows + r` further on.
            first = layer[0] * 2 * num_rows + pl.program_id(0) * stack.rows
            branches = Branches(
                *([factors[first + b * num_rows + r] for r in range(stack.rows)] for b in (0, 1))
            )
        kernel(branches, *refs)

    # What decides where to read, and what is multiplied as a scalar, lies in scalar memory.
    scalars = [layer[None]] + ([] if scales is None else [scales.reshape(-1)])
    results = pl.pallas_call(
        program,
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            # Without a remainder: `choose_stack` offers divisors of the number of rows only.
            grid=(num_rows // stack.rows,),
            in_specs=specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            # In turn: the programs share the sums of gradients.
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=stack.vmem_bytes,
        ),
        cost_estimate=_cost(stack, name, inputs, out_shape),
        interpret=stack.interpret,
        name=name,
    )(*scalars, *inputs)
    # XLA would fuse into the kernel what writes its results into the scan's stacks, and give the
    # fusion 16 MiB of vector memory, the default of its own fusions, instead of `vmem_bytes`: the
    # whole step then fails to compile.
    return jax.lax.optimization_barrier(results)


def _cost(stack: Stack, name: str, inputs: Any, out_shape: Any) -> pl.CostEstimate:
    """Return the work of a call: what XLA schedules by, and `launch.plan` counts."""
    block, weights = stack.block, inputs[-1]
    num_tokens, width = jax.tree.leaves(out_shape)[0].shape
    # Vectors are [D, 1, C]; their additions are negligible.
    matrices = [leaf for leaf in jax.tree.leaves(weights) if leaf.shape[1] > 1]
    products = sum(math.prod(leaf.shape[1:]) for leaf in matrices)
    # Forward: each matrix, the logits and the average. Backward: these anew, and two for each.
    passes = 1 if name == "block_forward" else 3
    # Multiply-adds of one token over all heads: T x C for the logits, as many for the average.
    pairs = 2 * block.row_length * width
    hidden = weights["mlp"]["fc1"]["kernel"].shape[-1]
    # Of what is stacked, one block is read.
    read = [(leaf, leaf.ndim == 3) for leaf in jax.tree.leaves((inputs[0], weights))]
    read += [(leaf, False) for leaf in jax.tree.leaves((inputs[1:-1], out_shape))]
    num_bytes = sum(
        math.prod(leaf.shape[is_stacked:]) * leaf.dtype.itemsize for leaf, is_stacked in read
    )
    return pl.CostEstimate(
        # A multiply-add is two operations.
        flops=2 * passes * num_tokens * (products + pairs),
        # One a hidden unit for the activation, one a logit for the softmax.
        transcendentals=num_tokens * (hidden + block.num_heads * block.row_length),
        bytes_accessed=num_bytes,
    )


def _shape(x: Array, *, of_one: bool = False) -> jax.ShapeDtypeStruct:
    """Return the shape of `x`, or of one of those stacked in it, varying over devices like `x`."""
    # Traced, for the constructor takes the axes over which arrays vary by a name that changes
    # between versions of JAX.
    return jax.eval_shape(lambda x: x[0] if of_one else x, x)


def _tokens_spec(stack: Stack, x: Array) -> pl.BlockSpec:
    tokens = stack.rows * stack.block.row_length
    # An index map gets the grid's index first, then the prefetched scalars.
    return pl.BlockSpec((tokens, x.shape[-1]), lambda program, *_: (program, 0))


def _optional(mask: Array | None) -> Any:
    # An empty tree adds no operand, so one kernel signature serves both cases.
    return () if mask is None else mask


def _mask_spec(stack: Stack, mask: Array | None) -> Any:
    if mask is None:
        return ()
    return pl.BlockSpec((stack.rows, *mask.shape[1:]), lambda program, *_: (program, 0, 0))


def _rows(mask: Any) -> list[Array] | None:
    """Return the mask of each of a program's rows."""
    if isinstance(mask, tuple):
        return None
    # The vector unit compares 32 bits.
    return [mask[row].astype(jnp.int32) != 0 for row in range(mask.shape[0])]


def _weight_specs(weights: Weights) -> Any:
    """Of the weights of block number `layer`: whole, and once in memory, for they never change."""

    def spec(stacked: Array) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, *stacked.shape[1:]),
            lambda program, layer, *_: (layer[0], 0, 0),
            pipeline_mode=pl.Buffered(1),
        )

    return jax.tree.map(spec, weights)
