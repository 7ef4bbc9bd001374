import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.interop import verify
from groupvit_jax.interop.stablehlo import write_stablehlo
from groupvit_jax.models.preprocess import normalize
from tests.interop import weights

# A consumer: it knows JAX and NumPy and nothing of this project.
CONSUMER = """
import pathlib, sys
import jax, numpy as np

folder = pathlib.Path(sys.argv[1])
programs = {
    name: jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
    for name in ("image", "text")
}
for program in programs.values():
    assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
inputs, results = np.load(folder / "inputs.npz"), {}
for batch_size in (1, 7):
    outputs = programs["image"].call(inputs["images"][:batch_size])
    outputs |= {f"assignment {i}": a for i, a in enumerate(outputs.pop("assignments"))}
    outputs["text"] = programs["text"].call(inputs["tokens"][:batch_size])
    results |= {f"{batch_size}/{name}": array for name, array in outputs.items()}
np.savez(folder / "outputs.npz", **results)
own = [name for name in sys.modules if name.split(".")[0] in ("groupvit_jax", "flax", "configs")]
assert not own, own
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stablehlo")
    write_stablehlo(folder, weights.random_pretrained(weights.small_config()))
    return folder


def test_a_process_without_the_project_gives_the_same(folder, small):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    _, tokens = verify.random_inputs(small, batch_size=7)
    np.savez(folder / "inputs.npz", images=images, tokens=tokens)
    command = [sys.executable, "-I", "-c", CONSUMER, str(folder)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "outputs.npz") as file:
        results = dict(file)
    outputs = verify.our_outputs(small, np.asarray(normalize(jnp.asarray(images))), tokens)
    expected = {
        "embedding": outputs["image embedding"],
        "segments": outputs["segment embeddings"],
        "text": outputs["text embedding"],
        "assignment 0": outputs["assignment 0"],
        "assignment 1": outputs["assignment 1"],
    }
    assert len(results) == 2 * len(expected)
    for name, array in expected.items():
        for batch_size in (1, 7):
            found = results[f"{batch_size}/{name}"]
            assert found.shape == (batch_size, *array.shape[1:])
            difference = np.abs(found - array[:batch_size]).max()
            assert difference <= 1e-5 * np.abs(array).max(), name


def test_the_description_says_what_a_consumer_needs(folder, small):
    config = json.loads((folder / "config.json").read_text())
    assert config["platforms"] == ["cpu", "cuda", "tpu"]
    assert (config["image_size"], config["context_length"]) == (32, 32)
    scale = np.exp(small.variables["params"]["logit_scale"])
    assert config["logit_scale"] == pytest.approx(float(scale), rel=1e-6)
    assert config["tokenizer"] == {"name": "clip", "path": ""}
    assert config["model"]["image"]["patch_size"] == 4
