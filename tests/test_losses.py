import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax import losses, parallel

B, K, D = 16, 3, 8
SCALE = jnp.log(1 / 0.07)


def log_softmax(x, axis):
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_global(image, text, logit_scale):
    image, text, logit_scale = (np.asarray(x, np.float64) for x in (image, text, logit_scale))
    logits = unit(image) @ unit(text).T * min(np.exp(logit_scale), 100)
    image_to_text = -np.mean([log_softmax(logits, 1)[i, i] for i in range(len(image))])
    text_to_image = -np.mean([log_softmax(logits, 0)[i, i] for i in range(len(image))])
    return (image_to_text + text_to_image) / 2


def reference_multi_label(image, prompts, logit_scale):
    image, prompts, logit_scale = (np.asarray(x, np.float64) for x in (image, prompts, logit_scale))
    num_prompts = prompts.shape[1]
    flat = unit(prompts).reshape(-1, prompts.shape[-1])
    logits = unit(image) @ flat.T * min(np.exp(logit_scale), 100)
    target = np.repeat(np.eye(len(image)), num_prompts, axis=1)
    image_to_text = -np.mean(np.sum(target / num_prompts * log_softmax(logits, 1), axis=1))
    text_to_image = -np.mean(np.sum(target * log_softmax(logits, 0), axis=0))
    return (image_to_text + text_to_image) / 2


def embeddings():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(B, D)).astype(np.float32)
    # Captions resemble their images, so that the losses and accuracies are not those of chance.
    prompts = image[:, None] + rng.normal(size=(B, K, D)).astype(np.float32)
    return jnp.asarray(image), jnp.asarray(prompts)


LOSSES = [
    pytest.param(losses.global_contrastive_loss, reference_global, False, id="global"),
    pytest.param(losses.multi_label_contrastive_loss, reference_multi_label, True, id="multi"),
]


def inputs(multi):
    image, prompts = embeddings()
    return image, prompts if multi else prompts[:, 0]


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("logit_scale", [SCALE, jnp.float32(5.0)], ids=["scale", "clipped"])
@pytest.mark.parametrize(("loss", "reference", "multi"), LOSSES)
def test_equals_equations(loss, reference, multi, logit_scale, num_devices):
    mesh = parallel.make_mesh(
        {"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:num_devices]
    )
    image, text = inputs(multi)
    sharded = jax.device_put((image, text), parallel.batch_sharding(mesh))
    assert len(sharded[0].sharding.device_set) == num_devices
    value, _ = jax.jit(loss)(*sharded, logit_scale)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(image, text, logit_scale), rtol=1e-6)


@pytest.mark.parametrize(("loss", "reference", "multi"), LOSSES)
def test_gradients_equal_finite_differences(loss, reference, multi):
    arguments = [np.asarray(x, np.float64) for x in (*inputs(multi), SCALE)]
    gradients = jax.jit(jax.grad(lambda *a: loss(*a)[0], argnums=(0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in arguments)
    )
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=arguments[i].shape)
        ends = [
            reference(*arguments[:i], arguments[i] + step * direction, *arguments[i + 1 :])
            for step in (1e-5, -1e-5)
        ]
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-4)


@pytest.mark.parametrize(("loss", "reference", "multi"), LOSSES)
def test_order_of_the_batch_does_not_matter(loss, reference, multi):
    image, text = inputs(multi)
    order = np.random.default_rng(2).permutation(B)
    gradient = jax.jit(jax.grad(lambda *a: loss(*a)[0]))
    np.testing.assert_allclose(
        gradient(image[order], text[order], SCALE), gradient(image, text, SCALE)[order], atol=1e-6
    )
    value = jax.jit(lambda *a: loss(*a)[0])
    np.testing.assert_allclose(
        value(image[order], text[order], SCALE), value(image, text, SCALE), rtol=1e-6
    )
    # The pairing does matter.
    assert abs(value(image[order], text, SCALE) - value(image, text, SCALE)) > 0.1


def test_one_prompt_is_the_global_loss():
    image, prompts = embeddings()
    multi, multi_metrics = losses.multi_label_contrastive_loss(image, prompts[:, :1], SCALE)
    single, metrics = losses.global_contrastive_loss(image, prompts[:, 0], SCALE)
    assert multi == single
    assert multi_metrics == metrics


def test_metrics_count_matches():
    image = jnp.eye(4)
    prompts = jnp.stack([image, image], axis=1)
    # Image 0 still likes its first prompt best; both its prompts are nearer to image 1.
    prompts = prompts.at[0].set(image[1] + jnp.asarray([[0.2], [0.1]]) * image[0])
    prompts = prompts.at[2].set(-image[2])
    _, metrics = losses.multi_label_contrastive_loss(image, prompts, jnp.float32(0))
    assert metrics["text_to_image_accuracy"] == 4 / 8
    assert metrics["image_to_text_accuracy"] == 3 / 4
    assert metrics["temperature"] == 1


def test_uniform_guess_and_clip():
    same = jnp.ones((B, D))
    loss, _ = losses.global_contrastive_loss(same, same, jnp.float32(0))
    np.testing.assert_allclose(loss, np.log(B), rtol=1e-6)
    assert losses.clipped_scale(jnp.float32(9)) == 100
    _, metrics = losses.global_contrastive_loss(same, same, jnp.float32(9))
    np.testing.assert_allclose(metrics["temperature"], 0.01)


def test_zero_embedding_keeps_loss_and_gradient_finite():
    image, prompts = embeddings()
    gradient_of = jax.jit(jax.value_and_grad(losses.global_contrastive_loss, has_aux=True))
    (value, _), gradient = gradient_of(image.at[0].set(0), prompts[:, 0], SCALE)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_half_precision_embeddings_are_compared_in_float32():
    image, prompts = embeddings()
    image, text = image.astype(jnp.bfloat16), prompts[:, 0].astype(jnp.bfloat16)
    value, _ = losses.global_contrastive_loss(image, text, SCALE)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        value, reference_global(image.astype(np.float32), text.astype(np.float32), SCALE), rtol=1e-6
    )
