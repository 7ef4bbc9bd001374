import numpy as np
import pytest

from groupvit_jax.interop import load_pretrained, verify
from groupvit_jax.interop.original import write_original
from groupvit_jax.interop.torch_file import read_torch_file
from groupvit_jax.interop.torch_writer import write_torch_file
from tests.interop import weights

# Some names of the published files, by ours.
PUBLISHED_NAMES = {
    "params/image_encoder/patch_embed/proj/kernel": "img_encoder.patch_embed.proj.weight",
    "params/image_encoder/position_embedding": "img_encoder.pos_embed",
    "params/image_encoder/stages_0/group_token": "img_encoder.layers.0.group_token",
    "params/image_encoder/stages_1/blocks_0/attn/qkv/bias": (
        "img_encoder.layers.1.blocks.0.attn.qkv.bias"
    ),
    "params/image_encoder/stages_1/group_projector/norm/scale": (
        "img_encoder.layers.1.group_projector.0.weight"
    ),
    "params/image_encoder/stages_1/group_projector/mlp/fc2/kernel": (
        "img_encoder.layers.1.group_projector.1.fc2.weight"
    ),
    "params/image_encoder/stages_0/downsample/pre_assign_attn/attn/q_proj/kernel": (
        "img_encoder.layers.0.downsample.pre_assign_attn.attn.q_proj.weight"
    ),
    "params/image_encoder/stages_0/downsample/norm_new_x/scale": (
        "img_encoder.layers.0.downsample.norm_new_x.weight"
    ),
    "params/image_encoder/norm/bias": "img_encoder.norm.bias",
    "params/text_encoder/token_embedding/embedding": "text_encoder.token_embedding.weight",
    "params/text_encoder/position_embedding": "text_encoder.positional_embedding",
    "params/text_encoder/blocks_1/attn/qkv/kernel": (
        "text_encoder.transformer.resblocks.1.attn.in_proj_weight"
    ),
    "params/text_encoder/blocks_1/attn/qkv/bias": (
        "text_encoder.transformer.resblocks.1.attn.in_proj_bias"
    ),
    "params/text_encoder/blocks_1/attn/proj/kernel": (
        "text_encoder.transformer.resblocks.1.attn.out_proj.weight"
    ),
    "params/text_encoder/blocks_0/norm2/scale": "text_encoder.transformer.resblocks.0.ln_2.weight",
    "params/text_encoder/blocks_0/mlp/fc1/bias": (
        "text_encoder.transformer.resblocks.0.mlp.c_fc.bias"
    ),
    "params/text_encoder/blocks_0/mlp/fc2/kernel": (
        "text_encoder.transformer.resblocks.0.mlp.c_proj.weight"
    ),
    "params/text_encoder/norm/scale": "text_encoder.ln_final.weight",
    "params/image_projector/linear_hidden/kernel": "img_projector.linear_hidden.0.weight",
    "batch_stats/image_projector/norm/var": "img_projector.linear_hidden.1.running_var",
    "params/text_projector/norm/scale": "text_projector.linear_hidden.1.weight",
    "params/text_projector/linear_out/bias": "text_projector.linear_out.bias",
    "params/logit_scale": "logit_scale",
    "params/multi_label_logit_scale": "multi_label_logit_scale",
}


@pytest.fixture
def path(small, tmp_path):
    write_original(tmp_path / "model.pth", small)
    return tmp_path / "model.pth"


def rewrite(path, change=lambda tensors: None):
    """Without our entry, as the published files are."""
    tensors, _ = read_torch_file(path)
    change(tensors)
    write_torch_file(path, tensors, {})


@pytest.mark.parametrize("case", ["gcc_yfcc", "gcc_redcaps", "one_stage", "three_stage"])
def test_out_and_in_again_keeps_every_bit(tmp_path, assert_identical, case):
    pretrained = weights.random_pretrained(weights.small_config(case))
    write_original(tmp_path / "model.pth", pretrained)
    assert_identical(load_pretrained(tmp_path / "model.pth"), pretrained)


def test_names_and_axes_are_those_of_the_published_files(path, small):
    tensors, _ = read_torch_file(path)
    ours = weights.flat(small)
    for name, published in PUBLISHED_NAMES.items():
        array = ours[name]
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif name.endswith("kernel"):
            array = array.T
        if "projector.linear" in published and array.ndim == 2:
            array = array[:, :, None]  # a convolution
        np.testing.assert_array_equal(tensors[published], array)
    assert tensors["img_projector.linear_hidden.1.num_batches_tracked"].shape == ()


def test_pytorch_reads_what_is_written(path, small):
    torch = pytest.importorskip("torch")
    state = torch.load(path, weights_only=True)["model"]
    prefix = "img_projector.linear_hidden.1."
    norm = torch.nn.BatchNorm1d(64)
    norm.load_state_dict({k.removeprefix(prefix): state[k] for k in state if prefix in k})
    ours = small.variables["batch_stats"]["image_projector"]["norm"]["mean"]
    np.testing.assert_array_equal(norm.running_mean.numpy(), ours)


@pytest.mark.parametrize("case", ["gcc_yfcc", "one_stage", "three_stage", "patch_8"])
def test_sizes_are_found_from_the_tensors(tmp_path, case):
    """In the published files, whose heads are 64 channels wide."""
    config = weights.published_config(case)
    config.text.update(num_layers=2, vocab_size=600, end_of_text_id=599)
    config.image.depths = (1, 2, 1, 1)[: len(config.image.depths)]
    config.projector.hidden_dim = 64
    pretrained = weights.random_pretrained(config)
    write_original(tmp_path / "model.pth", pretrained)
    rewrite(tmp_path / "model.pth")
    found = load_pretrained(tmp_path / "model.pth").model_config
    assert found.image == config.image
    assert found.text == config.text
    assert found.projector == config.projector
    assert not found.share_logit_scale


def test_a_file_without_the_second_scale_is_read_and_told(path, small):
    rewrite(path, lambda tensors: tensors.pop("multi_label_logit_scale"))
    found = load_pretrained(path, small.model_config)
    assert "params/multi_label_logit_scale: not in" in found.notes[0]
    params = found.variables["params"]
    assert params["multi_label_logit_scale"] == params["logit_scale"]


def test_unusual_heads_need_the_configuration(path, small):
    rewrite(path)
    with pytest.raises(ValueError, match=r"img_encoder is 32 wide.*--config"):
        load_pretrained(path)
    found = load_pretrained(path, small.model_config)
    assert found.model_config.image.num_heads == small.model_config.image.num_heads


def test_half_precision_and_both_convolutions_are_accepted(path, small):
    def change(tensors):
        for name, array in tensors.items():
            if array.dtype == np.float32:
                tensors[name] = array.astype(np.float16)
        for part in ("linear_hidden.0", "linear_out"):
            name = f"text_projector.{part}.weight"
            tensors[name] = tensors[name][..., None]  # a 2-D convolution

    rewrite(path, change)
    found = load_pretrained(path, small.model_config)
    assert {array.dtype for array in weights.flat(found).values()} == {np.dtype(np.float32)}
    for name, array in weights.flat(small).items():
        np.testing.assert_array_equal(weights.flat(found)[name], array.astype(np.float16), name)


def test_the_same_outputs_come_from_both_published_forms(tmp_path, small):
    from groupvit_jax.interop.huggingface import write_huggingface

    write_original(tmp_path / "model.pth", small)
    write_huggingface(tmp_path / "hf", load_pretrained(tmp_path / "model.pth"))
    inputs = verify.random_inputs(small)
    outputs = verify.our_outputs(load_pretrained(tmp_path / "hf"), *inputs)
    for name, expected in verify.our_outputs(small, *inputs).items():
        np.testing.assert_array_equal(outputs[name], expected)


NAME = "img_encoder.layers.0.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), "is missing"),
        (lambda t: t.update({NAME: t[NAME][:-1]}), r"has shape \(95, 32\), expected \(96, 32\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(path, small, change, message):
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(path, small.model_config)
    assert str(error.value).startswith(f"{path}: tensor '{NAME}")


def test_a_tensor_more_is_told(path, small):
    rewrite(path, lambda tensors: tensors.update({NAME + "s": tensors[NAME]}))
    assert load_pretrained(path, small.model_config).notes == (f"{path}: {NAME}s is not used",)


def test_a_file_of_another_model_is_refused(tmp_path):
    write_torch_file(tmp_path / "other.pth", {"fc.weight": np.zeros((2, 2), np.float32)}, {})
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj\.weight' is missing, so not a GroupViT"
    ):
        load_pretrained(tmp_path / "other.pth")


def test_stages_of_other_widths_are_refused(tmp_path):
    config = weights.small_config()
    config.image.width_factors = (1, 2, 2)
    with pytest.raises(ValueError, match=r"model\.image\.width_factors"):
        write_original(tmp_path / "model.pth", weights.random_pretrained(config))
