import pytest

from groupvit_jax.data.storage import retries


@pytest.fixture(scope="session")
def _served_store():
    from tests.data import object_store  # slow to import, for few tests

    with object_store.serve() as store:
        yield store


@pytest.fixture
def slept():
    """Seconds that were to be slept between attempts."""
    return []


@pytest.fixture
def store(_served_store, slept, tmp_path, monkeypatch):
    """An empty store; the waits between attempts are drawn at their longest and not slept."""
    _served_store.clear()
    retry = retries.Retry(attempts=4, sleep=slept.append, draw=lambda: 1.0)
    monkeypatch.setattr(retries, "RETRY", retry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    return _served_store
