"""Retries without the long waits between them, ours and gcsfs's own."""

import asyncio
import contextlib
import os
from types import SimpleNamespace
from unittest import mock

from groupvit_jax.data.storage import retries

SCALE = 0.01


@contextlib.contextmanager
def patched(**settings):
    """Waits a hundredth of what it should; `settings` are those of `Retry`, scaled already."""
    retry = retries.Retry(**{"first_seconds": SCALE, "longest_seconds": 30 * SCALE, **settings})
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(retries, "RETRY", retry))
        if "STORAGE_EMULATOR_HOST" in os.environ:
            import gcsfs.retry

            quick = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds * SCALE))
            stack.enter_context(mock.patch.object(gcsfs.retry, "asyncio", quick))
        yield
