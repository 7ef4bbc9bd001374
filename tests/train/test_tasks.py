import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax import losses, optim, parallel
from groupvit_jax.interop import initialise_from, load_pretrained
from groupvit_jax.models import build_model
from groupvit_jax.models.grouping import resize_maps
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.models.segmentation import with_segment_head
from groupvit_jax.scenes import dataset
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.loop import train
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import TASKS, task_of
from tests.devices import first_devices
from tests.train import agreement, toy

NAMES = ("sky", "sea", "sand", "boat", "kite")
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (4, 1, 2)}


def masks_config(**optimizer):
    config = tiny.get_config()
    config.task = "segmentation"
    config.segmentation.class_names = NAMES
    config.model.image.update(depths=(1, 1), num_group_tokens=(8, 0), num_output_groups=(8,))
    config.optimizer.update(learning_rate=4e-3, **optimizer)
    return config


def host_batch(seed=0):
    """Quarters of the image in the colours of their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(NAMES), (16, 2, 2)).astype(np.uint8)
    mask = classes.repeat(16, 1).repeat(16, 2)
    image = rng.integers(0, 40, (16, 32, 32, 3), np.uint8) + 50 * mask[..., None]
    mask[:, :4] = 255
    return {"image": image, "mask": mask, "index": np.arange(16, dtype=np.int32)}


class Run:
    """The model, its sharded state and its step on one mesh, as a run has them."""

    def __init__(self, config, sizes):
        axes = dict(zip(parallel.AXES, sizes, strict=True))
        self.mesh = parallel.make_mesh(axes, first_devices(np.prod(sizes)))
        task = task_of(config)
        self.model = task.build_model(config)
        shapes = task.batch_shapes(config)
        params = state_lib.abstract_params(self.model, shapes)
        schedule = optim.make_schedule(config.optimizer.learning_rate, 20, 2)
        optimizer = optim.make_optimizer(config.optimizer, schedule, params)
        self.state, self.shardings = state_lib.create_sharded_state(
            self.model, optimizer, jax.random.key(1), shapes, self.mesh, config.parallel.rules
        )
        loss_fn, groups = task.make_loss(self.model, config, self.mesh), config.optimizer.groups
        self.step = make_train_step(loss_fn, optimizer, schedule, self.mesh, self.shardings, groups)

    def __call__(self, batch):
        batch = parallel.to_global_batch(self.mesh, batch)
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.step(self.state, batch)
        return jax.device_get(metrics)


@functools.cache
def history(mesh):
    """A run, its states before each step, the metrics and their bounds, all of them lists."""
    run, batches = Run(masks_config(), MESHES[mesh]), [host_batch(step % 2) for step in range(8)]
    if mesh == "one":
        return run, *agreement.record(run, batches)
    _, states, _, bounds = history("one")
    metrics = []
    for step, (state, batch) in enumerate(zip(states, batches, strict=True)):
        if step > 0:  # the first step is from a state of its own
            run.state = agreement.place(run, state)
        metrics.append(run(batch))
    return run, states, metrics, bounds


@pytest.mark.parametrize("mesh", ["data", "fsdp", "tensor"])
def test_losses_from_masks_do_not_depend_on_the_mesh(mesh):
    _, _, found, bounds = history(mesh)
    _, _, expected, _ = history("one")
    agreement.assert_steps_agree(found, expected, bounds, ("loss",))
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.1
    assert expected[0]["labelled_pixels"] == pytest.approx(28 / 32)


def test_the_loss_is_that_of_the_assignments_as_large_as_the_image():
    config = masks_config()
    config.model.image.update(assignment="hard", drop_path_rate=0.0)  # no noise
    run, batch = Run(config, MESHES["one"]), host_batch()
    variables = jax.device_get({"params": run.state.params})
    output = jax.jit(run.model.apply)(variables, normalize(jnp.asarray(batch["image"])))
    maps = resize_maps(output.maps, (32, 32), 8)
    expected, _ = jax.jit(losses.segmentation_loss)(maps, output.logits, batch["mask"])
    assert run(batch)["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_frozen_tower_stays_and_its_head_learns():
    run = Run(masks_config(groups=((r"^image_encoder/", 0.0),)), MESHES["one"])
    before = jax.device_get(run.state.params)
    for _ in range(3):
        run(host_batch())
    after = jax.device_get(run.state.params)
    toy.assert_same(before["image_encoder"], after["image_encoder"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)["segment_head"]
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset.build(str(folder), dataset.SceneConfig(name="test", size=32, num_train=32, num_eval=8))
    return str(folder / "scenes/test/2.0.0")


def scenes_config(data_dir, num_steps):
    config = masks_config()
    config.segmentation.class_names = dataset.CLASS_NAMES
    config.data.sources = dict(scenes=dict(kind="tfds", split="train", data_dir=data_dir))
    config.train.num_steps = num_steps
    config.optimizer.warmup_steps = 1
    config.checkpoint.every_steps = 2
    config.tensorboard = False
    return config


def test_a_run_with_masks_goes_on_where_it_stopped(data_dir, tmp_path):
    runs = {}
    for name, lengths in (("whole", [4]), ("parts", [2, 4])):
        for length in lengths:
            config = scenes_config(data_dir, length)
            # The schedule is that of four steps in both.
            config.optimizer.update(final_learning_rate=4e-3, warmup_learning_rate=4e-3)
            assert train(config, tmp_path / name).complete
        runs[name] = read_state(tmp_path / name, config)
    toy.assert_same(runs["whole"], runs["parts"])


def read_state(workdir, config):
    run = Run(config, MESHES["data"])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state
    )
    return toy.last_state(workdir, abstract)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*dataset.CLASS_NAMES, "more"), r"bias is float32\[14\] in the checkpoint"),
        (dataset.CLASS_NAMES[::-1], r"checkpoints of another model \(config.segmentation.class_na"),
    ],
)
def test_other_classes_are_another_model(data_dir, tmp_path, names, message):
    train(scenes_config(data_dir, 2), tmp_path)
    config = scenes_config(data_dir, 4)
    config.segmentation.class_names = names
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path)


def test_the_tower_starts_from_a_checkpoint_and_the_head_fresh(data_dir, tmp_path):
    config = scenes_config(data_dir, 2)
    train(config, tmp_path)
    assert load_pretrained(tmp_path).class_names == dataset.CLASS_NAMES
    model = with_segment_head(build_model(config.model), 7)
    fresh = jax.jit(model.init)(jax.random.key(5), np.zeros((1, 32, 32, 3), np.float32))["params"]
    config.model.text.num_heads = 4  # of no tower here
    params, batch_stats, report = initialise_from(tmp_path, fresh, {}, config.model)
    trained = read_state(tmp_path, config).params
    toy.assert_same(params["image_encoder"], jax.device_get(trained["image_encoder"]))
    toy.assert_same(params["segment_head"], fresh["segment_head"])
    assert batch_stats == {}
    assert all("segment_head" in name for name in report.initialised)


def test_older_configurations_are_contrastive():
    config = tiny.get_config()
    del config.task
    assert task_of(config) is TASKS["contrastive"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "magic", r"config.task: 'magic' found, expected 'contrastive' or 'segmentation'"),
        ("text_init_from", "bert", r"text_init_from: 'bert' found, expected ''"),
        ("train.micro_batch_size", 8, r"micro_batch_size: 8 found, expected None with config.task"),
    ],
)
def test_wrong_setting_is_named(field, value, message):
    config = masks_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        task_of(config)
