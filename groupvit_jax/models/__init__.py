"""Pure functional Flax modules: arrays in, arrays out."""

from groupvit_jax.models.two_tower import TwoTower, build_model

__all__ = ["TwoTower", "build_model"]
