"""CLIP's text model as the text tower: parity with transformers' of random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.interop import initialise_text_from
from groupvit_jax.interop.towers.text import read_clip_text_config
from groupvit_jax.models import build_model
from tests.interop import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5
VOCABULARY, LENGTH, POSITIONS = 64, 16, 24


@pytest.fixture(scope="module")
def clip():
    """A text model whose every weight is random and of the trained size."""
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=POSITIONS, eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    model = transformers.CLIPTextModel(config)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        is_kernel = value.ndim == 2 and "embedding" not in name
        deviation = value.shape[1] ** -0.5 if is_kernel else 0.3
        noise = deviation * torch.randn(value.shape, generator=generator)
        value.data = noise + 1.0 * ("norm" in name and name.endswith("weight"))
    return model.eval()


def config_of(directory):
    config = tiny.get_config().model
    config.text.update(
        read_clip_text_config(directory), context_length=LENGTH, end_of_text_id=VOCABULARY - 1
    )
    return config


def initialised(directory, config):
    own = jax.tree.map(jnp.asarray, weights.random_pretrained(config, seed=1).variables)
    params, _, report = initialise_text_from(directory, own["params"], own["batch_stats"], config)
    return params["text_encoder"], report


def test_features_are_those_of_transformers(tmp_path, clip):
    clip.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    params, report = initialised(tmp_path, config)
    assert report.notes == (f"{POSITIONS} positions cut to {LENGTH}",)
    assert not report.initialised
    assert not report.unused
    rng, tokens = np.random.default_rng(0), np.zeros((4, LENGTH), np.int32)
    for row, length in zip(tokens, (3, 8, 12, LENGTH), strict=True):
        row[:length] = [*rng.integers(1, VOCABULARY - 1, length - 1), VOCABULARY - 1]
    with torch.no_grad():
        expected = clip(input_ids=torch.from_numpy(tokens).long()).pooler_output.numpy()
    encoder = build_model(config).text_encoder
    found = jax.jit(encoder.apply)({"params": params}, jnp.asarray(tokens))[:, 0]
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 32, "config.model.text.width is 64, expected 32"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', only 'quick_gelu' is supported"),
        ("model_type", "siglip_text_model", "model_type is 'siglip_text_model'"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, clip, field, value, message):
    clip.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ValueError, match=message):
        initialised(tmp_path, config)


def test_more_positions_than_the_file_has_are_refused(tmp_path, clip):
    clip.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    config.text.context_length = POSITIONS + 1
    with pytest.raises(ValueError, match=r"24 positions found, expected at least .* = 25"):
        initialised(tmp_path, config)
