"""Import and export of weights: our checkpoints and exports, Hugging Face, original `.pth`."""

from groupvit_jax.interop.initialise import InitialisationReport, initialise_from
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.interop.towers.text import initialise_text_from
from groupvit_jax.interop.towers.vit import initialise_image_from

# By the configuration field that names the weights.
INITIALISERS = {
    "init_from": initialise_from,
    "image_init_from": initialise_image_from,
    "text_init_from": initialise_text_from,
}

__all__ = ["INITIALISERS", "InitialisationReport", "Pretrained", "initialise_from"]
__all__ += ["initialise_image_from", "initialise_text_from", "load_pretrained"]
