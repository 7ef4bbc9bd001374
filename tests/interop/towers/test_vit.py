"""Plain ViTs as the image tower: parity with transformers' models of random weights."""

import json
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.interop import initialise_image_from
from groupvit_jax.interop.layout import flatten
from groupvit_jax.interop.tensor_file import write_safetensors
from groupvit_jax.interop.towers.vit import read_image_config
from groupvit_jax.models import build_model
from groupvit_jax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tests.interop import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
DEPTH, WIDTH, SIDE, PATCH = 3, 128, 32, 8
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Names of configuration and model, and the normalisation of the model's images.
KINDS = {
    "dino": ("ViTConfig", "ViTModel", IMAGENET),
    "augreg": ("ViTConfig", "ViTModel", HALF),
    "mae": ("ViTMAEConfig", "ViTMAEModel", IMAGENET),
    "dinov2": ("Dinov2Config", "Dinov2Model", IMAGENET),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", IMAGENET),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", CLIP),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", HALF),
}


def vit(kind, **changes):
    """A model whose every weight is random and of the trained size."""
    config_name, model_name, _ = KINDS[kind]
    fields = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2)
    fields |= dict(intermediate_size=4 * WIDTH, image_size=SIDE, patch_size=PATCH, **changes)
    config = getattr(transformers, config_name)(**fields, attn_implementation="eager")
    model = getattr(transformers, model_name)(config)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        is_scale = ("norm" in name and name.endswith("weight")) or "lambda" in name
        deviation = value[0].numel() ** -0.5 if value.ndim in (2, 4) else 0.3
        value.data = deviation * torch.randn(value.shape, generator=generator) + 1.0 * is_scale
    return model.eval()


def write(model, kind, directory):
    model.save_pretrained(directory)
    mean, std = KINDS[kind][2]
    described = {"image_mean": list(mean), "image_std": list(std)}
    (directory / "preprocessor_config.json").write_text(json.dumps(described))
    return directory


def features_after_each_block(model, pixels):
    """Of the patches alone, as the stages of the image tower see them, after the final norm."""
    model = getattr(model, "vision_model", model)
    embeddings = model.embeddings
    with torch.no_grad():
        if hasattr(embeddings, "patch_embeddings"):
            patches = embeddings.patch_embeddings.projection(pixels)
            positions = embeddings.position_embeddings[0]
        else:
            patches = embeddings.patch_embedding(pixels)
            positions = embeddings.position_embedding.weight
        x = patches.flatten(2).transpose(1, 2)
        x = x + positions[len(positions) - x.shape[1] :]
        x = model.pre_layrnorm(x) if hasattr(model, "pre_layrnorm") else x
        norm = model.layernorm if hasattr(model, "layernorm") else model.post_layernorm
        encoder = getattr(model, "encoder", model)
        blocks = encoder.layer if hasattr(encoder, "layer") else encoder.layers
        for block in blocks:
            x = (
                block(x, attention_mask=None)
                if "mask" in str(signature(block.forward))
                else block(x)
            )
            x = x[0] if isinstance(x, tuple) else x
            yield norm(x).numpy()


def config_of(path, depths=(DEPTH,), **changes):
    """`config.model` of a tower without groups that takes the ViT."""
    config = tiny.get_config().model
    stages = dict(depths=depths, num_group_tokens=(0,), num_output_groups=())
    config.image.update(**{**read_image_config(path), "image_size": SIDE, **stages, **changes})
    return config


def initialised(path, config):
    own = jax.tree.map(jnp.asarray, weights.random_pretrained(config, seed=1).variables)
    params, _, report = initialise_image_from(path, own["params"], own["batch_stats"], config)
    return params["image_encoder"], report


def check_parity(path, model, normalisation):
    pixels = np.random.default_rng(0).uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    mean, std = (np.array(values, np.float32) for values in normalisation)
    theirs = torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).copy())
    ours = jnp.asarray((pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), jnp.float32)
    params, report = initialised(path, config_of(path))
    for depth, expected in enumerate(features_after_each_block(model, theirs), start=1):
        config = config_of(path)
        config.image.depths = (depth,)
        stage = {f"blocks_{i}": params["stages_0"][f"blocks_{i}"] for i in range(depth)}
        encoder = build_model(config).image_encoder
        found = jax.jit(encoder.apply)({"params": {**params, "stages_0": stage}}, ours).segments
        assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
    assert depth == DEPTH
    return report


@pytest.mark.parametrize("kind", KINDS)
def test_features_after_every_block_are_those_of_transformers(tmp_path, kind):
    model = vit(kind)
    report = check_parity(write(model, kind, tmp_path), model, KINDS[kind][2])
    assert not report.initialised
    folded = [note for note in report.notes if "gamma" in note]
    assert len(folded) == (2 * DEPTH if kind in ("dinov2", "registers") else 0)
    dropped = {"clip": "embeddings.class_embedding", "registers": "embeddings.register_tokens"}
    assert dropped.get(kind, "") in ("", *report.unused)


def timm_state(model, directory):
    """The tensors of transformers' ViT as timm, DINO and MAE name them."""
    from safetensors.numpy import load_file

    model.save_pretrained(directory)
    saved = load_file(directory / "model.safetensors")
    own = {
        "cls_token": saved["embeddings.cls_token"],
        "pos_embed": saved["embeddings.position_embeddings"],
        "patch_embed.proj.weight": saved["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": saved["embeddings.patch_embeddings.projection.bias"],
        "head.weight": np.ones((5, WIDTH), np.float32),
    }
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for leaf in ("weight", "bias"):
        own[f"norm.{leaf}"] = saved[f"layernorm.{leaf}"]
        for i in range(DEPTH):
            layer, block = f"encoder.layer.{i}", f"blocks.{i}"
            for ours, theirs in names.items():
                own[f"{block}.{ours}.{leaf}"] = saved[f"{layer}.{theirs}.{leaf}"]
            parts = (f"{layer}.attention.attention.{n}.{leaf}" for n in ("query", "key", "value"))
            own[f"{block}.attn.qkv.{leaf}"] = np.concatenate([saved[part] for part in parts])
    return own


def npz_of(state):
    """The arrays of the JAX implementation, whose heads are an axis of their own."""
    heads = (2, WIDTH // 2)
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(DEPTH):
        block, own = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for number, norm in ((0, "norm1"), (2, "norm2")):
            arrays[f"{own}/LayerNorm_{number}/scale"] = state[f"{block}.{norm}.weight"]
            arrays[f"{own}/LayerNorm_{number}/bias"] = state[f"{block}.{norm}.bias"]
        for number, layer in ((0, "fc1"), (1, "fc2")):
            arrays[f"{own}/MlpBlock_3/Dense_{number}/kernel"] = state[
                f"{block}.mlp.{layer}.weight"
            ].T
            arrays[f"{own}/MlpBlock_3/Dense_{number}/bias"] = state[f"{block}.mlp.{layer}.bias"]
        attention = f"{own}/MultiHeadDotProductAttention_1"
        qkv = np.split(state[f"{block}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{block}.attn.qkv.bias"], 3)
        for name, kernel, bias in zip(("query", "key", "value"), qkv, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = kernel.T.reshape(WIDTH, *heads)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads)
        out = state[f"{block}.attn.proj.weight"].T.reshape(*heads, WIDTH)
        arrays[f"{attention}/out/kernel"] = out
        arrays[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
    return arrays


def write_file(kind, state, folder):
    """One file, or timm's directory, of a state by timm's names; and its normalisation."""
    folder.mkdir(exist_ok=True)
    if kind == "dino.pth":
        torch.save({n: torch.from_numpy(v) for n, v in state.items()}, folder / kind)
        return folder / kind, IMAGENET
    if kind == "mae.pth":
        decoder = {"decoder_embed.weight": torch.ones(2)}
        tensors = {n: torch.from_numpy(v) for n, v in state.items()} | decoder
        torch.save({"model": tensors}, folder / kind)
        return folder / kind, IMAGENET
    if kind == "vit.npz":
        np.savez(folder / kind, **npz_of(state))
        return folder / kind, HALF
    write_safetensors(folder / "model.safetensors", state)
    described = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    content = {"architecture": "vit_small_patch16_224", "pretrained_cfg": described}
    (folder / "config.json").write_text(json.dumps(content))
    return folder, HALF


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """transformers' ViT with timm's epsilon, and its tensors by timm's names."""
    model = vit("dino", layer_norm_eps=1e-6)
    return model, timm_state(model, tmp_path_factory.mktemp("dino"))


@pytest.mark.parametrize("kind", ["dino.pth", "mae.pth", "vit.npz", "timm"])
def test_files_without_a_description_are_read_too(tmp_path, dino, kind):
    model, state = dino
    path, normalisation = write_file(kind, state, tmp_path / "file")
    report = check_parity(path, model, normalisation)
    assert {"cls", "cls_token"} & set(report.unused)


def test_blocks_go_to_the_stages_in_order_and_the_rest_stays_new(tmp_path, dino):
    path, _ = write_file("dino.pth", dino[1], tmp_path)
    grouped = dict(num_group_tokens=(8, 4), num_output_groups=(8, 4))
    config = config_of(path, (2, 1), image_size=2 * SIDE, **grouped)
    before = weights.random_pretrained(config, seed=1).variables["params"]["image_encoder"]
    found, report = initialised(path, config)
    for i, place in enumerate(("stages_0/blocks_0", "stages_0/blocks_1", "stages_1/blocks_0")):
        kernel = flatten(found)[f"{place}/mlp/fc1/kernel"]
        np.testing.assert_array_equal(kernel, dino[1][f"blocks.{i}.mlp.fc1.weight"].T)
    assert found["position_embedding"].shape == (1, 64, WIDTH)
    assert "resized pos_embed: 4x4 to 8x8 patches, bicubic" in report.notes
    new = {name.removeprefix("params/image_encoder/") for name in report.initialised}
    assert "stages_0/group_token" in new
    assert all("downsample" in n or "group_" in n for n in new)
    for name in new:
        np.testing.assert_array_equal(flatten(found)[name], flatten(before)[name])


def test_one_line_names_all_fields_that_have_to_be_others(tmp_path, dino):
    path, _ = write_file("dino.pth", dino[1], tmp_path)
    config = tiny.get_config().model
    own = jax.tree.map(jnp.asarray, weights.random_pretrained(config).variables)
    with pytest.raises(ValueError, match=r"dino.pth: config.model.image") as error:
        initialise_image_from(path, own["params"], own["batch_stats"], config)
    for part in ("image.width is 32, expected 128", "image.patch_norm is True, expected False",
                 "image.norm_eps is 1e-05, expected 1e-06"):  # fmt: skip
        assert part in str(error.value)
    config = config_of(path, (2,))
    with pytest.raises(ValueError, match=r"image.depths is \(2,\), expected '3 blocks in all'"):
        initialise_image_from(path, own["params"], own["batch_stats"], config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), "'blocks.1.mlp.fc2.bias' is missing"),
        (lambda s: s.pop("pos_embed"), "'pos_embed' is missing"),
        (lambda s: s.pop("patch_embed.proj.weight"), "'patch_embed.proj.weight' is missing"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": np.ones(64, np.float32)}),
         "'blocks.0.attn.q_norm.weight' isn't part of a plain ViT's block"),
        (lambda s: s.update({"pos_embed": np.ones((1, 15, WIDTH), np.float32)}),
         "has 15 positions"),
        (lambda s: s.update({"blocks.2.mlp.fc1.weight": np.ones((4, WIDTH), np.float32)}),
         "blocks_2/mlp/fc1/kernel has shape"),
        (lambda s: s.update({"norm_pre.weight": np.ones(WIDTH, np.float32)}), "transformers' dir"),
    ],
)  # fmt: skip
def test_a_wrong_or_partial_file_is_one_error(tmp_path, dino, damage, message):
    state = dict(dino[1])
    config = config_of(write_file("dino.pth", state, tmp_path / "whole")[0])
    damage(state)
    path, _ = write_file("dino.pth", state, tmp_path / "damaged")
    with pytest.raises(ValueError, match=message) as error:
        initialised(path, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "swin", "model_type 'swin' found, expected one of vit"),
        ("hidden_act", "relu", "hidden_act 'relu' found, expected 'gelu'"),
        ("use_swiglu_ffn", True, "use_swiglu_ffn is true"),
    ],
)
def test_other_models_are_refused(tmp_path, field, value, message):
    write(vit("dinov2"), "dinov2", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ValueError, match=message):
        read_image_config(tmp_path)


def test_a_vit_needs_to_say_how_images_are_normalised(tmp_path):
    write(vit("dino"), "dino", tmp_path)
    described = tmp_path / "preprocessor_config.json"
    described.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"image_mean is \[0.5\], expected three numbers"):
        read_image_config(tmp_path)
    described.unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json: no such file"):
        read_image_config(tmp_path)
