import pytest

from groupvit_jax.plan.needs import SHARDS, needs


def test_hosts_cores_and_storage():
    found = needs(
        hosts=4,
        host_cores=10.0,
        images_per_second=8000.0,
        checkpoint_bytes=6e8,
        checkpoint_seconds=120.0,
        chip_hours=100.0,
        price_per_chip_hour=1.2,
    )
    assert found.images_per_second == 2000
    assert found.cost == pytest.approx(120.0)
    cores = [2000 / per_core for per_core, _ in SHARDS.values()]
    assert [i.cores for i in found.inputs] == pytest.approx(cores)
    stored = [8000 * num_bytes for _, num_bytes in SHARDS.values()]
    assert [i.bytes_per_second for i in found.inputs] == pytest.approx(stored)
    assert found.too_slow == ()
