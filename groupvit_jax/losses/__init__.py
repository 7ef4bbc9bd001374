"""Losses over the global batch: arrays in, scalars and metrics out."""

from groupvit_jax.losses.contrastive import contrastive_losses
from groupvit_jax.losses.local import local_alignment_loss
from groupvit_jax.losses.pairwise import EXCHANGES, KINDS, Comparison, clipped_scale, l2_normalize
from groupvit_jax.losses.segmentation import mixture_log_likelihood, segmentation_loss

__all__ = ["EXCHANGES", "KINDS", "Comparison", "clipped_scale", "contrastive_losses"]
__all__ += ["l2_normalize", "local_alignment_loss", "mixture_log_likelihood", "segmentation_loss"]
