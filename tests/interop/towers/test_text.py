"""Text models of CLIP and SigLIP as the text tower: parity with transformers' of random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.interop import initialise_text_from
from groupvit_jax.interop.towers.text import read_text_config
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
    return with_random_weights(transformers.CLIPTextModel(config))


@pytest.fixture(scope="module", params=["SiglipText", "Siglip2Text"])
def siglip(request):
    """A text model of SigLIP, with texts of `LENGTH` tokens."""
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=LENGTH, pad_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return with_random_weights(getattr(transformers, f"{request.param}Model")(config))


def with_random_weights(model):
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
        read_text_config(directory), context_length=LENGTH, end_of_text_id=VOCABULARY - 1
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


def test_features_of_siglip_are_those_of_transformers(tmp_path, siglip):
    siglip.save_pretrained(tmp_path)
    config = tiny.get_config().model
    config.text.update(read_text_config(tmp_path), end_of_text_id=1)
    assert config.text.context_length == LENGTH
    params, report = initialised(tmp_path, config)
    assert not report.initialised
    assert not report.unused
    rng, lengths = np.random.default_rng(0), ((3, 8, 5), (LENGTH, 2, 9), (4, 4, 4))
    texts = np.ones((3, 3, LENGTH), np.int32)
    for text, length in zip(texts.reshape(-1, LENGTH), np.ravel(lengths), strict=True):
        text[: length - 1] = rng.integers(2, VOCABULARY, length - 1)
    with torch.no_grad():
        ids = torch.from_numpy(texts.reshape(-1, LENGTH)).long()
        expected = siglip(input_ids=ids).pooler_output.numpy().reshape(3, 3, -1)
    packed = np.zeros((3, 3 * LENGTH), np.int32)  # each row's texts behind each other
    for row, of_row, ends in zip(packed, texts, np.cumsum(lengths, axis=1), strict=True):
        for text, length, end in zip(of_row, np.diff(ends, prepend=0), ends, strict=True):
            row[end - length : end] = text[:length]
    encoder = build_model(config).text_encoder
    apply = jax.jit(lambda *given: encoder.apply({"params": params}, *given))
    ends, places = jnp.asarray(np.cumsum(lengths, axis=1) - 1), jnp.arange(1, 3)
    limit = TOLERANCE * np.abs(expected).max()
    found = apply(jnp.asarray(packed), ends, places)
    assert np.abs(found[:, :3] - expected).max() < limit
    alone = apply(jnp.asarray(texts[:, 0]))
    assert np.abs(alone[:, 0] - expected[:, 0]).max() < limit
    with torch.no_grad():
        hidden = siglip(input_ids=ids.reshape(3, 3, -1)[:, 0]).last_hidden_state[:, 1:3]
        head = getattr(siglip, "text_model", siglip).head
        assert np.abs(found[:, 3:] - head(hidden).numpy()).max() < limit


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 32, "config.model.text.width is 64, expected 32"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', only 'quick_gelu' is supported"),
        ("model_type", "gpt2", "model_type is 'gpt2'"),
        ("model_type", "siglip_text_model", "hidden_act is 'quick_gelu', only 'gelu_pytorch_tanh'"),
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
