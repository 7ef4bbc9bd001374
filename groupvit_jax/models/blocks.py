"""A stack of transformer blocks: in a loop or a scan, with or without rematerialisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from groupvit_jax.models.layers import AttentionFn, attend
from groupvit_jax.typing import Array, Bool, Float

# What the backward pass keeps of each block: None keeps all that it needs.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class Execution(NamedTuple):
    """How a stack of blocks is computed; the values are the same.

    Attributes:
      scan_layers: compiles one block, which runs over the stacked parameters of all blocks.
      remat: what the backward pass computes anew: "none", "dots" (all but the outputs of the linear
        layers) or "blocks" (all but the inputs of the blocks).
      constrain: what the tokens that enter a block go through; for their sharding. Without it,
        the tokens in a loop over blocks may be sharded like the parameters, and be summed over
        devices in every block, where it is parameters that should travel.
      attention_fn: computes the attention of an image's tokens.
    """

    scan_layers: bool = False
    remat: str = "none"
    constrain: Callable[[Array], Array] = lambda x: x
    attention_fn: AttentionFn = attend


def with_execution(model: Any, **changes: Any) -> Any:
    """Returns the model with towers whose `Execution` has these fields."""
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
    """Runs the blocks `blocks_0`, `blocks_1`, ... of a module.

    The parameters are the same tree whatever the execution, so weights, checkpoints and sharding
    rules don't know of it.

    Args:
      module: the module, in its compact method.
      block: an unbound block (`parent=None`), called as a `TransformerBlock`.
      depth: number of blocks.
      x: the tokens.
      mask: see `SelfAttention`.
      branch_scales: of each block's branches; see `TransformerBlock`.
      execution: how.
    """
    if depth == 0:
        return x
    if module.is_initializing():
        for i in range(depth):
            x = block.clone(parent=module, name=f"blocks_{i}")(x, mask)
        return x

    def apply(x: Array, inputs: Any) -> tuple[Any, None]:
        params, *scales = inputs
        return block.apply({"params": params}, execution.constrain(x), mask, *scales), None

    if execution.remat != "none":
        policy = REMAT[execution.remat]
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=not execution.scan_layers)
    scales = () if branch_scales is None else (branch_scales,)
    params = [module.variables["params"][f"blocks_{i}"] for i in range(depth)]
    if execution.scan_layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        return jax.lax.scan(apply, x, (stacked, *scales))[0]
    for i in range(depth):
        x, _ = apply(x, (params[i], *(each[i] for each in scales)))
    return x
