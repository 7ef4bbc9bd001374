"""Runs every test on 8 host devices and checks shape annotations at run time."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jaxtyping

jaxtyping.install_import_hook("groupvit_jax", "beartype.beartype")
