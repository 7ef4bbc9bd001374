import json

import numpy as np
import pytest

from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.interop import load_pretrained, verify
from groupvit_jax.interop.hub_files import write_clip_tokenizer
from groupvit_jax.interop.huggingface import read_huggingface, write_huggingface
from groupvit_jax.interop.huggingface_config import from_model_config, to_model_config
from groupvit_jax.interop.tensor_file import read_safetensors, write_safetensors
from groupvit_jax.models import build_model
from tests.interop import weights

CAPTIONS = [
    "a photo of a cat",
    "Don't stop me now, it's 1234.5 km!!!",
    "naïve café — Würfel, smörgåsbord",
    "日本語 中文 русский العربية हिन्दी ทดสอบ",
    "😀👍🏽 #tag @user $5.00 <b>bold</b>",
    "<start_of_text> a\tb  c \N{REPLACEMENT CHARACTER}",
]


@pytest.fixture
def directory(small, tmp_path):
    write_huggingface(tmp_path / "hf", small)
    return tmp_path / "hf"


def edit_config(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def as_published(config):
    """As transformers writes a configuration: without what is ours."""
    del config["groupvit_jax"]


@pytest.mark.parametrize("case", ["gcc_yfcc", "gcc_redcaps", "one_stage", "three_stage"])
def test_out_and_in_again_keeps_every_bit(tmp_path, assert_identical, case):
    pretrained = weights.random_pretrained(weights.small_config(case))
    write_huggingface(tmp_path, pretrained)
    assert_identical(read_huggingface(tmp_path), pretrained)


def test_a_directory_of_transformers_gives_the_same_model(directory, small):
    edit_config(directory, as_published)
    found = read_huggingface(directory)
    assert found.model_config.image == small.model_config.image
    assert found.model_config.text == small.model_config.text
    assert found.model_config.projector == small.model_config.projector
    there, here = weights.flat(found), weights.flat(small)
    scale = here.pop("params/multi_label_logit_scale")
    assert there.pop("params/multi_label_logit_scale") == here["params/logit_scale"] != scale
    assert "multi_label_logit_scale" in found.notes[0]
    for name, array in here.items():
        assert there[name].tobytes() == array.tobytes(), name


def test_another_width_of_the_texts_mlps_goes_out_and_comes_in(tmp_path):
    config = weights.small_config()
    config.text.mlp_ratio = 2.0
    pretrained = weights.random_pretrained(config)
    write_huggingface(tmp_path, pretrained)
    edit_config(tmp_path, as_published)
    found = read_huggingface(tmp_path)
    assert found.model_config.text == config.text
    kernel = found.variables["params"]["text_encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (32, 64)


def test_transformers_loads_the_directory_and_agrees(directory, small):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, report = transformers.GroupViTModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    inputs = verify.random_inputs(small)
    expected = verify.transformers_outputs(directory, *inputs)
    for row in verify.compare(verify.our_outputs(small, *inputs), expected):
        assert row.relative <= verify.TOLERANCE, row


def test_a_model_that_transformers_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = from_model_config(build_model(weights.small_config("three_stage")))
    model = transformers.GroupViTModel(transformers.GroupViTConfig(**config)).eval()
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path)
    images, tokens = verify.random_inputs(pretrained)
    with torch.no_grad():
        output = model(torch.from_numpy(tokens).long(), torch.from_numpy(images).movedim(3, 1))
    found = verify.our_outputs(pretrained, images, tokens)
    # Its own forward pass normalises the embeddings.
    for name, expected in (("image", output.image_embeds), ("text", output.text_embeds)):
        embedding = found[f"{name} embedding"]
        unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit, expected.numpy(), atol=2e-5)


def test_the_older_weights_file_is_read(directory, small):
    torch = pytest.importorskip("torch")
    tensors = read_safetensors(directory / "model.safetensors")
    state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    state["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    here, there = weights.flat(small), weights.flat(read_huggingface(directory))
    assert all(there[name].tobytes() == array.tobytes() for name, array in here.items())


def test_the_processor_loads_with_the_statistics_of_the_training(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = weights.small_config()
    config.text.update(vocab_size=49408, end_of_text_id=49407)
    write_huggingface(tmp_path, weights.random_pretrained(config))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    grey = np.full((40, 60, 3), 128, np.uint8)
    batch = processor(text=["a photo of a cat"], images=grey, return_tensors="np", padding=True)
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(batch["pixel_values"][0, :, 5, 5], expected, atol=1e-6)
    assert batch["input_ids"].tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_published_configurations_are_understood(tmp_path):
    """As the hub has them: written by transformers 4.21, before its end-of-text id was right."""
    image = {"depths": [6, 3, 3], "num_group_tokens": [64, 8, 0], "num_output_groups": [64, 8, 0]}
    config = {
        "model_type": "groupvit",
        "projection_dim": 256,
        "text_config": {"eos_token_id": 2, "hidden_size": 256},
        "text_config_dict": None,
        "vision_config": image | {"hidden_size": 384, "assign_mlp_ratio": [0.5, 4]},
        "vision_config_dict": None,
    }
    found = to_model_config(config, tmp_path)
    expected = weights.published_config()
    assert found.image == expected.image
    assert found.text == expected.text
    assert found.projector == expected.projector
    assert found.keys() == expected.keys()


def test_sincos_positions_are_written_as_learned(tmp_path):
    config = weights.small_config()
    config.image.position_embedding = "sincos"
    pretrained = weights.random_pretrained(config)
    write_huggingface(tmp_path, pretrained)
    found = read_huggingface(tmp_path)
    assert found.model_config.image.position_embedding == "learned"
    inputs = verify.random_inputs(pretrained)
    expected = verify.our_outputs(pretrained, *inputs)
    for row in verify.compare(verify.our_outputs(found, *inputs), expected):
        assert row.relative <= 1e-6, row


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.5),
        ("assignment", "soft"),
        ("width_factors", (1, 2, 2)),
        ("num_output_groups", (8, 2)),
    ],
)
def test_a_model_that_transformers_lacks_is_refused_by_field(field, value):
    config = weights.small_config()
    config.image[field] = value
    with pytest.raises(ValueError, match=rf"model\.image.*{field}.*transformers"):
        from_model_config(build_model(config))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "layer_norm_eps", 1e-6),
        ("vision_config", "assign_mlp_ratio", [1, 4]),
        ("vision_config", "num_output_groups", [8, 2, 2]),
        ("vision_config", "image_size", [32, 64]),
        ("text_config", "hidden_act", "gelu"),
    ],
)
def test_a_configuration_we_lack_is_refused_by_field(directory, section, field, value):
    edit_config(directory, as_published)
    edit_config(directory, lambda config: config[section].update({field: value}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{field}"):
        read_huggingface(directory)


NAME = "vision_model.encoder.stages.0.layers.0.self_attn.k_proj.weight"


def edit_tensors(directory, change):
    tensors = read_safetensors(directory / "model.safetensors")
    change(tensors)
    write_safetensors(directory / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), r"is missing \(1 in all\)"),
        (lambda t: t.update({NAME: t[NAME][:, :5]}), r"has shape \(32, 5\), expected \(32, 32\)"),
        (lambda t: t.update({NAME + ".more": t[NAME]}), "isn't part of the model"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(directory, change, message):
    edit_tensors(directory, change)
    with pytest.raises(ValueError, match=message) as error:
        read_huggingface(directory)
    assert f"{directory / 'model.safetensors'}: tensor '{NAME}" in str(error.value)


def test_a_truncated_weights_file_names_the_first_incomplete_tensor(directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor '.*' ends at byte"):
        read_huggingface(directory)
    path.write_bytes(content[:50])
    with pytest.raises(ValueError, match="description of its tensors is incomplete"):
        read_huggingface(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no|none of model\.safetensors"):
        read_huggingface(directory)


def test_transformers_tokenizes_alike_from_the_files_written(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_clip_tokenizer(tmp_path, 77)
    assert len(json.loads((tmp_path / "vocab.json").read_text())) == 49408
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for caption, row in zip(CAPTIONS, ClipTokenizer(77)(CAPTIONS), strict=True):
        expected = theirs(caption, truncation=True)["input_ids"]
        assert row[row > 0].tolist() == expected, caption
