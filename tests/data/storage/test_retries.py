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


@pytest.fixture
def messages(monkeypatch):
    """What is logged of what was read."""
    found = []
    monkeypatch.setattr(retries.logging, "info", lambda text, *values: found.append(text % values))
    return found


def test_bytes_and_retries_are_logged_once_a_minute(messages, monkeypatch):
    now = [0.0]
    meter = Meter(lambda: now[0])
    monkeypatch.setattr(retries, "METER", meter)
    monkeypatch.setattr(retries, "RETRY", Retry(sleep=lambda seconds: None))
    results = iter([OSError("busy"), TimeoutError(), 7])

    def answer():
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    assert retried(answer, "s3://a/b") == 7
    meter.add(num_bytes=2**30, num_ranges=10)
    assert not messages
    now[0] = 60.0
    meter.add(num_bytes=2**30, num_ranges=10)
    meter.add(num_bytes=1)
    assert messages == ["Read from object stores so far: 2.00 GiB in 20 ranges, 2 retries"]


def test_messages_are_one_short_line(monkeypatch):
    monkeypatch.setattr(retries, "RETRY", Retry(attempts=2, sleep=lambda seconds: None))

    def fail():
        raise OSError("a\nb\n" + "c" * 1000)

    message = r"^s3://a: OSError: a b c+ \(the last of 2 attempts\)$"
    with pytest.raises(StorageError, match=message) as caught:
        retried(fail, "s3://a")
    assert len(str(caught.value)) < 400
