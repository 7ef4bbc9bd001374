"""GroupViT: segmentation that emerges from image-caption pairs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupvit_jax.eval.predictions import evaluate
    from groupvit_jax.segmenter import Segmenter

__all__ = ["Segmenter", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import what is exported when it is first used, so that the package itself stays light."""
    if name == "Segmenter":
        from groupvit_jax.segmenter import Segmenter

        return Segmenter
    if name == "evaluate":
        from groupvit_jax.eval.predictions import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
