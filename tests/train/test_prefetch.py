import threading
import time

import jax
import numpy as np
import pytest

from groupvit_jax.train.prefetch import DevicePrefetcher


def batch(number):
    return {"number": np.int32(number)}


def never():
    return False


def test_keeps_the_order_and_reads_only_a_few_ahead():
    read = []

    def batches():
        for i in range(100):
            read.append(i)
            yield batch(i)

    prefetcher = DevicePrefetcher(batches(), jax.device_put, size=3)
    got = [int(prefetcher.next_batch(never)["number"]) for _ in range(5)]
    assert got == [0, 1, 2, 3, 4]
    time.sleep(0.2)
    assert 5 <= len(read) <= 5 + 3 + 1
    prefetcher.close()


def test_an_error_on_the_way_to_the_device_is_raised():
    def to_device(batch):
        raise RuntimeError(f"too many broken in {batch['number']}")

    prefetcher = DevicePrefetcher(iter([batch(7)]), to_device, size=1)
    with pytest.raises(RuntimeError, match="too many broken in 7"):
        prefetcher.next_batch(never)
    prefetcher.close()


def test_closing_ends_the_thread():
    prefetcher = DevicePrefetcher(map(batch, range(100)), jax.device_put, size=1)
    prefetcher.next_batch(never)
    prefetcher.close()
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]


def test_waiting_is_given_up_on_request():
    forever = threading.Event()
    prefetcher = DevicePrefetcher(iter(forever.wait, True), jax.device_put, size=1)
    assert prefetcher.next_batch(lambda: True) is None
    forever.set()
    prefetcher.close()
