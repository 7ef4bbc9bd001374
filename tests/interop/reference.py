"""transformers' GroupViT with our weights; needs PyTorch."""

import numpy as np
import torch
import transformers

from groupvit_jax.interop import huggingface, verify
from groupvit_jax.interop.huggingface_config import from_model_config
from groupvit_jax.interop.layout import export_arrays, import_arrays
from groupvit_jax.interop.pretrained import to_host
from tests.interop.training import _split_qkv


def build(pretrained):
    """A `GroupViTModel` in evaluation mode."""
    model = transformers.GroupViTModel(
        transformers.GroupViTConfig(**from_model_config(pretrained.build_model()))
    )
    arrays = export_arrays(to_host(pretrained.variables), huggingface.names)
    arrays.pop("multi_label_logit_scale", None)
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def outputs(pretrained, images, tokens):
    """What `verify.our_outputs` gives, from transformers."""
    with torch.no_grad():
        found = verify.module_outputs(
            build(pretrained), torch.from_numpy(images), torch.from_numpy(tokens)
        )
    return {name: output.numpy() for name, output in found.items()}


def training_step(pretrained, images, tokens):
    """What `training.training_step` gives, from transformers in float64.

    In float32 its own gradients differ from those by up to 1e-3, more than ours.
    """
    model = build(pretrained).train().double()
    for module in model.modules():
        if type(module).__name__ == "GroupViTAssignAttention":
            module.eval()  # a hard assignment without noise
    output = model(
        input_ids=torch.from_numpy(tokens).long(),
        pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2).double(),
        return_loss=True,
    )
    output.loss.backward()
    ours = pretrained.build_model()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    after, _ = import_arrays(state, ours, huggingface.names, "state after the step")
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters()}
    statistics = {name: array for name, array in state.items() if "running_" in name}
    gradients, _ = import_arrays(gradients | statistics, ours, huggingface.names, "gradients")
    return (
        output.loss.item(),
        {name: array for name, array in after.items() if name.startswith("batch_stats")},
        _split_qkv(
            {
                name: array
                for name, array in gradients.items()
                if name.startswith("params/") and name != "params/multi_label_logit_scale"
            }
        ),
    )
