"""Training step on the TPU or GPU at hand: parity, images/s, MFU, measured against predicted.

    python -m benchmarks.accelerator --output=DIR [--batch_sizes=64,128,256] [--seconds=3]
        [--config=configs/groupvit_gcc_yfcc_30e.py] [--config.model.image.width=768 ...]
    python -m benchmarks.accelerator --output=DIR --pytorch   # also Hugging Face's model on a GPU

Every form of the model that the device offers (fused blocks on a TPU, cuDNN's attention on a GPU)
is compared with the plain one: loss and gradients of 16 images a device, with soft assignment. Then
whole steps on all devices are timed by form and batch size: forward, backward, clipping, AdamW,
with all noise, on a batch that stays on the devices. MFU counts useful FLOPs only. The prediction
is `launch.plan`'s, from the program that ran. With --pytorch the model of transformers under
torch.compile in bfloat16, with the same losses, is timed in turns with ours at the first batch size
(`benchmarks.train_step`; set XLA_PYTHON_CLIENT_PREALLOCATE=false). Writes accelerator.md and
accelerator.json. On a CPU it runs too, without MFU and prediction, to try it out.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from groupvit_jax import optim, parallel
from groupvit_jax.models.kernels import stacks
from groupvit_jax.plan.chips import GPUS, TPUS, Chip, read_gpu
from groupvit_jax.plan.compiling import needed_bytes
from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.kernel_schedule import kernel_cycles
from groupvit_jax.plan.plan import count_flops
from groupvit_jax.plan.prediction import predict
from groupvit_jax.plan.program import parse_program
from groupvit_jax.report.markdown import markdown_table
from groupvit_jax.runs.configuration import changed
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of
from launch import common

_CONFIG = config_flags.DEFINE_config_file("config", "configs/groupvit_gcc_yfcc_30e.py", "model")
_OUTPUT = flags.DEFINE_string("output", None, "folder for the tables", required=True)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["64", "128", "256"], "images of all devices")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "least time of each measurement")
_PYTORCH = flags.DEFINE_bool("pytorch", False, "also time transformers' model on a GPU")

PARITY_BATCH = 16
# Of JAX's names for devices; the first that is part of a device's name counts.
KINDS = {
    "v6 lite": "v6e", "v6e": "v6e", "v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v4": "v4",
    "7x": "tpu7x", "B200": "b200", "H200": "h200", "H100": "h100", "A100": "a100",
}  # fmt: skip


@dataclasses.dataclass
class Row:
    """One measurement.

    Attributes:
      form: of the model, such as "plain".
      batch_size: of all devices.
      milliseconds: median of a step; None if the step does not fit.
      images_per_second: of all devices.
      mfu: useful FLOPs over the peak; None for a device without published figures.
      predicted_milliseconds: from the compiled program; None likewise.
      gib: memory of a device that the program takes.
      compile_seconds: wall time of tracing and compiling.
    """

    form: str
    batch_size: int
    milliseconds: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None
    predicted_milliseconds: float | None = None
    gib: float | None = None
    compile_seconds: float | None = None


def find_chip(device: jax.Device) -> Chip | None:
    """Return the published figures of a device, None if there are none."""
    kind = next((k for name, k in KINDS.items() if name in device.device_kind), "")
    if device.platform == "tpu":
        return TPUS.get(kind)
    return read_gpu(kind) if device.platform == "gpu" and kind in GPUS else None


def forms_of(config: ConfigDict, mesh: Mesh) -> dict[str, ConfigDict]:
    """Return the configurations to measure by name, the plain one first."""
    changes: dict[str, dict[str, Any]] = {"plain": {}}
    if stacks.stack_fn(mesh) is not None:
        changes["fused blocks"] = {"kernels": "auto"}
    platform = mesh.devices.flat[0].platform
    if platform == "gpu" and config.model.dtype != "float32":
        changes["cuDNN's attention"] = {"fused_attention": True}
    forms = {}
    for name, change in changes.items():
        forms[name] = config.copy_and_resolve_references()
        forms[name].model.update({"kernels": "plain", "fused_attention": False} | change)
    return forms


def random_batch(config: ConfigDict, mesh: Mesh) -> Any:
    """Return random images and texts of full length, on the devices."""
    rng = np.random.default_rng(0)
    shapes = task_of(config).batch_shapes(config)
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    batch["image"] = rng.integers(0, 256, shapes["image"].shape, np.uint8)
    # Texts of equal lengths that fill their row: no padding is computed.
    ends = np.linspace(0, config.data.packed_length, shapes["text_ends"].shape[1] + 1)[1:] - 1
    batch["text"] = rng.integers(1, 1000, shapes["text"].shape, np.int32)
    batch["text"][:, ends.astype(int)] = config.model.text.end_of_text_id
    batch["text_ends"][:] = ends.astype(np.int32)
    batch["text_ids"] = rng.integers(0, 2**31 - 1, shapes["text_ids"].shape, np.int32)
    batch["index"] = np.arange(config.train.batch_size, dtype=np.int32)
    return parallel.to_global_batch(mesh, batch)


def gradients(config: ConfigDict, mesh: Mesh) -> tuple[float, Any]:
    """Return loss and gradients of 16 images a device, with soft assignment.

    A hard assignment would turn the smallest difference of two groups into a large one.
    """
    config = changed(config, {"train.batch_size": PARITY_BATCH * len(mesh.devices.flat)})
    config.model.image.assignment = "soft"
    task = task_of(config)
    model: Any = task.build_model(config)
    state, _ = make_state(config, model, mesh)
    loss_fn = task.make_loss(model, config, mesh)
    run = jax.jit(jax.value_and_grad(lambda p, s, b: loss_fn(p, s, b)[0]))
    loss, found = run(state.params, state, random_batch(config, mesh))
    return float(loss), found


def make_state(config: ConfigDict, model: Any, mesh: Mesh) -> tuple[state_lib.TrainState, Any]:
    """Return a fresh state on the mesh and the optimizer with its schedule and shardings."""
    shapes = task_of(config).batch_shapes(config)
    schedule = optim.make_schedule(config.optimizer.learning_rate, 1000, 10)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    state, shardings = state_lib.create_sharded_state(
        model, optimizer, jax.random.key(0), shapes, mesh, config.parallel.rules
    )
    return state, (optimizer, schedule, shardings)


def compare_forms(forms: dict[str, ConfigDict], mesh: Mesh) -> dict[str, tuple[float, float]]:
    """Return each form's relative difference from the plain one, of the loss and the gradients."""
    plain_loss, plain = gradients(forms["plain"], mesh)
    found = {}
    for name, config in forms.items():
        if name == "plain":
            continue
        loss, other = gradients(config, mesh)
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, other, plain))
        of_gradients = float(apart / optax.tree.norm(plain))
        found[name] = abs(loss - plain_loss) / abs(plain_loss), of_gradients
    return found


def measure(name: str, config: ConfigDict, mesh: Mesh, chip: Chip | None) -> Row:
    """Return the measurement of one form at one batch size."""
    row = Row(name, config.train.batch_size)
    task = task_of(config)
    model: Any = task.build_model(config)
    started = time.monotonic()
    try:
        state, (optimizer, schedule, shardings) = make_state(config, model, mesh)
        loss_fn, groups = task.make_loss(model, config, mesh), config.optimizer.groups
        step = make_train_step(loss_fn, optimizer, schedule, mesh, shardings, groups)
        batch = random_batch(config, mesh)
        compiled = step.lower(state, batch).compile()
        row.compile_seconds = time.monotonic() - started
        # Not timed. The state is donated, so the next step takes its successor.
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds = time_steps(compiled, state, batch)
    except jax.errors.JaxRuntimeError as error:
        if needed_bytes(str(error)) is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row  # does not fit
    row.milliseconds = 1e3 * seconds
    row.images_per_second = config.train.batch_size / seconds
    memory = compiled.memory_analysis()
    # Donated buffers are among the arguments already.
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    row.gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes + new) / 2**30
    if chip:
        _, useful = count_flops(
            model,
            batch_size=config.train.batch_size,
            num_texts=1 + config.data.num_nouns,
            packed_length=config.data.packed_length,
        )
        peak = chip.peak_flops * mesh.devices.size / chip.devices
        row.mfu = row.images_per_second * useful / peak
        program = parse_program(compiled.as_text())
        one_chip = f"{chip.kind}:1x1" if chip.gpu is None else ""
        found = instruction_costs(program, kernel_cycles(program, one_chip) if one_chip else {})
        row.predicted_milliseconds = 1e3 * predict(found, chip).seconds
    return row


def time_steps(step: Any, state: Any, batch: Any) -> float:
    """Return the median seconds of a step, of groups of steps that the host enqueues at once."""
    times: list[float] = []
    while len(times) < 3 or sum(times) * 5 < _SECONDS.value:
        started = time.perf_counter()
        for _ in range(5):
            state, metrics = step(state, batch)
        # Steps run in order: the last one's metrics come after all.
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - started) / 5)
    return float(np.median(times))


def to_markdown(device: str, parity: dict[str, tuple[float, float]], rows: list[Row]) -> str:
    """Return the tables of parity and of speed."""

    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    differences = markdown_table(
        ["form", "loss, from plain", "gradients, from plain"],
        [[name, f"{loss:.1e}", f"{grads:.1e}"] for name, (loss, grads) in parity.items()],
    )
    header = ["form", "batch", "ms a step", "images/s", "MFU", "predicted ms", "GiB", "compile s"]
    speeds = markdown_table(
        header,
        [
            [
                row.form,
                str(row.batch_size),
                text(row.milliseconds, ".2f") or "does not fit",
                text(row.images_per_second, ",.0f"),
                text(row.mfu, ".1%"),
                text(row.predicted_milliseconds, ".2f"),
                text(row.gib, ".2f"),
                text(row.compile_seconds, ".0f"),
            ]
            for row in rows
        ],
    )
    return f"# {device}\n\n{differences}\n\n{speeds}\n"


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    chip = find_chip(mesh.devices.flat[0])
    device = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, {config.model.dtype}"
    forms = forms_of(config, mesh)
    parity = compare_forms(forms, mesh)
    rows = []
    for batch_size in map(int, _BATCH_SIZES.value):
        for name, form in forms.items():
            rows.append(measure(name, changed(form, {"train.batch_size": batch_size}), mesh, chip))
            print(rows[-1], flush=True)
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"device": device, "jax": jax.__version__, "parity": parity,
              "steps": [dataclasses.asdict(row) for row in rows]}  # fmt: skip
    (folder / "accelerator.json").write_text(json.dumps(result, indent=2) + "\n")
    page = to_markdown(device, parity, rows)
    if _PYTORCH.value:
        page += f"\n```\n{time_pytorch(_BATCH_SIZES.value[0])}```\n"
    (folder / "accelerator.md").write_text(page)
    print(page)


def time_pytorch(batch_size: str) -> str:
    """Return the table of `benchmarks.train_step`, in a process that shares the GPU."""
    command = [sys.executable, "-m", "benchmarks.train_step", f"--batch_size={batch_size}"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    common.use_huge_pages()  # on a CPU, as launch.train does
    app.run(main)
