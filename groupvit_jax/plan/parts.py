"""Parts of the model by the names of JAX's functions and modules in a compiled program."""

import re

UNNAMED = "unnamed"

_STAGE = re.compile(r"stages_(\d+)")
_NOISE = re.compile(r"threefry|random_bits|gumbel|bernoulli|random_")
# Parts of a transformer block, in the order in which they are looked for.
_BLOCK = (
    (re.compile(r"pallas_call"), "Pallas kernels"),
    (re.compile(r"/attn/(qkv|query|key|value|proj)"), "attention, linear layers"),
    (re.compile(r"attn|attention"), "attention, core"),
    (re.compile(r"/mlp"), "MLP"),
    (re.compile(r"norm"), "norms"),
    (_NOISE, "noise"),
    (re.compile(r"embedding|gather|scatter"), "embedding"),
    # A scan over layers stacks what its backward pass needs.
    (re.compile(r"while/body/(closed_call/)?dynamic_(update_)?slice"), "residuals of the scan"),
)


def part_of(op_name: str) -> str:
    """Return the part of the training step that an instruction belongs to.

    Args:
      op_name: path of JAX functions and Flax modules, as XLA keeps it; may be empty.
    """
    if not op_name:
        return UNNAMED
    if re.search(r"random_erasing|normalize", op_name) and "encoder" not in op_name:
        return "input"
    if "group_projector" not in op_name and re.search(r"projector", op_name):
        return "projectors"
    if "image_encoder" in op_name or _STAGE.search(op_name):
        return _image_part(op_name)
    if "text_encoder" in op_name:
        return f"text: {_block_part(op_name)}"
    if _NOISE.search(op_name):
        return "noise"
    if "TwoTower" in op_name:
        return "model, other"
    # The optimizer follows differentiation; all that is differentiated outside the model is loss.
    return "losses" if re.search(r"jvp|contrastive|loss", op_name) else "optimizer and norms"


def _image_part(op_name: str) -> str:
    if "patch_embed" in op_name:
        return "image: patch embedding"
    if re.search(r"downsample|group_projector", op_name):
        return "image: grouping"
    stage = _STAGE.search(op_name)
    where = f"image, stage {stage[1]}" if stage else "image"
    return f"{where}: {_block_part(op_name)}"


def _block_part(op_name: str) -> str:
    return next((name for pattern, name in _BLOCK if pattern.search(op_name)), "other")
