"""The object store of the tests of `data`, for preparation from and to buckets."""

from tests.data.conftest import _served_store, slept, store

__all__ = ["_served_store", "slept", "store"]
