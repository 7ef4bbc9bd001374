"""One training step's loss, statistics and gradients, by our names."""

import functools

import jax
import numpy as np

from groupvit_jax.interop.layout import flatten
from groupvit_jax.losses import contrastive_losses
from groupvit_jax.models import build_model

# Nothing before a layer that removes a shift can learn one, so these gradients are zero but for
# rounding: keys' biases (softmax over keys), the assignment's queries' (softmax over groups),
# biases of an MLP over tokens (a LayerNorm over channels follows), and what precedes BatchNorm.
ZERO_GRADIENTS = (
    r"attn/k_proj/bias$|assign/q_proj/bias$|(group_projector/mlp|mlp_inter)/fc2/bias$|"
    r"encoder/norm/bias$|projector/linear_hidden/bias$"
)


@functools.cache
def _step_of(model):
    @jax.jit
    def step(variables, images, tokens):
        def loss(params):
            output, updates = model.apply(
                {**variables, "params": params},
                images,
                tokens,
                (tokens == model.text_encoder.end_of_text_id).argmax(axis=1)[:, None],
                train=True,
                mutable=["batch_stats"],
                rngs={"drop_path": jax.random.key(0)},
            )
            ((value, _),) = contrastive_losses(output.image, [output.text], [output.logit_scale])
            return value, updates["batch_stats"]

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, statistics, gradients

    return step


def training_step(pretrained, images, tokens):
    """Loss, statistics by path and gradients by path."""
    step = _step_of(build_model(pretrained.model_config))
    loss, statistics, gradients = step(pretrained.variables, images, tokens)
    to_numpy = functools.partial(jax.tree.map, np.asarray)
    return (
        float(loss),
        to_numpy(flatten({"batch_stats": statistics})),
        _split_qkv(to_numpy(flatten({"params": gradients}))),
    )


def _split_qkv(gradients):
    """Queries, keys and values apart: the keys' bias has no gradient, the others' have."""
    apart = {}
    for name, gradient in gradients.items():
        parts = np.split(gradient, 3, axis=-1) if "/qkv/" in name else [gradient]
        names = [name.replace("qkv", f"{p}_proj") for p in "qkv"] if parts[1:] else [name]
        apart.update(zip(names, parts, strict=True))
    return apart


def check_gradients(found, expected, zero_pattern_search):
    """Cosine and relative error of every gradient; returns the worst of both."""
    assert found.keys() == expected.keys()
    largest = max(np.linalg.norm(gradient) for gradient in expected.values())
    worst_cosine, worst_error = 1.0, 0.0
    for name, theirs in expected.items():
        ours, theirs = found[name].ravel().astype(float), theirs.ravel().astype(float)
        if zero_pattern_search(name):
            assert np.linalg.norm(theirs) < 1e-6 * largest, name
            assert np.linalg.norm(ours) < 1e-6 * largest, name
            continue
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert cosine >= 0.99999, f"{name}: cosine {cosine}"
        assert error <= 1e-3, f"{name}: relative error {error}"
        worst_cosine, worst_error = min(worst_cosine, cosine), max(worst_error, error)
    return worst_cosine, worst_error
