import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax import optim, parallel
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.models.layers import example_keys
from groupvit_jax.models.two_tower import build_model
from groupvit_jax.train import contrastive_task, forward
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.step import NormsOfLoggedSteps, make_train_step
from groupvit_jax.train.tasks import task_of
from groupvit_jax.typing import ImageFeatures, TwoTowerOutput
from tests.bounds import nudged
from tests.devices import first_devices
from tests.train import agreement

NUM_STEPS = 20
MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "data": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 2, "fsdp": 4, "tensor": 1},
    "tensor": {"data": 4, "fsdp": 1, "tensor": 2},
}


def tiny_config():
    config = tiny.get_config()
    # One grouping stage and one text layer: a step is compiled for each mesh.
    config.model.image.update(depths=(1, 1), num_group_tokens=(8, 0), num_output_groups=(8,))
    config.model.text.update(vocab_size=64, end_of_text_id=63, context_length=8, num_layers=1)
    config.data.packed_length = 24
    # At the published rate 20 steps of Adam on a batch of 16 blow rounding up, until a segment
    # goes to another group.
    config.optimizer.learning_rate = 4e-4
    return config


def host_batch(config, seed):
    """Images of one colour each under coarse noise, with texts that name the colour."""
    rng = np.random.default_rng(seed)
    shapes = task_of(config).batch_shapes(config)
    colors = rng.integers(0, 256, size=(*shapes["index"].shape, 3), dtype=np.uint8)
    noise = rng.integers(0, 128, size=(len(colors), 4, 4, 3), dtype=np.uint8)
    texts = np.zeros((*shapes["text_ends"].shape, config.model.text.context_length), np.int32)
    texts[..., :3] = 1 + colors[:, None] // 8
    texts[..., 3] = rng.integers(33, 60, size=texts.shape[:2])
    texts[..., 4] = 63
    texts[2::5, -1:] = texts[2::5, :1]  # a caption that stands in for a prompt
    image = colors[:, None, None] // 2 + noise.repeat(8, axis=1).repeat(8, axis=2)
    batch = {"image": image, "index": np.arange(len(image), dtype=np.int32)}
    batch["text_ids"] = texts[..., 3]  # the word after the color's
    if "superpixels" in shapes:
        batch["superpixels"] = rng.integers(0, 4, shapes["superpixels"].shape, np.int32)
    if "bank_nouns" in shapes:
        batch["bank_nouns"] = rng.integers(-1, 4, shapes["bank_nouns"].shape, np.int32)
    return batch | packed(texts, config)


def packed(texts, config):
    rows = [pack_texts(list(each), config.data.packed_length, 63) for each in texts]
    fields = zip(("text", "text_ends", "text_overflow"), zip(*rows, strict=True), strict=True)
    return {name: np.stack(values).astype(np.int32) for name, values in fields}


class Run:
    """A model, its sharded state and its step on one mesh."""

    def __init__(self, config, sizes, model):
        self.mesh = parallel.make_mesh(sizes, first_devices(np.prod(list(sizes.values()))))
        shapes = task_of(config).batch_shapes(config)
        params = state_lib.abstract_params(model, shapes)
        self.schedule = optim.make_schedule(
            config.optimizer.learning_rate,
            NUM_STEPS,
            2,
            start=config.optimizer.warmup_learning_rate,
            end=config.optimizer.final_learning_rate,
            batch_size_ratio=config.train.batch_size / config.optimizer.reference_batch_size,
        )
        optimizer = optim.make_optimizer(config.optimizer, self.schedule, params)
        self.state, self.shardings = state_lib.create_sharded_state(
            model, optimizer, jax.random.key(1), shapes, self.mesh, config.parallel.rules,
            averaged=bool(config.optimizer.ema_decay),
        )  # fmt: skip
        loss_fn = contrastive_task.make_contrastive_loss(model, config, self.mesh)
        groups, decay = config.optimizer.groups, config.optimizer.ema_decay
        step = make_train_step(
            loss_fn, optimizer, self.schedule, self.mesh, self.shardings, groups, decay
        )
        self.step = step.lower(self.state, shapes).compile()

    def __call__(self, batch):
        before = self.state
        batch = parallel.to_global_batch(self.mesh, batch)
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.step(before, batch)
        self.donated = all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        return jax.device_get(metrics)


@pytest.fixture(scope="module")
def runs():
    config = tiny_config()
    # Noise of all kinds is on.
    assert config.model.image.assignment == "gumbel"
    assert config.model.image.drop_path_rate > 0
    assert config.data.augment.random_erasing > 0
    batches = [host_batch(config, step % 4) for step in range(NUM_STEPS)]
    result = {name: Run(config, sizes, build_model(config.model)) for name, sizes in MESHES.items()}
    one = result["one"]
    states, one.history, one.bounds = agreement.record(one, batches)
    one.first_batch_stats = jax.device_get(states[1].batch_stats)
    for name, run in result.items():
        if name == "one":
            continue
        run.history = [run(batches[0])]  # from a state of its own
        run.first_batch_stats = jax.device_get(run.state.batch_stats)
        for state, batch in zip(states[1:], batches[1:], strict=True):
            run.state = agreement.place(run, state)
            run.history.append(run(batch))
    return result


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_losses_do_not_depend_on_the_mesh(runs, name):
    one, names = runs["one"], ("loss", "global/loss", "multi_label/loss")
    agreement.assert_steps_agree(runs[name].history, one.history, one.bounds, names)


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_running_statistics_are_global(runs, name):
    # After one step: later, Adam moves what has no gradient, such as biases before BatchNorm, by
    # the sign of rounding errors.
    expected = runs["one"].first_batch_stats
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        runs[name].first_batch_stats,
        expected,
    )
    assert np.abs(expected["image_projector"]["norm"]["mean"]).max() > 1e-3


@pytest.mark.parametrize("name", MESHES)
def test_state_keeps_its_shardings(runs, name):
    run = runs[name]
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, run.state, run.shardings))
    assert len(run.state.step.sharding.device_set) == run.mesh.size


@pytest.mark.parametrize("name", MESHES)
def test_old_state_is_donated(runs, name):
    assert runs[name].donated


def test_fsdp_exchanges_weights_and_no_activations(runs):
    program = runs["fsdp"].step.as_text()
    collective = r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter)(?:-start)?\("
    results = "\n".join(re.findall(collective, program))
    assert "f32[32,96]" in results  # the image encoder's qkv kernel is gathered
    # Images' and texts' tokens [B, S, C]; gradients of group tokens start with 1. The losses
    # exchange the texts' embeddings, [B, N, D].
    tokens = re.findall(r"\w+\[(?!1,)\d+,\d+,\d+\]", results)
    assert set(tokens) <= {"f32[16,4,32]"}


def test_it_learns(runs):
    history = runs["one"].history
    first, last = (np.mean([m["loss"] for m in h]) for h in (history[:3], history[-3:]))
    assert last < first - 0.3


def test_metrics(runs):
    run = runs["one"]
    for i, metrics in enumerate(run.history):
        assert all(value.dtype == np.float32 and value.shape == () for value in metrics.values())
        assert np.isfinite(list(metrics.values())).all()
        np.testing.assert_allclose(metrics["learning_rate"], run.schedule(i), rtol=1e-5)
        assert 1 <= metrics["groups_in_use/stage_0"] <= 8
        assert 1 / 8 <= metrics["largest_group/stage_0"] <= 1
        assert 0 <= metrics["assignment_entropy/stage_0"] <= 1
    first = run.history[0]
    np.testing.assert_allclose(first["loss"], first["global/loss"] + first["multi_label/loss"])
    np.testing.assert_allclose(first["global/temperature"], 0.07, rtol=1e-5)
    np.testing.assert_allclose(first["multi_label/temperature"], 0.07, rtol=1e-5)
    assert set(first) == {
        "loss",
        *(
            f"{loss}/{name}"
            for loss in ("global", "multi_label")
            for name in ("loss", "image_to_text_accuracy", "text_to_image_accuracy", "temperature")
        ),
        *("gradient_norm", "learning_rate"),
        *("groups_in_use/stage_0", "largest_group/stage_0", "assignment_entropy/stage_0"),
        "group_cosine",
        "text_overflow",
    }
    assert run.state.step == NUM_STEPS


SCALES = ("logit_scale", "multi_label_logit_scale")


class Counter(nn.Module):
    """Stands in for BatchNorm."""

    @nn.compact
    def __call__(self, train):
        count = self.variable("batch_stats", "count", jnp.zeros, ())
        count.value += train


class StandIn(nn.Module):
    """Two linear towers with noise: what the step needs of a model, quick to compile."""

    def setup(self):
        self.image, self.text = nn.Dense(4), nn.Dense(4)
        self.norm = Counter()
        self.scales = [self.param(name, nn.initializers.zeros, ()) for name in SCALES]

    def __call__(self, images, text, ends, *, train):
        features, texts = self.encode(images, text, ends)
        return self.project(features.embedding, texts, train=train)

    def encode(self, images, text, ends, *, noise_ids=None):
        x = self.image(images.mean(axis=(1, 2)))
        if noise_ids is not None:
            for name in ("gumbel", "drop_path"):
                keys = example_keys(self.make_rng(name), noise_ids)
                x += jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        texts = jnp.take_along_axis(text, ends - 1, axis=1)[..., None]
        y = self.text(texts.astype(jnp.float32))
        return ImageFeatures(x, x[:, None], (jnp.ones((len(text), 2, 3)),)), y

    def project(self, image, text, segments=None, *, train):
        self.norm(train)
        return TwoTowerOutput(image, text, *self.scales, segments=segments)


def stand_in(**changes):
    config = tiny_config()
    config.data.augment.random_erasing = 0.0
    config.update_from_flattened_dict(changes)
    return config, Run(config, MESHES["data"], StandIn())


def padded_forward(model, images, texts):
    """The model's training pass with each text in a row of its own."""
    B, N, T = texts.shape
    features = model.image_encoder(images, noise_ids=jnp.arange(B))
    text = model.text_encoder(texts.reshape(B * N, T))[:, 0]
    return TwoTowerOutput(
        model.image_projector(features.embedding, train=True),
        model.text_projector(text, train=True).reshape(B, N, -1),
        model.logit_scale,
        model.multi_label_logit_scale,
        features,
    )


def random_variables(model, shapes):
    """Weights of the size of trained ones: fresh ones magnify rounding a hundred times."""
    init = functools.partial(state_lib.init_variables, model, jax.random.key(0), shapes)
    leaves, tree = jax.tree.flatten(jax.jit(init)())
    rng = np.random.default_rng(1)
    noise = [0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return tree.unflatten([leaf + n for leaf, n in zip(leaves, noise, strict=True)])


@pytest.mark.parametrize(("num_nouns", "num_devices"), [(0, 1), (3, 8)])
def test_packed_texts_give_the_loss_and_gradients_of_padded_ones(num_nouns, num_devices):
    config = tiny_config()
    config.data.num_nouns = num_nouns
    config.model.text.num_layers = 2
    model = build_model(config.model)
    T, B = config.model.text.context_length, config.train.batch_size
    rng = np.random.default_rng(0)
    texts = rng.integers(1, 60, size=(B, 1 + num_nouns, T)).astype(np.int32)
    ends = rng.integers(2, 6, size=texts.shape[:2])  # at most 4 x 6 tokens a row
    ends[::4, 0] = T - 1  # captions of the greatest length
    ends[::4, 1:] = 4
    texts[np.arange(T) == ends[..., None]] = 63
    texts[np.arange(T) > ends[..., None]] = 0
    texts[1::3, 2:] = texts[1::3, :1]  # captions that stand in for prompts
    batch = packed(texts, config)
    assert not batch["text_overflow"].any()
    images = rng.normal(size=(B, 32, 32, 3)).astype(np.float32)
    variables = random_variables(model, task_of(config).batch_shapes(config))
    rngs = {"gumbel": jax.random.key(1), "drop_path": jax.random.key(2)}

    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, first_devices(num_devices))

    @functools.partial(jax.jit, static_argnames="method")
    def run(params, *inputs, method):
        settings = contrastive_task.LossSettings(**config.loss)

        def loss(params):
            given = {**variables, "params": params}
            train = {} if method else {"train": True}
            output, updated = model.apply(
                given, *inputs, **train, method=method, rngs=rngs, mutable=["batch_stats"]
            )
            return contrastive_task.contrastive_loss(output, settings, mesh, {})[0], updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {"loss": value, "gradients": gradients, **updated}

    inputs = {"images": images, "texts": texts, **batch}
    inputs = parallel.to_global_batch(mesh, inputs)
    params = jax.device_put(variables["params"], parallel.replicated(mesh))
    expected = run(params, inputs["images"], inputs["texts"], method=padded_forward)
    found = run(params, inputs["images"], inputs["text"], inputs["text_ends"], method=None)
    moved = []
    for units in (16, -16):
        near = jax.device_put(nudged(params, units), parallel.replicated(mesh))
        moved.append(run(near, inputs["images"], inputs["texts"], method=padded_forward))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected["gradients"]))
    agreement.assert_leaves_agree(found, expected, moved, largest)


def test_overflow_is_in_the_metrics():
    config, run = stand_in()
    batch = host_batch(config, 0)
    assert run(batch)["text_overflow"] == 0
    batch["text_overflow"][:4] = [1, 3, 0, 2]
    assert run(batch)["text_overflow"] == 3 / 16


def test_noise_is_a_function_of_key_and_step():
    config, run = stand_in()
    batch = host_batch(config, 0)

    def loss(**changes):
        state = jax.tree.map(jnp.copy, run.state).replace(**changes)
        return run.step(state, parallel.to_global_batch(run.mesh, batch))[1]["loss"]

    first = loss()
    assert loss() == first
    assert loss(step=run.state.step + 1) != first
    assert loss(key=jax.device_put(jax.random.key(9), run.state.key.sharding)) != first


def test_kinds_of_noise_are_independent():
    _, run = stand_in()
    keys = forward.noise_keys(run.state)
    data = {tuple(np.asarray(jax.random.key_data(key))) for key in (*keys.values(), run.state.key)}
    assert len(data) == 4
    assert set(keys) == {"drop_path", "gumbel", "random_erasing"}


def test_erasing_follows_the_config():
    losses = {}
    for probability in (0.0, 1.0):
        config, run = stand_in(**{"data.augment.random_erasing": probability})
        losses[probability] = run(host_batch(config, 0))["loss"]
    assert losses[0.0] != losses[1.0]


def test_no_prompts_no_multi_label_loss():
    config, run = stand_in(**{"data.num_nouns": 0})
    before = float(run.state.params["multi_label_logit_scale"])
    metrics = run(host_batch(config, 0))
    assert not any(name.startswith("multi_label") for name in metrics)
    assert metrics["loss"] == metrics["global/loss"]
    assert run.state.params["multi_label_logit_scale"] == before
    assert run.state.params["logit_scale"] != 0


def test_weights():
    config, run = stand_in(**{"loss.global_weight": 0.5, "loss.multi_label_weight": 2.0})
    metrics = run(host_batch(config, 0))
    expected = 0.5 * metrics["global/loss"] + 2 * metrics["multi_label/loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_batch_stats_come_back():
    config, run = stand_in()
    run(host_batch(config, 0))
    run(host_batch(config, 1))
    assert run.state.batch_stats["norm"]["count"] == 2


def test_norms_of_logged_steps():
    config, run = stand_in()
    step = NormsOfLoggedSteps(run.step, first_step=2, num_steps=7, every_steps=2)
    batch = parallel.to_global_batch(run.mesh, host_batch(config, 0))
    found = {}
    for number in range(3, 8):
        before = jax.device_get(run.state.params)
        with jax.transfer_guard("disallow"):
            run.state, found[number] = step(run.state, batch)
    after = jax.device_get(run.state.params)
    # Every second step and the last one.
    assert [n for n, metrics in found.items() if "update_norm" in metrics] == [4, 6, 7]
    metrics = found[7]

    def norm(tree):
        return np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))

    np.testing.assert_allclose(metrics["parameter_norm"], norm(after), rtol=1e-5)
    update = jax.tree.map(np.subtract, after, before)
    np.testing.assert_allclose(metrics["update_norm"], norm(update), rtol=1e-5)
    assert metrics["gradient_norm"] > 0


def test_not_finite_shows_in_the_metrics():
    config, run = stand_in()
    kernel = run.state.params["image"]["kernel"]
    run.state.params["image"]["kernel"] = jax.device_put(kernel.at[0, 0].set(np.nan))
    metrics = run(host_batch(config, 0))
    assert not np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["gradient_norm"])


def test_group_statistics():
    first = np.zeros((3, 4, 6), np.float32)
    first[0, 1] = 1  # one group takes all six patches
    first[1, [0, 0, 0, 2, 2, 3], range(6)] = 1  # three groups
    first[2] = 1 / 4  # undecided, which counts for the first
    second = np.zeros((3, 2, 4), np.float32)
    second[:, 0, :3] = second[:, 1, 3] = 1
    segments = np.zeros((3, 2, 5), np.float32)
    segments[:, :, 0] = 2
    segments[1, 1] = [0, 3, 0, 0, 0]
    segments[2, 1, 0] = -1
    given = map(jnp.asarray, (segments[:, 0], segments))
    features = ImageFeatures(*given, (jnp.asarray(first), jnp.asarray(second)))
    found = forward.group_statistics(features)
    expected = {
        "groups_in_use/stage_0": [1, 3, 1],
        "largest_group/stage_0": [1, 3 / 6, 1],
        "assignment_entropy/stage_0": [0, 0, 1],
        "groups_in_use/stage_1": [2, 2, 2],
        "largest_group/stage_1": [1, 5 / 6, 1],  # of the patches, through both stages
        "assignment_entropy/stage_1": [0, 0, 0],
        "group_cosine": [1, 0, -1],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_the_sigmoid_loss_trains_scale_and_bias():
    config = tiny_config()
    config.loss.kind = "sigmoid"
    config.model.update(initial_logit_bias=-10.0, initial_temperature=0.1)
    model = build_model(config.model)
    run = Run(config, MESHES["data"], model)
    names = (*SCALES, "logit_bias", "multi_label_logit_bias")
    before = {name: float(run.state.params[name]) for name in names}
    assert before["multi_label_logit_bias"] == -10
    np.testing.assert_allclose(before["logit_scale"], np.log(10), rtol=1e-6)
    history = [run(host_batch(config, step % 4)) for step in range(6)]
    # -log sigmoid(10 - 10) or so of the own pair, next to nothing of the others.
    assert 5 < history[0]["global/loss"] < 12
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(run.state.params[name] != before[name] for name in names)


def test_the_softmax_loss_has_no_bias():
    config = tiny_config()
    shapes = state_lib.abstract_params(
        build_model(config.model), task_of(config).batch_shapes(config)
    )
    assert {name for name in shapes if "logit" in name} == set(SCALES)
