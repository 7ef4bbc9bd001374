import pytest

from groupvit_jax.data.storage import retries
from groupvit_jax.data.storage.retries import Meter, Retry, StorageError, retried


def test_waits_are_bounded_and_jittered():
    slept = []
    draws = iter([0.5, 1.0, 0.0, 1.0])
    retry = Retry(longest_seconds=5.0, sleep=slept.append, draw=lambda: next(draws))
    for attempt in (1, 2, 3, 9):
        retry.wait(attempt)
    assert slept == [0.5, 2.0, 0.0, 5.0]


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code):
        super().__init__(f"answer, {code}")
        self.code = code


@pytest.mark.parametrize("error", [OSError("Forbidden: b/k"), HttpError(400), HttpError("401")])
def test_permanent_errors_of_google(error):
    assert not retries.is_transient(error)


@pytest.mark.parametrize(
    "error", [HttpError(503), HttpError("429"), HttpError(None), TimeoutError(), OSError("cut")]
)
def test_transient_errors_of_google(error):
    assert retries.is_transient(error)


NO_WAIT = Retry(attempts=3, sleep=lambda seconds: None)


def failing(*results):
    """A function that raises or returns one result after the other."""
    remaining = iter(results)

    def answer():
        result = next(remaining)
        if isinstance(result, Exception):
            raise result
        return result

    return answer


def test_transient_errors_are_retried_and_each_is_logged(caplog):
    assert retried(failing(OSError("busy"), TimeoutError(), 7), "s3://a/b", NO_WAIT) == 7
    assert [record.getMessage() for record in caplog.records] == [
        "s3://a/b: OSError: busy; attempt 1 of 3 failed for 1 of 1 reads",
        "s3://a/b: TimeoutError; attempt 2 of 3 failed for 1 of 1 reads",
    ]


def test_a_permanent_error_is_not_retried():
    with pytest.raises(StorageError, match=r"^s3://a/b: PermissionError: no$"):
        retried(failing(PermissionError("no"), 7), "s3://a/b", NO_WAIT)


def test_reads_and_retries_are_logged_once_a_minute(caplog):
    caplog.set_level("INFO")
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.add(num_bytes=2**30, num_ranges=10, num_retries=2)
    assert not caplog.records
    now[0] = 60.0
    meter.add(num_bytes=2**30, num_ranges=10)
    meter.add(num_bytes=1)
    assert [record.getMessage() for record in caplog.records] == [
        "Read from object stores so far: 2.00 GiB in 20 ranges, 2 retries"
    ]


def test_messages_are_one_short_line():
    error = OSError("a\nb\n" + "c" * 1000)
    message = r"^s3://a: OSError: a b c+ \(the last of 3 attempts\)$"
    with pytest.raises(StorageError, match=message) as caught:
        retried(failing(error, error, error), "s3://a", NO_WAIT)
    assert len(str(caught.value)) < 400
