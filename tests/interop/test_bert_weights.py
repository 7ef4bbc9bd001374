"""Parity with transformers' BertModel, and its weights in; needs PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.data.text.vocabulary import read_vocabulary
from groupvit_jax.interop import initialise_from, initialise_text_from
from groupvit_jax.interop.bert_weights import read_text_config
from groupvit_jax.interop.layout import flatten
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.models import build_model
from tests.interop import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5
LENGTH = 24
# Layers, width, heads and width of the MLP of the published sizes.
SIZES = {
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "tinybert": (4, 312, 12, 1200),
}
LARGE = {"base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "dog", "##s", "photo"]


def bert(size, seed=0):
    """A BertModel whose every weight is random and of the trained size."""
    layers, width, heads, hidden = size
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        is_scale = "LayerNorm.weight" in name
        is_kernel = value.ndim == 2 and "embeddings" not in name
        deviation = value.shape[1] ** -0.5 if is_kernel else 0.3
        noise = deviation * torch.randn(value.shape, generator=generator)
        value.data = noise + is_scale
    return model.eval()


def write(model, directory):
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return directory


def config_of(directory):
    config = tiny.get_config().model
    config.text = read_text_config(directory, LENGTH, PIECES.index("[SEP]"))
    return config


def random_tower(config, seed=1):
    own = weights.random_pretrained(config, seed).variables
    return jax.tree.map(jnp.asarray, own)


def texts(seed=0, batch_size=4):
    """Random texts of every length, with their masks."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((batch_size, LENGTH), np.int32)
    for row, length in zip(tokens, np.linspace(2, LENGTH, batch_size).astype(int), strict=True):
        row[:length] = [2, *rng.integers(4, len(PIECES), length - 2), 3]
    return tokens


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def check_parity(tmp_path, size, seed=0):
    model = bert(size, seed)
    config = config_of(write(model, tmp_path))
    own = random_tower(config)
    params, _, report = initialise_text_from(tmp_path, own["params"], own["batch_stats"], config)
    assert report.unused == ("pooler.dense.bias", "pooler.dense.weight")
    tokens = texts(seed)
    with torch.no_grad():
        mask = torch.from_numpy((tokens != 0).astype(np.int64))
        output = model(torch.from_numpy(tokens).long(), attention_mask=mask)
    expected = output.last_hidden_state[:, 0].numpy()
    encoder = build_model(config).text_encoder
    tower = {"params": params["text_encoder"]}
    found = jax.jit(encoder.apply)(tower, jnp.asarray(tokens))[:, 0]
    assert relative(found, expected) < TOLERANCE
    parts = [row[: list(row).index(3) + 1] for row in tokens]
    row, ends, overflow = pack_texts(parts, 4 * LENGTH, 3)
    assert overflow == 0
    packed = jax.jit(encoder.apply)(tower, jnp.asarray(row)[None], jnp.asarray(ends)[None])[0]
    assert relative(packed, expected) < TOLERANCE
    return relative(found, expected)


@pytest.mark.parametrize(("size", "seed"), [*((size, 0) for size in SIZES), ("tiny", 1)])
def test_features_are_those_of_transformers(tmp_path, size, seed):
    check_parity(tmp_path, SIZES[size], seed)


@pytest.mark.slow
@pytest.mark.parametrize("size", LARGE)
def test_features_of_the_large_sizes_are_those_of_transformers(tmp_path, size):
    check_parity(tmp_path, LARGE[size])


def test_gradients_are_those_of_transformers(tmp_path):
    model = bert(SIZES["tiny"]).double()
    config = config_of(write(model.float(), tmp_path))
    own = random_tower(config)
    params, _, _ = initialise_text_from(tmp_path, own["params"], own["batch_stats"], config)
    tokens = texts()
    mask = torch.from_numpy((tokens != 0).astype(np.int64))
    model = model.double()
    hidden = model(torch.from_numpy(tokens).long(), attention_mask=mask).last_hidden_state[:, 0]
    hidden.sin().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    directory = tmp_path / "gradients"
    reference = transformers.BertModel(model.config)
    reference.load_state_dict({**reference.state_dict(), **gradients})
    write(reference.float(), directory)
    expected, _, _ = initialise_text_from(directory, own["params"], own["batch_stats"], config)
    encoder = build_model(config).text_encoder

    def loss(tower):
        return jnp.sin(encoder.apply({"params": tower}, jnp.asarray(tokens))).sum()

    found = flatten(jax.jit(jax.grad(loss))(params["text_encoder"]))
    for name, gradient in flatten(expected["text_encoder"]).items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, atol=1e-4 * scale + 1e-6, err_msg=name)


@pytest.fixture
def directory(tmp_path):
    return write(bert(SIZES["tiny"]), tmp_path / "bert")


def start(directory, config):
    own = random_tower(config)
    return initialise_text_from(directory, own["params"], own["batch_stats"], config), own


def test_only_the_text_tower_is_replaced(directory):
    (params, batch_stats, report), own = start(directory, config_of(directory))
    for name, array in flatten(params).items():
        same = np.array_equal(array, flatten(own["params"])[name])
        assert same != name.startswith("text_encoder/"), name
    assert batch_stats is own["batch_stats"]
    assert set(report.loaded) == {
        f"params/{name}" for name in flatten(params) if name.startswith("text_encoder/")
    }


def test_names_with_heads_and_of_older_files_give_the_same(directory, tmp_path):
    from safetensors.numpy import load_file, save_file

    (expected, _, _), _ = start(directory, config_of(directory))
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in load_file(directory / "model.safetensors").items()
    }
    tensors["cls.predictions.bias"] = np.zeros(3, np.float32)
    save_file(tensors, directory / "model.safetensors")
    (found, _, report), _ = start(directory, config_of(directory))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert "cls.predictions.bias" in report.unused


def test_the_directory_tells_the_configuration_and_the_vocabulary(directory):
    config = config_of(directory).text
    assert config.to_dict() == {
        **dict(kind="bert", vocab_size=len(PIECES), width=128, num_layers=2, num_heads=2),
        **dict(mlp_ratio=4.0, context_length=LENGTH, end_of_text_id=3),
    }
    tokenizer = make_tokenizer(read_vocabulary("wordpiece", str(directory / "vocab.txt")), LENGTH)
    assert tokenizer(["dogs"])[0, :5].tolist() == [2, 30, 31, 3, 0]


def test_other_sizes_name_the_fields(directory):
    config = config_of(directory)
    config.text.update(width=64, num_layers=3)
    message = r"bert: config.model.text.width is 64, expected 128; .*num_layers is 3, expected 2"
    with pytest.raises(ValueError, match=message):
        start(directory, config)


def test_a_longer_context_than_its_positions_is_refused(directory):
    config = config_of(directory)
    config.text.context_length = 65
    with pytest.raises(ValueError, match=r"64 positions found, .*text.context_length = 65"):
        start(directory, config)


def test_another_tower_is_refused(directory):
    with pytest.raises(ValueError, match=r"model.text.kind is 'clip', expected 'bert' to take"):
        start(directory, tiny.get_config().model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "relu", r"config.json: hidden_act is 'relu', only 'gelu' is supported"),
        ("model_type", "gpt2", r"config.json: model_type is 'gpt2', only 'bert' or 'clip'"),
        ("hidden_size", None, r"config.json: no field hidden_size"),
    ],
)
def test_another_architecture_is_refused(directory, field, value, message):
    config = config_of(directory)
    path = directory / "config.json"
    values = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        start(directory, config)


def test_a_missing_tensor_and_a_missing_file_are_named(directory):
    from safetensors.numpy import load_file, save_file

    config = config_of(directory)
    tensors = load_file(directory / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.key.bias"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'encoder.layer.1.attention.self.key.bias' is mi"):
        start(directory, config)
    (directory / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"bert: none of model\.safetensors, .*, pytorch_model\.bin"
    ):
        start(directory, config)


@pytest.fixture
def sharded(directory, tmp_path):
    """The same BERT as transformers writes it in parts."""
    folder = tmp_path / "sharded"
    model = transformers.BertModel.from_pretrained(directory)
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    return folder


def test_a_bert_in_several_files_is_the_same(directory, sharded):
    (expected, _, _), _ = start(directory, config_of(directory))
    (found, _, report), _ = start(sharded, config_of(sharded))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert report.unused == ("pooler.dense.bias", "pooler.dense.weight")


def test_a_missing_part_and_a_misplaced_tensor_are_named(sharded):
    from safetensors.numpy import load_file, save_file

    config = config_of(sharded)
    part = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(part)
    name, array = tensors.popitem()
    save_file(tensors or {"other": array}, part)
    with pytest.raises(ValueError, match=rf"{part.name}: tensor '{name}' is missing, but model.s"):
        start(sharded, config)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part.name}: no such file, but .*places \d+ te"):
        start(sharded, config)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/tmp/out.safetensors", "below/out.safetensors", "a.bin", 3]
)
def test_parts_lie_beside_their_index(sharded, name):
    config = config_of(sharded)
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["pooler.dense.bias"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"found for tensor 'pooler.dense.bias', expected the nam"):
        start(sharded, config)


def test_an_index_without_a_map_is_named(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json: no 'weight_map', expected the file of each"):
        start(sharded, config_of(sharded))


def test_a_checkpoint_with_the_other_tower_gives_all_but_the_text_tower(directory, tmp_path):
    clip = weights.random_pretrained(tiny.get_config().model)
    save_pretrained(tmp_path / "export", clip, "safetensors")
    config = config_of(directory)
    own = random_tower(config)
    params, _, report = initialise_from(
        tmp_path / "export", own["params"], own["batch_stats"], config
    )
    sources = {"text_encoder": own, "image_encoder": clip.variables}
    for tower, source in sources.items():
        expected = source["params"][tower]
        jax.tree.map(np.testing.assert_array_equal, params[tower], expected)
    reasons = {w for n, w in report.initialised.items() if n.startswith("params/text_encoder/")}
    assert reasons == {"the file's text tower is clip"}


@pytest.mark.parametrize("kind", ["huggingface", "original"])
def test_formats_without_such_a_tower_refuse_it(directory, tmp_path, kind):
    pretrained = weights.random_pretrained(config_of(directory))
    with pytest.raises(ValueError, match=r"model.text.kind: 'bert', but .* only; export as safet"):
        save_pretrained(tmp_path / "out", pretrained, kind)
    assert not (tmp_path / "out").exists()
