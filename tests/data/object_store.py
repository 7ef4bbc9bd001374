"""An S3 store on the loopback that fails on demand."""

import http.client
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import boto3
import fsspec
from moto.server import ThreadedMotoServer

from groupvit_jax.data.storage import objects

BUCKET = "pairs"
# Called with method and path (with its query) of each request; returns what goes wrong with it:
# "503", "403", "cut" (the connection ends in the middle of the body) or "refuse" (before it).
Fault = Callable[[str, str], str | None]


class FaultyStore:
    """Moto behind a proxy.

    Attributes:
      fault: of the requests from now on.
      requests: (method, path), as they came.
    """

    def __init__(self, port: int, moto_port: int):
        self.fault: Fault = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{port}"
        self.moto = f"http://127.0.0.1:{moto_port}"
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.moto,
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )

    def put(self, key: str, content: bytes) -> str:
        """Stores an object and returns its URL."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def clear(self) -> None:
        """Removes all objects and faults."""
        self.fault = lambda method, path: None
        self.requests.clear()
        for item in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            self.s3.delete_object(Bucket=BUCKET, Key=item["Key"])

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


def _handler(store_of: Callable[[], FaultyStore], moto_port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            store = store_of()
            store.requests.append((self.command, self.path))
            fault = store.fault(self.command, self.path)
            # Read also where the answer is an error: the connection is used for the next request.
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault in ("503", "403"):
                code = {"503": "SlowDown", "403": "AccessDenied"}[fault]
                body = f"<Error><Code>{code}</Code><Message>{code} said</Message></Error>".encode()
                self._send(int(fault), {"Content-Type": "application/xml"}, body)
                return
            if fault == "refuse":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", moto_port)
            upstream.request(self.command, self.path, content, dict(self.headers))
            answer = upstream.getresponse()
            self._send(answer.status, dict(answer.getheaders()), answer.read(), fault == "cut")
            upstream.close()

        def _send(self, status: int, headers: dict[str, str], body: bytes, cut=False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body)))
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
def serve():
    """Yields a store, for which the environment holds address and keys."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    moto_port = moto.get_host_and_port()[1]
    stores: list[FaultyStore] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: stores[0], moto_port))
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # clients that went away
    stores.append(FaultyStore(server.server_address[1], moto_port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": stores[0].endpoint,
    }
    try:
        with mock.patch.dict(os.environ, environment):
            _forget_stores()
            # Moto keeps its buckets in globals, also those of a server that has stopped.
            urllib.request.urlopen(
                urllib.request.Request(f"{stores[0].moto}/moto-api/reset", method="POST")
            ).close()
            stores[0].s3.create_bucket(Bucket=BUCKET)
            yield stores[0]
    finally:
        _forget_stores()
        server.shutdown()
        server.server_close()
        moto.stop()


def _forget_stores() -> None:
    """fsspec keeps a store's instance, and with it the address of another server."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    objects._split_in.cache_clear()
