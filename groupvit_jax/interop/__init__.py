"""Weights in and out: our checkpoints and exports, Hugging Face's and the original's."""

from groupvit_jax.interop.bert import initialise_text_from
from groupvit_jax.interop.initialise import InitialisationReport, initialise_from
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained

__all__ = ["InitialisationReport", "Pretrained", "initialise_from", "initialise_text_from"]
__all__ += ["load_pretrained"]
