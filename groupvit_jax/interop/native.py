"""Native export: `model.safetensors` with "/"-joined variable names, and `config.json`."""

from pathlib import Path

from groupvit_jax.interop.layout import check_variables, unflatten
from groupvit_jax.interop.pretrained import Pretrained, described_tokenizer, to_description, to_host
from groupvit_jax.interop.tensor_file import read_safetensors, write_safetensors
from groupvit_jax.runs.configuration import config_from_dict
from groupvit_jax.runs.files import read_json, write_json

FORMAT = "groupvit_jax"


def write_native(directory: Path, pretrained: Pretrained) -> None:
    """Write an export; arrays keep their bits, name and axes."""
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", to_host(pretrained.variables))
    write_json(
        directory / "config.json", {"format": FORMAT, **to_description(pretrained, directory)}
    )


def read_native(directory: Path) -> Pretrained:
    """Read an export.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a tensor, named in the message, doesn't fit the configuration.
    """
    config = read_json(directory / "config.json")
    model_config = config_from_dict(config["model"])
    path = directory / "model.safetensors"
    tensors = read_safetensors(path)
    class_names = tuple(config.get("class_names", ()))
    tokenizer = described_tokenizer(config, directory / "config.json")
    found = Pretrained(model_config, unflatten(tensors), tokenizer, class_names=class_names)
    check_variables(tensors, found.build_model(), path)
    return found
