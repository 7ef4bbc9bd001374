"""A stack of transformer blocks: in a loop or a scan, with or without rematerialisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from groupvit_jax.models.kernels.stacks import StackFn
from groupvit_jax.models.layers import AttentionFn, attend
from groupvit_jax.typing import Array, Bool, Float

# Policies of what the forward pass stores of each block; None stores all that backward needs.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class Execution(NamedTuple):
    """How a stack of blocks is computed; its values don't change.

    Attributes:
      scan_layers: compile one block and scan it over the stacked parameters of all blocks.
      remat: recomputed in the backward pass: "none", "dots" (all but the outputs of linear layers)
        or "blocks" (all but the inputs of the blocks).
      constrain: applied to the tokens that enter a block, for their sharding. Without it, XLA may
        shard the tokens of a scan like the parameters and sum activations over devices in every
        block, instead of gathering the parameters.
      attention_fn: computes the attention of an image's tokens.
      stack_fn: computes whole stacks by kernels, or returns None where they don't fit and the other
        fields count; see `kernels.stacks`.
    """

    scan_layers: bool = False
    remat: str = "none"
    constrain: Callable[[Array], Array] = lambda x: x
    attention_fn: AttentionFn = attend
    stack_fn: StackFn | None = None


def with_execution(model: Any, **changes: Any) -> Any:
    """Return the model with these fields changed in the `Execution` of its towers."""
    names = [name for name in ("image_encoder", "text_encoder") if hasattr(model, name)]

    def changed(tower: Any) -> Any:
        return tower.clone(execution=tower.execution._replace(**changes))

    return model.clone(**{name: changed(getattr(model, name)) for name in names})


def run_blocks(
    module: nn.Module,
    block: nn.Module,
    depth: int,
    x: Float[Array, "B S C"],
    mask: Bool[Array, "B S S"] | None = None,
    branch_scales: Float[Array, "D 2 B"] | None = None,
    *,
    execution: Execution,
) -> Float[Array, "B S C"]:
    """Run the blocks `blocks_0`, `blocks_1`, ... of a module.

    The parameters are the same tree for every execution, also with `scan_layers`, which stacks them
    in the step: weights, checkpoints and sharding rules don't depend on it.

    Args:
      module: the module, in its compact method.
      block: an unbound block (`parent=None`), called like a `TransformerBlock`.
      depth: number of blocks.
      x: the tokens.
      mask: see `SelfAttention`.
      branch_scales: factors of each block's branches; see `TransformerBlock`.
      execution: how the blocks are computed.
    """
    if depth == 0:
        return x
    # A plain loop whatever the execution: the parameters' names must not depend on it.
    if module.is_initializing():
        for i in range(depth):
            x = block.clone(parent=module, name=f"blocks_{i}")(x, mask)
        return x

    def apply(x: Array, inputs: Any) -> tuple[Any, None]:
        params, *scales = inputs
        return block.apply({"params": params}, execution.constrain(x), mask, *scales), None

    if execution.remat != "none":
        policy = REMAT[execution.remat]
        # In a loop XLA would merge the recomputation with the forward pass and undo it; a scan's
        # boundaries already prevent that.
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=not execution.scan_layers)
    scales = () if branch_scales is None else (branch_scales,)
    params = [module.variables["params"][f"blocks_{i}"] for i in range(depth)]
    if execution.stack_fn is not None:
        fused = execution.stack_fn(block, params, execution.constrain(x), mask, branch_scales)
        if fused is not None:
            return fused
    if execution.scan_layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)  # [D, ...] each
        return jax.lax.scan(apply, x, (stacked, *scales))[0]
    for i in range(depth):
        x, _ = apply(x, (params[i], *(each[i] for each in scales)))
    return x
