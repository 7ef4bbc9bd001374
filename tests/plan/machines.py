"""Machines of host devices, as plans see them."""

from groupvit_jax.plan.chips import TPUS
from groupvit_jax.plan.hardware import Topology
from tests.devices import first_devices


def host(num_devices, num_slices=1):
    """Returns a topology that the tests' own devices stand for."""
    devices = tuple(first_devices(num_devices))
    return Topology("host", num_slices, TPUS["v5e"], num_devices, devices)
