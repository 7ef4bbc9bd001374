"""Retries for object stores: which errors are transient, how long to wait, how to report them.

This is our own code because the ranges of one batch are retried together: each attempt repeats only
the parts that failed, which the retry libraries, written for one call, don't express.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_MESSAGE = 300
_SECONDS_BETWEEN_REPORTS = 60.0
_PERMANENT_TYPES = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
_PERMANENT_ERRNOS = {
    errno.EINVAL,
    errno.EPERM,
    errno.EACCES,
    errno.ENOENT,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    getattr(errno, "EREMCHG", errno.ENOENT),  # raised by s3fs if the bucket is in another region
}
_TRANSIENT_STATUS = (408, 425, 429)  # transient ones among 400 to 499


class StorageError(OSError):
    """An object can't be read; the message names it and quotes the store's answer."""


@dataclass(frozen=True)
class Retry:
    """Retry policy for transient errors: number of attempts and random exponential waits.

    The wait before attempt n + 1 is uniform in [0, min(longest, first 2^(n-1))], so that readers
    that failed together don't retry together ("full jitter", Brooker 2015).
    """

    attempts: int = 13  # waits of 120 s on average: a store may be silent for a minute
    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def wait(self, attempt: int) -> None:
        """Sleep after failed attempt number `attempt`, counted from 1."""
        bound = min(self.longest_seconds, self.first_seconds * 2 ** (attempt - 1))
        self.sleep(self.draw() * bound)


RETRY = Retry()


def retried(function: Callable[[], T], url: str, retry: Retry | None = None) -> T:
    """Call `function` for one URL, with retries; see `retried_each`."""

    def attempt(wanted: Sequence[int]) -> list[T | Exception]:
        del wanted
        try:
            return [function()]
        except Exception as error:  # `is_transient` classifies them
            return [error]

    return retried_each(attempt, [url], retry)[0]


def retried_each(
    request: Callable[[Sequence[int]], Sequence[T | Exception]],
    urls: Sequence[str],
    retry: Retry | None = None,
) -> list[T]:
    """Call `request` with positions 0, 1, ..., then again with those that failed transiently.

    Args:
      request: returns a result or an error for each requested position.
      urls: the URL of each position, for messages.
      retry: the policy; `RETRY` by default.

    Raises:
      StorageError: a permanent error, or a transient one at the last attempt.
    """
    retry = retry or RETRY
    found: dict[int, T] = {}
    missing = list(range(len(urls)))
    for attempt in range(1, retry.attempts + 1):
        errors: dict[int, Exception] = {}
        for place, result in zip(missing, request(missing), strict=True):
            if not isinstance(result, Exception):
                found[place] = result
            elif is_transient(result):
                errors[place] = result
            else:
                raise StorageError(f"{urls[place]}: {_message(result)}") from result
        missing = list(errors)
        if not missing:
            break
        url, error = urls[missing[0]], errors[missing[0]]
        if attempt == retry.attempts:
            raise StorageError(
                f"{url}: {_message(error)} (the last of {attempt} attempts)"
            ) from error
        message = "%s: %s; attempt %d of %d failed for %d of %d reads"
        counts = (attempt, retry.attempts, len(missing), len(urls))
        logger.warning(message, url, _message(error), *counts)
        METER.add(num_retries=len(missing))
        retry.wait(attempt)
    return [found[place] for place in range(len(urls))]


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later.

    Stores' libraries raise their own error types beside Python's, so every error that isn't known
    to be permanent (not found, forbidden, bad request) is retried.
    """
    if isinstance(error, _PERMANENT_TYPES) or "Credentials" in type(error).__name__:
        return False
    if isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS:
        return False
    if str(error).startswith("Forbidden"):  # gcsfs has no error type for it
        return False
    status = _http_status(error)
    return status is None or not 400 <= status < 500 or status in _TRANSIENT_STATUS


def _http_status(error: BaseException) -> int | None:
    for name in ("status", "code", "status_code"):
        value = str(getattr(error, name, ""))
        if value.isdecimal():
            return int(value)
    return None


def _message(error: BaseException) -> str:
    """Return an error's message in one line."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    kind = type(error).__name__
    return f"{kind}: {text}"[:_LONGEST_MESSAGE] if text else kind


class Meter:
    """Counts bytes, requests and retries of this process, and logs them once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Start at zero."""
        self._clock = clock
        self._last_report = clock()
        self._lock = threading.Lock()
        self.num_bytes = self.num_ranges = self.num_retries = 0

    def add(self, num_bytes: int = 0, num_ranges: int = 0, num_retries: int = 0) -> None:
        """Add to the counts, and log them if a minute has passed."""
        with self._lock:
            self.num_bytes += num_bytes
            self.num_ranges += num_ranges
            self.num_retries += num_retries
            due = self._clock() - self._last_report >= _SECONDS_BETWEEN_REPORTS
            if due:
                self._last_report = self._clock()
        # Outside of the lock, on which other threads' reads wait.
        if due:
            message = "Read from object stores so far: %.2f GiB in %d ranges, %d retries"
            logger.info(message, self.num_bytes / 2**30, self.num_ranges, self.num_retries)


METER = Meter()
