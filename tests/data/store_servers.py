"""Servers of S3's and Google Cloud Storage's API on the loopback."""

import base64
import contextlib
import http.client
import json
import logging
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

BUCKET = "pairs"


class Answer(NamedTuple):
    """Of a server to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StoreServer(Protocol):
    """A server that holds one bucket."""

    scheme: str

    def environment(self, endpoint: str) -> dict[str, str]:
        """Returns the variables by which clients find the server, and its keys."""

    def put(self, key: str, content: bytes) -> None:
        """Stores an object."""

    def delete(self, key: str) -> None:
        """Deletes an object."""

    def clear(self) -> None:
        """Deletes all objects."""

    def named(self, method: str, path: str, content: bytes) -> tuple[str, str]:
        """Returns a request by S3's names."""

    def error(self, status: int) -> Answer:
        """Returns the API's answer of a status."""

    def answer(self, method: str, path: str, content: bytes, headers: dict[str, str]) -> Answer:
        """Answers a request."""


class S3Server:
    """Moto."""

    scheme = "s3"

    def __init__(self, port: int) -> None:
        import boto3

        self._port = port
        endpoint = f"http://127.0.0.1:{port}"
        # Moto keeps its buckets in globals, also those of a server that has stopped.
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )
        self._client.create_bucket(Bucket=BUCKET)

    def environment(self, endpoint: str) -> dict[str, str]:
        """See `StoreServer`."""
        return {
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }

    def put(self, key: str, content: bytes) -> None:
        """See `StoreServer`."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        """See `StoreServer`."""
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def clear(self) -> None:
        """See `StoreServer`."""
        for item in self._client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            self.delete(item["Key"])

    def named(self, method: str, path: str, content: bytes) -> tuple[str, str]:
        """See `StoreServer`."""
        return method, path

    def error(self, status: int) -> Answer:
        """See `StoreServer`."""
        code = {503: "SlowDown", 403: "AccessDenied"}[status]
        body = f"<Error><Code>{code}</Code><Message>{status} said</Message></Error>"
        return Answer(status, {"Content-Type": "application/xml"}, body.encode())

    def answer(self, method: str, path: str, content: bytes, headers: dict[str, str]) -> Answer:
        """See `StoreServer`."""
        return _request(self._port, method, path, content, headers)


class GcsServer:
    """gcp-storage-emulator, with two corrections to its release 2026.7.

    GCS refuses to create an object that exists (ifGenerationMatch=0) and keeps every byte of an
    upload; the emulator overwrites it, and loses a carriage return at the end of an upload.
    Requests reach it one at a time, so that nothing comes between the look and the upload.
    """

    scheme = "gs"

    def __init__(self, port: int) -> None:
        self._port, self._lock = port, threading.Lock()
        policy = {"softDeletePolicy": {"retentionDurationSeconds": "0"}}
        headers = {"Content-Type": "application/json"}
        path = f"/storage/v1/b/{BUCKET}"
        self.answer("PATCH", path, json.dumps(policy).encode(), headers)

    def environment(self, endpoint: str) -> dict[str, str]:
        """See `StoreServer`."""
        return {
            "STORAGE_EMULATOR_HOST": endpoint,
            "FSSPEC_GS_TOKEN": "anon",
            # Else gcsfs asks for the kind of the bucket, over gRPC.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def put(self, key: str, content: bytes) -> None:
        """See `StoreServer`."""
        path = f"/{BUCKET}/{quote(key)}"  # the XML API
        self.answer("PUT", path, content, {"Content-Type": "application/octet-stream"})

    def delete(self, key: str) -> None:
        """See `StoreServer`."""
        self.answer("DELETE", self._path_of(key), b"", {})

    def clear(self) -> None:
        """See `StoreServer`."""
        self.answer("GET", "/wipe?keep-buckets=1", b"", {})

    def named(self, method: str, path: str, content: bytes) -> tuple[str, str]:
        """See `StoreServer`."""
        url = urlsplit(path)
        query = dict(parse_qsl(url.query))
        found = re.search(r"/b/[^/]+/o/([^/]+)", url.path)
        if found:
            is_look = method == "GET" and query.get("alt") != "media"
            is_look = is_look and not url.path.startswith("/download/")
            method = "HEAD" if is_look else "PUT" if method == "POST" else method
            return method, f"/{BUCKET}/{unquote(found[1])}"
        if "uploadType" in query:
            name = query.get("name") or query.get("upload_id", "::").split(":")[1]
            return "PUT", f"/{BUCKET}/{name or _metadata(content)['name']}"
        return method, f"/{BUCKET}?list-type=2&{url.query}"

    def error(self, status: int) -> Answer:
        """See `StoreServer`."""
        body = json.dumps({"error": {"code": status, "message": f"{status} said"}})
        return Answer(status, {"Content-Type": "application/json"}, body.encode())

    def answer(self, method: str, path: str, content: bytes, headers: dict[str, str]) -> Answer:
        """See `StoreServer`."""
        query = dict(parse_qsl(urlsplit(path).query))
        with self._lock:
            if query.get("ifGenerationMatch") == "0":
                there = self._path_of(_metadata(content)["name"])
                if _request(self._port, "GET", there, b"", {}).status == 200:
                    return self.error(412)
            if query.get("uploadType") == "multipart":
                content = _in_base64(content)
            return _request(self._port, method, path, content, headers)

    def _path_of(self, key: str) -> str:
        return f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}"


def _metadata(content: bytes) -> dict:
    """Returns the metadata of an upload, alone or the first part of gcsfs's multipart body."""
    is_multipart = content.startswith(b"--")
    return json.loads(content.split(b"\n\n", 1)[1].split(b"\n--")[0] if is_multipart else content)


def _in_base64(content: bytes) -> bytes:
    """Returns gcsfs's multipart body with its second part, the object, in base64."""
    boundary = content.split(b"\n", 1)[0]
    first, second = content.removesuffix(b"\n" + boundary + b"--").split(b"\n" + boundary, 1)
    header, data = second.split(b"\n\n", 1)
    header += b"\nContent-Transfer-Encoding: base64\n\n" + base64.b64encode(data)
    return first + b"\n" + boundary + header + b"\n" + boundary + b"--"


def _request(port: int, method: str, path: str, content: bytes, headers: dict[str, str]) -> Answer:
    headers = {n: value for n, value in headers.items() if n.lower() != "content-length"}
    upstream = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(upstream):
        upstream.request(method, path, content, headers | {"Content-Length": str(len(content))})
        answer = upstream.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())


@contextlib.contextmanager
def _moto() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield S3Server(server.get_host_and_port()[1])
    finally:
        server.stop()


@contextlib.contextmanager
def _emulator() -> Iterator[GcsServer]:
    from gcp_storage_emulator.server import create_server

    for name in ("gcp_storage_emulator", "api.object"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET):
        yield GcsServer(port)


SERVERS = {"s3": _moto, "gs": _emulator}
