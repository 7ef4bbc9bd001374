"""Programs run where nothing of this project is: exported, then run by another process."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from groupvit_jax.interop import programs, verify
from groupvit_jax.interop.onnx_graph import export_graph
from groupvit_jax.interop.programs import write_onnx, write_stablehlo
from groupvit_jax.models.preprocess import normalize
from tests.interop import weights

# Consumers: they know NumPy and a runtime, and nothing of this project.
CONSUMERS = {
    "stablehlo": """
import pathlib
import jax

programs = {
    path.stem: jax.export.deserialize(bytearray(path.read_bytes()))
    for path in folder.glob("*.stablehlo")
}
for program in programs.values():
    assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms

def run(name, array):
    outputs = programs[name].call(array)
    if isinstance(outputs, dict):
        outputs |= {f"assignments_{i}": a for i, a in enumerate(outputs.pop("assignments"))}
        return outputs
    return {"embedding": outputs}
""",
    "onnx": """
import onnxruntime

def run(name, array):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    (argument,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {argument.name: array})))
""",
}
CONSUMER = """
import pathlib, sys
import numpy as np

folder = pathlib.Path(sys.argv[1])
{runtime}
results = {{}}
for key, array in np.load(folder / "inputs.npz").items():
    for batch_size in (1, len(array)):
        for output, found in run(key, array[:batch_size]).items():
            results[f"{{key}}/{{batch_size}}/{{output}}"] = found
np.savez(folder / "outputs.npz", **results)
foreign = ("groupvit_jax", "flax", "configs", {forbidden})
own = [name for name in sys.modules if name.split(".")[0] in foreign]
assert not own, own
"""
FORBIDDEN = {"stablehlo": "", "onnx": '"jax", "jaxlib", "onnx"'}


def consume(folder, kind, inputs):
    """Run the programs of a folder in a process of its own; return outputs by their names."""
    np.savez(folder / "inputs.npz", **inputs)
    code = CONSUMER.format(runtime=CONSUMERS[kind], forbidden=FORBIDDEN[kind])
    command = [sys.executable, "-I", "-c", code, str(folder)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "outputs.npz") as file:
        return dict(file)


def check(results, key, outputs, expected, tolerance):
    """Compare what batches of one and of all examples gave with JAX's outputs by name."""
    for name, array in outputs.items():
        for batch_size in (1, len(array)):
            found = results.pop(f"{key}/{batch_size}/{name}")
            assert found.shape == (batch_size, *array.shape[1:])
            difference = np.abs(found - array[:batch_size]).max()
            assert difference <= tolerance * np.abs(array).max(), (key, name)
    assert expected == len(outputs)


def images_of(side, count=3):
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module", params=["stablehlo", "onnx"])
def written(request, tmp_path_factory, small):
    folder = tmp_path_factory.mktemp(request.param)
    {"stablehlo": write_stablehlo, "onnx": write_onnx}[request.param](folder, small)
    return request.param, folder


def test_a_process_without_the_project_gives_the_same(written, small):
    kind, folder = written
    images = images_of(32, 7)
    _, tokens = verify.random_inputs(small, batch_size=7)
    results = consume(folder, kind, {"image": images, "text": tokens})
    outputs = verify.our_outputs(small, np.asarray(normalize(jnp.asarray(images))), tokens)
    of_image = {
        "embedding": outputs["image embedding"],
        "segments": outputs["segment embeddings"],
        "assignments_0": outputs["assignment 0"],
        "assignments_1": outputs["assignment 1"],
    }
    tolerance = {"stablehlo": 1e-5, "onnx": 1e-4}[kind]
    check(results, "image", of_image, 4, tolerance)
    check(results, "text", {"embedding": outputs["text embedding"]}, 1, tolerance)
    assert not results


def test_the_description_says_what_a_consumer_needs(written, small):
    kind, folder = written
    config = json.loads((folder / "config.json").read_text())
    if kind == "stablehlo":
        assert config["platforms"] == ["cpu", "cuda", "tpu"]
    assert (config["image_size"], config["context_length"]) == (32, 32)
    scale = np.exp(small.variables["params"]["logit_scale"])
    assert config["logit_scale"] == pytest.approx(float(scale), rel=1e-6)
    assert config["tokenizer"] == {"name": "clip", "path": ""}
    assert config["model"]["image"]["patch_size"] == 4


@pytest.mark.parametrize("kind", [pytest.param("stablehlo", marks=pytest.mark.slow), "onnx"])
def test_each_of_several_sizes_has_a_program(tmp_path, kind, small):
    write = {"stablehlo": write_stablehlo, "onnx": write_onnx}[kind]
    write(tmp_path, small, image_sizes=(32, 48))
    inputs = {f"image_{side}": images_of(side) for side in (32, 48)}
    results = consume(tmp_path, kind, inputs)
    program = jax.jit(programs.image_program(small))
    for key, images in inputs.items():
        outputs = {
            name: np.asarray(a) for name, a in program(images).items() if name != "assignments"
        }
        assert results[f"{key}/3/assignments_0"].shape[-1] == (images.shape[1] // 4) ** 2
        check(results, key, outputs, 2, 1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["image_sizes"] == [32, 48]


def soft_bert():
    """A configuration of all that Hugging Face's model lacks."""
    config = weights.small_config("three_stage")
    config.image.update(assignment="soft", temperature=0.5, position_embedding="sincos")
    config.image.width_factors = (1, 2, 2, 2)
    config.text.kind = "bert"
    config.scan_layers = True
    return weights.random_pretrained(config)


@pytest.mark.slow
def test_a_bert_with_soft_groups_is_converted(tmp_path):
    pretrained = soft_bert()
    write_onnx(tmp_path, pretrained)
    images, (_, tokens) = images_of(32), verify.random_inputs(pretrained, batch_size=3)
    results = consume(tmp_path, "onnx", {"image": images, "text": tokens})
    outputs = jax.jit(programs.image_program(pretrained))(images)
    outputs |= {f"assignments_{i}": a for i, a in enumerate(outputs.pop("assignments"))}
    check(results, "image", {k: np.asarray(v) for k, v in outputs.items()}, 5, 1e-4)
    text = jax.jit(programs.text_program(pretrained))(tokens)
    check(results, "text", {"embedding": np.asarray(text)}, 1, 1e-4)


def test_an_operation_that_is_not_converted_is_named():
    (batch,) = jax.export.symbolic_shape("batch")
    argument = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
    with pytest.raises(ValueError, match="ONNX: sort found in the model"):
        export_graph(lambda x: jnp.sort(x), argument, batch, "x")


@pytest.mark.slow
def test_the_published_model_is_converted(tmp_path):
    pretrained = weights.random_pretrained(base.get_config().model)
    write_onnx(tmp_path, pretrained)
    images, (_, tokens) = images_of(224, 2), verify.random_inputs(pretrained)
    results = consume(tmp_path, "onnx", {"image": images, "text": tokens})
    outputs = jax.jit(programs.image_program(pretrained))(images)
    outputs |= {f"assignments_{i}": a for i, a in enumerate(outputs.pop("assignments"))}
    check(results, "image", {k: np.asarray(v) for k, v in outputs.items()}, 4, 1e-4)
    text = jax.jit(programs.text_program(pretrained))(tokens)
    check(results, "text", {"embedding": np.asarray(text)}, 1, 1e-4)
