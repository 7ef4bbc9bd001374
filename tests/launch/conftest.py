import io
import tarfile

import cv2
import numpy as np
import pytest

WORDS = ["red", "green", "blue", "dog", "cat", "car", "tree", "house", "boat", "bird"]


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "pairs-0000.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(40):
            image = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            text = f"a {WORDS[i % 10]} near a {WORDS[(i * 7 + 3) % 10]}"
            for suffix, content in (
                ("jpg", cv2.imencode(".jpg", image)[1].tobytes()),
                ("txt", text.encode()),
            ):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)
