"""Object stores on the loopback that fail on demand: S3 (moto) and GCS (gcp-storage-emulator)."""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import fsspec

from groupvit_jax.data.storage import objects
from tests.data.store_servers import BUCKET, SERVERS, Answer, StoreServer

# Called with method and path (with its query) of each request, of both APIs by S3's names: GET,
# HEAD, PUT or DELETE of /BUCKET/KEY, GET of /BUCKET?list-type=2... Returns what goes wrong with it:
# "503", "403", "cut" (the connection ends in the middle of the body) or "refuse" (before it).
Fault = Callable[[str, str], str | None]


class FaultyStore:
    """A store behind a proxy.

    Attributes:
      fault: of the requests from now on.
      requests: (method, path), as they came.
      root: URL of the bucket.
    """

    def __init__(self, server: StoreServer, port: int):
        self.fault: Fault = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{port}"
        self.server = server
        self.root = f"{server.scheme}://{BUCKET}"

    def put(self, key: str, content: bytes) -> str:
        """Stores an object and returns its URL."""
        self.server.put(key, content)
        return f"{self.root}/{key}"

    def delete(self, key: str) -> None:
        """Deletes an object."""
        self.server.delete(key)

    def clear(self) -> None:
        """Removes all objects and faults."""
        self.fault = lambda method, path: None
        self.requests.clear()
        self.server.clear()

    def reads(self, key: str = "") -> int:
        """Returns how often an object's content was asked for."""
        return sum(
            method == "GET" and path.startswith(f"/{BUCKET}/{key}") and "list-type" not in path
            for method, path in self.requests
        )

    def first(self, num_requests: int, what: str, method: str = "GET") -> Fault:
        """Returns a fault of the first requests for each object."""
        seen: dict[str, int] = {}
        lock = threading.Lock()

        def fault(called: str, path: str) -> str | None:
            if called != method:
                return None
            with lock:
                seen[path] = seen.get(path, 0) + 1
                return what if seen[path] <= num_requests else None

        return fault


def _handler(store_of: Callable[[], FaultyStore]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            store = store_of()
            # Read also where the answer is an error: the connection is used for the next request.
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = store.server.named(self.command, self.path, content)
            store.requests.append(request)
            fault = store.fault(*request)
            if fault in ("503", "403"):
                self._send(store.server.error(int(fault)))
            elif fault == "refuse":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                headers = dict(self.headers)
                answer = store.server.answer(self.command, self.path, content, headers)
                self._send(answer, cut=fault == "cut")

        def _send(self, answer: Answer, cut: bool = False) -> None:
            body = answer.body
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length", str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serve(scheme: str = "s3"):
    """Yields a store of an API ("s3" or "gs"), for which the environment holds address and keys."""
    stores: list[FaultyStore] = []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: stores[0]))
    proxy.daemon_threads = True
    proxy.handle_error = lambda request, address: None  # clients that went away
    with SERVERS[scheme]() as server:
        stores.append(FaultyStore(server, proxy.server_address[1]))
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            with (
                mock.patch.dict(os.environ, server.environment(stores[0].endpoint)),
                mock.patch.dict(fsspec.config.conf),
            ):
                fsspec.config.set_conf_env(fsspec.config.conf)
                _forget_stores(scheme)
                yield stores[0]
        finally:
            _forget_stores(scheme)
            proxy.shutdown()
            proxy.server_close()


def _forget_stores(scheme: str) -> None:
    """fsspec keeps a store's instance, and with it the address of another server."""
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    objects._split_in.cache_clear()
