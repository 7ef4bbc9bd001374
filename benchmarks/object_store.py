"""Ways to read samples of a shuffled set from a store that answers late.

python -m benchmarks.object_store [LATENCY_MS]

Serves shards over S3's protocol on the loopback, every answer delayed, and prints samples a second:
from local files, by range (64 at once from two threads, as a worker reads), by range one after the
other, and by whole shards (6.4 MB) where a tenth of the set is kept, each against the local files.
"""

import io
import multiprocessing
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from groupvit_jax.data.sources import tar_index
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.data.storage import objects

NUM_SHARDS, PER_SHARD, SAMPLE_BYTES = 10, 64, 100_000
CHUNK = 64


def write_shard(path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for i in range(PER_SHARD):
            for suffix, content in (("jpg", rng.bytes(SAMPLE_BYTES)), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of S3's protocol for the files of a folder."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    latency = 0.0

    def do_GET(self):
        """Answer late."""
        time.sleep(self.latency)
        file = self.folder / os.path.basename(self.path)
        size = file.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
        self.send_response_only(206 if found else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as content:
                self.wfile.write(os.pread(content.fileno(), end - start + 1, start))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        """Keep quiet."""


def serve(folder: str, latency: float, ports: multiprocessing.Queue) -> None:
    Handler.folder, Handler.latency = Path(folder), latency
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_address[1])
    server.serve_forever()


def rate(
    read: Callable[[Sequence[int]], object], chunks: Sequence[Sequence[int]]
) -> tuple[float, float]:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(read, chunks[:2]))  # not timed: opens the connections
        start, cpu_start = time.perf_counter(), time.process_time()
        list(threads.map(read, chunks[2:]))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    num_samples = sum(map(len, chunks[2:]))
    return num_samples / seconds, 1000 * cpu_seconds / num_samples


def read_whole_shards(source: WebDatasetSource, indices: Sequence[int]) -> None:
    """As a cache of a tenth of the set would in a shuffle: nine of ten samples cost a shard."""
    rng = np.random.default_rng(indices[0])
    for index in indices:
        if rng.random() < 0.9:
            stored = source._shards[index // PER_SHARD]
            objects.read_ranges(objects.split_range(stored, 0, stored.size))


def main() -> None:
    latency = float(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0.03
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:02d}.tar") for i in range(NUM_SHARDS)]
        write_shard(paths[0])
        for path in paths[1:]:
            path.write_bytes(paths[0].read_bytes())
        context = multiprocessing.get_context("spawn")
        ports = context.Queue()
        server = context.Process(target=serve, args=(folder, latency, ports), daemon=True)
        server.start()
        # Any keys will do: the server checks none.
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports.get()}",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
        }
        local = WebDatasetSource([str(path) for path in paths], folder + "/index")
        urls = [f"s3://bucket/{path.name}" for path in paths]
        remote = WebDatasetSource(urls, folder + "/index")
        start = time.perf_counter()
        for stored in objects.describe(urls):
            tar_index.scan(stored)
        seconds = time.perf_counter() - start
        megabytes = NUM_SHARDS * paths[0].stat().st_size / 1e6
        order = np.random.default_rng(0).permutation(len(local)).tolist()
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        few = [chunk[:4] for chunk in chunks[:6]]
        print(f"answers after {1000 * latency:.0f} ms, {SAMPLE_BYTES // 1000} KB a sample")
        print(f"indexing: {megabytes / seconds:.0f} MB/s of one process")
        reference, _ = rate(lambda c: list(local.read_many(c)), chunks)
        for name, read, some in (
            ("local files", lambda c: list(local.read_many(c)), chunks),
            ("ranges, 64 at once", lambda c: list(remote.read_many(c)), chunks),
            ("ranges, one by one", lambda c: [remote[i] for i in c], few),
            ("whole shards", lambda c: read_whole_shards(remote, c), few),
        ):
            found, cpu_ms = rate(read, some)
            line = f"{name:20s} {found:8.0f} samples/s  {found / reference:6.3f} x local"
            print(f"{line}  {cpu_ms:6.2f} ms of CPU a sample")
        server.terminate()


if __name__ == "__main__":
    main()
