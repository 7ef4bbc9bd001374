"""Losses over the global batch: arrays in, scalars and metrics out."""

from groupvit_jax.losses.contrastive import IDENTICAL_TEXTS, contrastive_losses
from groupvit_jax.losses.distillation import distillation_loss
from groupvit_jax.losses.local import LOCAL_SEEKERS, LOCAL_WORDS, local_alignment_loss
from groupvit_jax.losses.mixed import mixed_patch_loss
from groupvit_jax.losses.noun_bank import noun_bank_loss
from groupvit_jax.losses.pairwise import EXCHANGES, KINDS, Pairing, clipped_scale, l2_normalize
from groupvit_jax.losses.pooled import pooled_loss
from groupvit_jax.losses.segmentation import mixture_log_likelihood, segmentation_loss
from groupvit_jax.losses.superpixels import superpixel_loss

__all__ = [
    "EXCHANGES",
    "IDENTICAL_TEXTS",
    "KINDS",
    "LOCAL_SEEKERS",
    "LOCAL_WORDS",
    "Pairing",
    "clipped_scale",
]
__all__ += ["contrastive_losses", "distillation_loss", "l2_normalize", "local_alignment_loss"]
__all__ += ["mixed_patch_loss", "mixture_log_likelihood", "pooled_loss", "segmentation_loss"]
__all__ += ["noun_bank_loss", "superpixel_loss"]
