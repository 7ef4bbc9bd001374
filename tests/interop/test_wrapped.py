"""Checkpoints in the forms that trainers write."""

import json
import shutil

import numpy as np
import pytest

from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.huggingface import write_huggingface
from groupvit_jax.interop.original import write_original
from groupvit_jax.interop.tensor_file import read_safetensors, write_safetensors
from groupvit_jax.interop.torch_file import read_torch_file
from tests.interop import weights

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def states(small, tmp_path_factory):
    """The same weights by the original's and by Hugging Face's names, as PyTorch's tensors."""
    folder = tmp_path_factory.mktemp("states")
    write_original(folder / "a.pth", small)
    write_huggingface(folder / "hf", small)
    found = read_torch_file(folder / "a.pth")[0], read_safetensors(folder / "hf/model.safetensors")
    return [{n: torch.from_numpy(np.array(t)) for n, t in state.items()} for state in found]


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPED = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module."), "epoch": 1},
    "Lightning": lambda s: {
        "state_dict": {**prefixed(s, "model.net."), "loss.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.0",
    },
    "mmcv": lambda s: {"meta": {"epoch": 1}, "state_dict": prefixed(s, "backbone.")},
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "nested": lambda s: {"model": {"state_dict": prefixed(s, "module.model.")}},
    "averaged only": lambda s: {"model_ema": prefixed(s, "module.")},
    "averaged, too": lambda s: {"model_ema": {n: 2 * t for n, t in s.items()}, "model": s},
}


@pytest.mark.parametrize(
    ("form", "names"), [*((form, 0) for form in WRAPPED), ("bare", 1), ("Lightning", 1)]
)
def test_every_wrapping_gives_the_same_weights(form, names, states, small, tmp_path):
    torch.save(WRAPPED[form](states[names]), tmp_path / "a.pth")
    found = weights.flat(load_pretrained(tmp_path / "a.pth", small.model_config))
    for name, array in weights.flat(small).items():
        if name == "params/multi_label_logit_scale" and names:
            continue  # Hugging Face's models have none
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype, states, small, tmp_path):
    halves = {n: t.to(dtype) if t.is_floating_point() else t for n, t in states[0].items()}
    torch.save({"state_dict": prefixed(halves, "module.")}, tmp_path / "a.bin")
    found = weights.flat(load_pretrained(tmp_path / "a.bin", small.model_config))
    for name, array in weights.flat(small).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, rtol=2**-7, atol=1e-6)


@pytest.fixture
def folder(small, tmp_path):
    write_huggingface(tmp_path / "hf", small)
    return tmp_path / "hf"


def check_same(found, small):
    for name, array in weights.flat(small).items():
        np.testing.assert_array_equal(weights.flat(found)[name], array, err_msg=name)


def test_a_bare_safetensors_file_takes_its_folders_configuration(folder, small):
    check_same(load_pretrained(folder / "model.safetensors"), small)
    shutil.move(folder / "config.json", folder / "other.json")
    with pytest.raises(ValueError, match=r"hf: weights found, but no config.json"):
        load_pretrained(folder)
    bare = load_pretrained(folder / "model.safetensors", small.model_config)
    assert bare.model_config.image.depths == small.model_config.image.depths


def test_shards_of_a_bin_are_read_together(folder, small, states):
    (folder / "model.safetensors").unlink()
    halves = list(states[1].items())
    shards = {
        "pytorch_model-00001-of-00002.bin": dict(halves[:9]),
        "pytorch_model-00002-of-00002.bin": dict(halves[9:]),
    }
    for file, tensors in shards.items():
        torch.save(tensors, folder / file)
    places = {name: file for file, tensors in shards.items() for name in tensors}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for path in (folder, index, folder / "pytorch_model-00002-of-00002.bin"):
        check_same(load_pretrained(path), small)
    index.write_text(json.dumps({"weight_map": places | {"more": next(iter(shards))}}))
    with pytest.raises(ValueError, match=r"pytorch_model-00001-of-00002.bin lacks the tensor 'mor"):
        load_pretrained(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    with pytest.raises(ValueError, match=r"'../elsewhere.bin' found, expected the name of a .bin"):
        load_pretrained(folder)


def test_a_name_of_the_hub_says_how_to_fetch_it():
    with pytest.raises(FileNotFoundError, match=r"hf download nvidia/groupvit --local-dir group"):
        load_pretrained("nvidia/groupvit")


def test_what_cannot_be_read_says_what_it_holds(tmp_path):
    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"no state dict; found the entries {'optimizer': dict, 'e"
    ):
        load_pretrained(tmp_path / "a.pth")
    torch.save({"model": {"conv.weight": torch.ones(2, 3)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"not a GroupViT; found 1 tensors \(conv.weight \(2, 3\)"):
        load_pretrained(tmp_path / "a.pth")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a whole object and not its tensors"):
        load_pretrained(tmp_path / "a.pth")
    write_safetensors(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)}, {})
    with pytest.raises(ValueError, match=r"not a GroupViT; found 1 tensors \(x \(2,\)\)"):
        load_pretrained(tmp_path / "a.safetensors")
