"""`config.loss` as values."""

import dataclasses

from groupvit_jax import losses, parallel


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The losses of a step; the fields and defaults are those of `config.loss` in configs/base.py.

    Attributes:
      kind: one of `losses.KINDS`.
      global_weight: weight of the loss of images and captions.
      multi_label_weight: weight of the loss of images and prompts.
      local_weight: weight of the alignment of segments with words; 0 leaves it out.
      local_words: one of `losses.LOCAL_WORDS`.
      local_seekers: one of `losses.LOCAL_SEEKERS`.
      mixed_weight: weight of the patches of mixed images; 0 leaves them out.
      mixed_cell: side of the squares that are mixed, in patches.
      distill_weight: weight of the self-distillation of crops; 0 leaves it out.
      pooled_weight: weight of the loss of pooled segments and words; 0 leaves it out.
      pooled_segments: number of segments that a channel is pooled over.
      superpixel_weight: weight of the consistency with superpixels; 0 leaves it out.
      noun_bank_weight: weight of the loss of images and the noun bank; 0 leaves it out.
      identical_texts: one of `losses.IDENTICAL_TEXTS`.
      exchange: one of `losses.EXCHANGES`.
      block_size: examples that a device compares its own with at once.
    """

    kind: str = "softmax"
    global_weight: float = 1.0
    multi_label_weight: float = 1.0
    local_weight: float = 0.0
    local_words: str = "tokens"
    local_seekers: str = "both"
    mixed_weight: float = 0.0
    mixed_cell: int = 2
    distill_weight: float = 0.0
    pooled_weight: float = 0.0
    pooled_segments: int = 5
    superpixel_weight: float = 0.0
    noun_bank_weight: float = 0.0
    identical_texts: str = "negatives"
    exchange: str = "all_gather"
    block_size: int = 256

    @property
    def pairing(self) -> losses.Pairing:
        """How and where embeddings are compared."""
        return losses.Pairing(self.kind, parallel.BATCH_AXES, self.exchange, self.block_size)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the `Features.parts` that the losses need."""
        tokens = ("tokens",) if self.local_words == "tokens" else ()
        names = ("segments", *tokens) if self.local_weight or self.pooled_weight else ()
        names += ("mixed", "maps") if self.mixed_weight else ()
        names += ("crop",) if self.distill_weight else ()
        return (*names, "patch_groups") if self.superpixel_weight else names
