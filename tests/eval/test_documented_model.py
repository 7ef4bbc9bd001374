"""The example of docs/evaluate.md that measures another model runs as it is written."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from groupvit_jax import evaluate
from groupvit_jax.data.eval_sets import open_benchmark
from groupvit_jax.data.text.byte_pairs import END, START, read_merges, read_tokens
from tests.data.eval_sets import miniatures

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/evaluate.md"
TINY = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "projection_dim": 16,
}  # fmt: skip


def write_clipseg(folder):
    """A CLIPSeg of random weights with its processor, as `save_pretrained` leaves them."""
    tokens = read_tokens()
    ids = {token: i for i, token in enumerate(tokens)}
    special = {"bos_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END]}
    config = transformers.CLIPSegConfig(
        text_config={**TINY, **special, "vocab_size": len(tokens)},
        vision_config={**TINY, "image_size": 64, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    transformers.CLIPSegProcessor(
        transformers.ViTImageProcessor(size={"height": 64, "width": 64}),
        transformers.CLIPTokenizer(vocab=ids, merges=read_merges()),
    ).save_pretrained(folder)


def test_clipseg_on_the_disk_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_clipseg(tmp_path / "clipseg")
    miniatures.voc(tmp_path / "data")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "CLIPSeg" in block]
    names = {"evaluate": evaluate}
    exec(example, names)
    opened = open_benchmark("voc", tmp_path / "data")
    hits, union = np.zeros(21), np.zeros(21)
    for image, mask in (opened.source[i] for i in range(len(opened.source))):
        scores = names["predict"](image)
        assert scores.shape == (20, 64, 64)
        size = mask.shape[::-1]
        resized = np.stack([cv2.resize(s, size, interpolation=cv2.INTER_LINEAR) for s in scores])
        label = np.where(resized.max(0) > 0.4, resized.argmax(0) + 1, 0)[mask != 255]
        mask = mask[mask != 255]
        for class_ in range(21):
            hits[class_] += ((mask == class_) & (label == class_)).sum()
            union[class_] += ((mask == class_) | (label == class_)).sum()
    expected = (hits[union > 0] / union[union > 0]).mean()
    assert names["found"]["miou"] == pytest.approx(expected, abs=1e-12)
