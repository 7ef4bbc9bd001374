"""What of a batch each loss of the step compares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax import losses, parallel
from groupvit_jax.losses import IDENTICAL_TEXTS
from groupvit_jax.train.contrastive_task import (
    LossSettings,
    contrastive_loss,
    local_loss,
    pooled_loss,
)
from groupvit_jax.typing import TwoTowerOutput
from tests.devices import first_devices
from tests.train.test_step import MESHES, host_batch, stand_in, tiny_config

B, N, D = 8, 3, 4


def parts_of_batch(config, **more):
    """Embeddings, their mesh and what there is to know of 8 captions with 2 prompts each."""
    rng = np.random.default_rng(0)
    image, text, segments = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, D), (B, N, D), (B, 5, D))
    )
    scale = jnp.float32(1)
    output = TwoTowerOutput(image, text, scale, scale, segments=segments, **more)
    # The first prompt of image 2 and both of image 5 are the captions.
    ends = np.tile([3, 7, 10], (B, 1))
    ends[2, 1] = ends[5, 1:] = 3
    ids = rng.permutation(B * N).reshape(B, N)
    ids[2, 1], ids[5, 1:] = ids[2, 0], ids[5, 0]
    mesh = parallel.make_mesh(MESHES["data"], first_devices(8))
    batch = {"text_ends": jnp.asarray(ends), "text_ids": ids}
    return output, LossSettings(**config.loss), mesh, batch


def aligned(output, words, mask, ids=None):
    ids = None if ids is None else jnp.asarray(ids)
    mask = jnp.asarray(mask)
    return losses.local_alignment_loss(output.segments, words, mask, output.logit_scale, ids=ids)


@pytest.mark.parametrize("identical", IDENTICAL_TEXTS)
def test_captions_that_stand_in_for_prompts_are_no_words(identical):
    config = tiny_config()
    config.loss.update(local_words="prompts", identical_texts=identical)
    output, *given, batch = parts_of_batch(config)
    ids = batch["text_ids"]
    ids[1, 1:] = ids[0, :0:-1]  # the same words in another order
    ids[2, 2] = ids[3, 1]  # one word in common
    value, metrics = local_loss(output, *given, batch)
    mask = np.ones((B, 2), bool)
    mask[2, 0] = mask[5] = False
    sets = np.array([0, 0, *range(2, B)]) if identical == "positives" else None
    expected, _ = aligned(output, output.text[:, 1:], mask, sets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics["texts_with_words"] == 7 / 8


@pytest.mark.parametrize("identical", IDENTICAL_TEXTS)
def test_words_of_captions_end_with_them(identical):
    config = tiny_config()
    config.loss.update(local_words="tokens", identical_texts=identical)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(B, 6, D)), jnp.float32)
    output, *given, batch = parts_of_batch(config, tokens=tokens)
    ends, ids = np.asarray(batch["text_ends"]).copy(), batch["text_ids"]
    ends[:3, 0] = [1, 2, 7]  # the caption's tokens stand between its first, 0, and its last
    ids[6, 0] = ids[7, 0]
    value, metrics = local_loss(output, *given, batch | {"text_ends": jnp.asarray(ends)})
    number = np.array([0, 1, 6, *[2] * (B - 3)])
    same = np.array([*range(7), 6]) if identical == "positives" else None
    expected, _ = aligned(output, tokens, np.arange(6) < number[:, None], same)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics["texts_with_words"] == 7 / 8


def test_pooled_texts_without_words_are_captions():
    config = tiny_config()
    config.loss.update(local_words="prompts", pooled_weight=1.0, pooled_segments=2)
    output, *given, batch = parts_of_batch(config)
    value, _ = pooled_loss(output, *given, batch)
    mask = np.ones((B, 2), bool)
    mask[2, 0] = mask[5] = False
    words, captions = output.text[:, 1:], output.text[:, 0]
    expected, _ = losses.pooled_loss(
        output.segments, words, jnp.asarray(mask), captions, output.logit_scale, 2
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_identical_texts_may_be_positives():
    output, settings, mesh, batch = parts_of_batch(tiny_config())
    batch["text_ids"][1, 0] = batch["text_ids"][0, 0]
    batch["text_ids"][3, 1] = batch["text_ids"][4, 2]
    parts = [[x[:, :1], x[:, 1:]] for x in (output.text, jnp.asarray(batch["text_ids"]))]
    values = {}
    for kind in IDENTICAL_TEXTS:
        changed = dataclasses.replace(settings, identical_texts=kind)
        values[kind], _ = contrastive_loss(output, changed, mesh, batch)
    for kind, ids in (("negatives", None), ("positives", parts[1])):
        scales = [output.logit_scale] * 2
        found = losses.contrastive_losses(output.image, parts[0], scales, ids=ids)
        np.testing.assert_allclose(values[kind], sum(value for value, _ in found), rtol=1e-6)
    assert abs(values["positives"] - values["negatives"]) > 1e-3


def test_negatives_need_no_ids():
    """Nor do they compute with them."""
    output, settings, mesh, _ = parts_of_batch(tiny_config())
    total = functools.partial(contrastive_loss, settings=settings, mesh=mesh, batch={})
    assert np.isfinite(jax.jit(total)(output)[0])


def test_weight_of_the_local_alignment():
    config, run = stand_in(**{"loss.local_weight": 0.5, "loss.local_words": "prompts"})
    metrics = run(host_batch(config, 0))
    parts = metrics["global/loss"], metrics["multi_label/loss"], 0.5 * metrics["local/loss"]
    np.testing.assert_allclose(metrics["loss"], sum(parts), rtol=1e-6)
    assert metrics["local/loss"] > 0.1
    assert metrics["local/texts_with_words"] == 1
    assert 0 <= metrics["local/image_to_text_accuracy"] <= 1
