"""Translates between our model configuration and `GroupViTModel`'s `config.json`."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from groupvit_jax.interop.model_config import make_model_config
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.layers import LAYER_NORM_EPS
from groupvit_jax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from groupvit_jax.models.two_tower import TwoTower, text_tower

# (our field, Hugging Face's, its default there)
_IMAGE_FIELDS = (
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 16),
    ("width", "hidden_size", 384),
    ("num_heads", "num_attention_heads", 6),
    ("depths", "depths", (6, 3, 3)),
    ("num_group_tokens", "num_group_tokens", (64, 8, 0)),
    ("num_output_groups", "num_output_groups", (64, 8, 8)),
    ("assign_eps", "assign_eps", 1.0),
)
_TEXT_FIELDS = (
    ("vocab_size", "vocab_size", 49408),
    ("context_length", "max_position_embeddings", 77),
    ("width", "hidden_size", 256),
    ("num_layers", "num_hidden_layers", 12),
    ("num_heads", "num_attention_heads", 4),
    ("end_of_text_id", "eos_token_id", 49407),
)
# Building a model takes time by its layers, and nobody's has more.
_MAX_LAYERS, _MAX_SIZE = 200, 2**20
# Before transformers 4.33, configurations had this value and meant the highest id.
_LEGACY_END_OF_TEXT_ID = 2


def to_model_config(config: dict[str, Any], path: Path) -> ConfigDict:
    """Translate a `config.json` of `GroupViTModel`.

    Args:
      config: content of the file.
      path: path of the file, for error messages.

    Raises:
      ValueError: our model doesn't support a field; the message names it.
    """
    if config.get("model_type") != "groupvit":
        kind = config.get("model_type")
        hint = " (the text tower of a BERT goes into config.text_init_from)" * (kind == "bert")
        raise ValueError(f"{path}: model_type {kind!r}, expected 'groupvit'{hint}")
    image_config, text_config = (_section(config, name) for name in ("vision", "text"))
    image = {ours: _plain(image_config.get(n, default)) for ours, n, default in _IMAGE_FIELDS}
    for field in ("image_size", "patch_size"):
        image[field] = _side(image[field], field, path)
    text = {ours: text_config.get(n, default) for ours, n, default in _TEXT_FIELDS}
    hidden = image_config.get("intermediate_size", 1536)
    image["mlp_ratio"] = hidden / image["width"]
    image["num_output_groups"] = image["num_output_groups"][: _num_grouping(image)]
    if text["end_of_text_id"] == _LEGACY_END_OF_TEXT_ID:
        text["end_of_text_id"] = text["vocab_size"] - 1
    _check_fixed(image_config, "vision_config", path, hidden_act="gelu", num_channels=3)
    ratios = [0.5, image["mlp_ratio"]]
    _check_fixed(image_config, "vision_config", path, assign_mlp_ratio=ratios)
    text["mlp_ratio"] = text_config.get("intermediate_size", 1024) / text["width"]
    _check_fixed(text_config, "text_config", path, hidden_act="quick_gelu")
    _check_group_tokens(image, str(path))
    projector = {
        "hidden_dim": config.get("projection_intermediate_dim", 4096),
        "output_dim": config.get("projection_dim", 256),
    }
    for section, fields in (("vision", image), ("text", text), ("projector", projector)):
        _check_sizes(fields, f"{path}: {section}")
    return make_model_config(image, text, projector)


def _check_sizes(fields: dict[str, Any], where: str) -> None:
    """Check that all fields are numbers, or tuples of numbers, that a model can have."""
    for field, value in fields.items():
        values = value if isinstance(value, tuple) else (value,)
        kinds = (int, float) if field in ("assign_eps", "mlp_ratio") else (int,)
        if not all(type(v) in kinds and 0 <= v <= _MAX_SIZE for v in values):
            found = str(value)[:60]
            raise ValueError(f"{where}: {field} is {found}, expected numbers up to {_MAX_SIZE:,}")
        if field in ("depths", "num_layers") and sum(values) > _MAX_LAYERS:
            raise ValueError(f"{where}: {sum(values)} layers, expected up to {_MAX_LAYERS}")


def from_model_config(model: TwoTower) -> dict[str, Any]:
    """Translate our configuration for `GroupViTModel`.

    Raises:
      ValueError: it doesn't support a field; the message names it.
    """
    image, text = model.image_encoder, model.text_encoder
    check_text_tower(model, "transformers' GroupViT")
    _check_exportable(image)
    vision_config = {name: _json(getattr(image, ours)) for ours, name, _ in _IMAGE_FIELDS}
    text_config = {name: getattr(text, ours) for ours, name, _ in _TEXT_FIELDS}
    # One entry per stage; unused for stages without grouping.
    unused = len(image.depths) - len(image.num_output_groups)
    vision_config["num_output_groups"] += [image.num_output_groups[-1]] * unused
    vision_config |= {
        "model_type": "groupvit_vision_model",
        "intermediate_size": int(image.width * image.mlp_ratio),
        "num_hidden_layers": sum(image.depths),
        "assign_mlp_ratio": [0.5, image.mlp_ratio],
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    text_config |= {
        "model_type": "groupvit_text_model",
        "intermediate_size": int(text.width * text.mlp_ratio),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        # CLIP's start token is the one before its end token, the last.
        "bos_token_id": text.vocab_size - 2,
        "pad_token_id": 0,
    }
    return {
        "model_type": "groupvit",
        "architectures": ["GroupViTModel"],
        "dtype": "float32",
        "projection_dim": model.image_projector.out_dim,
        "projection_intermediate_dim": model.image_projector.hidden_dim,
        "vision_config": vision_config,
        "text_config": text_config,
    }


def check_text_tower(model: TwoTower, target: str) -> None:
    """Raise ValueError unless the text tower is CLIP's, the only one that the target has."""
    if (kind := text_tower(model.text_encoder)) != "clip":
        raise ValueError(
            f"model.text.kind: {kind!r}, but {target} has CLIP's text tower only; export as "
            "safetensors, stablehlo or onnx"
        )


def processor_config(image_size: int) -> dict[str, Any]:
    """Return an image processor with the statistics and interpolation of training."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a tower's fields; old files repeat them in a second section that takes precedence."""
    first, second = config.get(f"{name}_config"), config.get(f"{name}_config_dict")
    return (first or {}) | (second or {})


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _side(value: int | tuple[int, ...], field: str, path: Path) -> int:
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) > 1:
        raise ValueError(f"{path}: vision_config.{field} is {value}, only squares are supported")
    return sides.pop()


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _num_grouping(image: dict[str, Any]) -> int:
    return sum(n > 0 for n in image["num_group_tokens"])


def _check_fixed(config: dict[str, Any], section: str, path: Path, **expected: Any) -> None:
    for field, value in {**expected, "layer_norm_eps": LAYER_NORM_EPS}.items():
        found = _json(config.get(field, value))
        if found != value:
            raise ValueError(f"{path}: {section}.{field} is {found!r}, only {value!r} is supported")


def _check_group_tokens(image: dict[str, Any], where: str) -> None:
    """Check a restriction: Hugging Face sizes a projector by the groups of the previous stage."""
    tokens, groups = image["num_group_tokens"], image["num_output_groups"]
    for i in range(1, _num_grouping(image)):
        if tokens[i - 1] != groups[i - 1]:
            raise ValueError(
                f"{where}: num_group_tokens {tokens} and num_output_groups {groups}, but "
                f"transformers' GroupViT needs as many groups as group tokens in stage {i - 1}"
            )


def check_plain_options(image: ImageEncoder, target: str) -> None:
    """Raise ValueError for an encoder with what plain ViTs have otherwise, which a target lacks."""
    published = ImageEncoder()
    for field in ("patch_norm", "pre_norm", "activation", "norm_eps"):
        found, expected = getattr(image, field), getattr(published, field)
        if found != expected:
            raise ValueError(
                f"model.image.{field}: {found!r}, but {target} knows only {expected!r}; export as "
                "safetensors or stablehlo"
            )


def _check_exportable(image: ImageEncoder) -> None:
    only: dict[str, tuple] = {
        "temperature": (1.0,),
        "assignment": ("gumbel", "hard"),
        "width_factors": ((), (1,) * len(image.depths)),
        "position_embedding": ("learned",),
    }
    check_plain_options(image, "transformers' GroupViT")
    for field, values in only.items():
        if (found := getattr(image, field)) not in values:
            raise ValueError(
                f"model.image.{field}: {found!r}, but transformers' GroupViT knows only "
                f"{' or '.join(map(repr, values))}"
            )
    fields = ("num_group_tokens", "num_output_groups")
    _check_group_tokens({name: getattr(image, name) for name in fields}, "model.image")
