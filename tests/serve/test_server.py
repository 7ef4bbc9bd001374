import os
import socket
from pathlib import Path

import pytest

from groupvit_jax.serve import server


def test_a_free_port_is_found_beside_taken_ones():
    host = "127.0.0.1"
    with server.open_socket(host, None) as first, server.open_socket(host, None) as second:
        ports = [listener.getsockname()[1] for listener in (first, second)]
        assert 7860 <= ports[0] < ports[1] < 7960
        assert server.address(first) == f"http://127.0.0.1:{ports[0]}"


def test_a_taken_port_and_a_foreign_host_are_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            server.open_socket("127.0.0.1", port)
    with pytest.raises(OSError, match=r"192\.0\.2\.1:7860: Cannot assign"):
        server.open_socket("192.0.2.1", None)


def test_the_cache_ends_with_the_process_and_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    with server.private_cache() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == folder
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert list(Path(folder).iterdir()) == []
    assert not Path(folder).exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"
    assert "GRADIO_ANALYTICS_ENABLED" not in os.environ
