"""Machines of host devices, as plans see them."""

import jax

from groupvit_jax.plan.hardware import CHIPS, Topology


def host(num_devices, num_slices=1):
    """Returns a topology that the tests' own devices stand for."""
    devices = tuple(jax.devices()[:num_devices])
    return Topology("host", num_slices, CHIPS["v5e"], num_devices, devices)
