"""A whole training step of groupvit-small against Hugging Face's PyTorch model.

    python -m benchmarks.train_step [--captions=FILE] [--batch_size=32] [--repeats=5]

Both sides start from the same weights and see the same images and texts (a caption and 3 prompts an
image). Without noise both losses must agree to 1e-5 of their value. Then whole steps are timed in
turns, each the second of two, each side in a process of its own, with Gumbel noise: forward,
backward, clipping, AdamW; ours also normalises and erases pixels and drops branches, which the
reference can't. The reference pads its texts to 77 tokens, as the published training does, and in
another row to the longest of the batch. The multi-label loss, which transformers lacks, is added
here. On a CPU (with JAX_PLATFORMS=cpu, so that huge pages are used) both compute in float32; on a
GPU (with XLA_PYTHON_CLIENT_PREALLOCATE=false) in bfloat16, the reference through torch.compile, and
the share of --peak_tflops in use is printed.
"""

import copy
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.captions import pack, read, texts_of
from benchmarks.tagger import GOLD, read_gold
from configs.base import get_config
from groupvit_jax import optim, parallel
from groupvit_jax.data.text.packing import trim
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.models import build_model
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.contrastive_task import (
    LossSettings,
    contrastive_loss,
    make_contrastive_loss,
)
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of
from launch import common
from tests.interop import reference, weights

_CAPTIONS = flags.DEFINE_string("captions", None, "CSV, TSV, JSON or tar; the tests' own if absent")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "images a step")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed steps of each side")
_THREADS = flags.DEFINE_integer("threads", 0, "of PyTorch on a CPU; 0: its default")
_PEAK_TFLOPS = flags.DEFINE_float("peak_tflops", 989.0, "of the GPU in dense bfloat16")

TOLERANCE = 1e-5
KINDS = ("ours", "padded", "trimmed")
Batch = dict[str, np.ndarray]
Step = Callable[[], float]


def make_config(batch_size: int, on_gpu: bool) -> ConfigDict:
    config = get_config()
    config.model.dtype = "bfloat16" if on_gpu else "float32"
    config.train.batch_size = batch_size
    return config


def make_batch(config: ConfigDict) -> tuple[Batch, np.ndarray]:
    """Return a batch of random images with packed texts, and the texts padded, [B, N, T]."""
    if _CAPTIONS.value:
        captions = read(_CAPTIONS.value)
    else:
        captions = [" ".join(word for word, _ in caption) for caption in read_gold(GOLD)]
    B, size = config.train.batch_size, config.model.image.image_size
    captions = [captions[i] for i in np.random.default_rng(0).permutation(len(captions))]
    texts = texts_of(captions, config.data.num_nouns)
    fits = np.flatnonzero(pack(texts, config.data.packed_length)[2] == 0)
    texts = texts[np.resize(fits, B)]
    row, ends, overflow = pack(texts, config.data.packed_length)
    image = np.random.default_rng(1).integers(0, 256, (B, size, size, 3), np.uint8)
    batch = {"image": image, "text": row, "text_ends": ends, "index": np.arange(B, dtype=np.int32)}
    unused = {"text_ids": ends, "text_overflow": overflow.astype(np.int32)}
    return batch | unused, texts


def our_loss(pretrained: Pretrained, config: ConfigDict, batch: Batch) -> float:
    """Return the loss of the noiseless model in training mode, in float32."""
    model = build_model(pretrained.model_config)
    mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    @jax.jit
    def loss(variables, image, text, ends):
        output, _ = model.apply(
            variables,
            normalize(image),
            text,
            ends,
            train=True,
            rngs={"drop_path": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return contrastive_loss(output, LossSettings(**config.loss), mesh, {})[0]

    return float(loss(pretrained.variables, *(batch[n] for n in ("image", "text", "text_ends"))))


def our_step(pretrained: Pretrained, config: ConfigDict, batch: Batch) -> tuple[Step, float]:
    """Return the training step and its FLOPs as XLA counts them."""
    mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    model, shapes = build_model(config.model), task_of(config).batch_shapes(config)
    schedule = optim.make_schedule(config.optimizer.learning_rate, 1000, 10)
    optimizer = optim.make_optimizer(config.optimizer, schedule, pretrained.variables["params"])
    state, shardings = state_lib.create_sharded_state(
        model, optimizer, jax.random.key(0), shapes, mesh, config.parallel.rules
    )
    # Copies: the step donates them.
    state = state.replace(**jax.tree.map(jnp.array, dict(pretrained.variables)))
    loss_fn, groups = make_contrastive_loss(model, config, mesh), config.optimizer.groups
    step = make_train_step(loss_fn, optimizer, schedule, mesh, shardings, groups)
    lowered = step.lower(state, shapes)
    compiled = lowered.compile()
    on_device = parallel.to_global_batch(mesh, batch)

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, on_device)
        return float(metrics["loss"])  # waits for the device

    return run, lowered.cost_analysis()["flops"]


class Reference:
    """transformers' model with both losses and PyTorch's AdamW."""

    def __init__(self, pretrained: Pretrained, config: ConfigDict, device: str):
        self.device, self.config = device, config
        self.model = reference.build(pretrained).train().to(device)
        scale = np.array(pretrained.variables["params"]["multi_label_logit_scale"])
        self.scale = torch.nn.Parameter(torch.tensor(scale, device=device))
        values = config.optimizer
        self.parameters = [*self.model.parameters(), self.scale]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=values.warmup_learning_rate,
            betas=(values.b1, values.b2),
            eps=values.eps,
            weight_decay=values.weight_decay,
        )

    def without_noise(self) -> "Reference":
        """Return a copy whose assignment is hard (there is no other noise)."""
        other = copy.deepcopy(self)
        for module in other.model.modules():
            if type(module).__name__ == "GroupViTAssignAttention":
                module.eval()
        return other

    def loss(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the sum of both losses of images [B, 3, H, W] and texts [B, N, T]."""
        B, N, T = texts.shape
        image = self.model.visual_projection(
            self.model.vision_model(pixel_values=images).pooler_output
        )
        features = self.model.text_model(input_ids=texts.reshape(B * N, T)).pooler_output
        text = self.model.text_projection(features).reshape(B, N, -1)
        image, text = (
            torch.nn.functional.normalize(image.float(), dim=-1),
            torch.nn.functional.normalize(text.float(), dim=-1),
        )
        caption, prompts = text[:, :1], text[:, 1:]
        return multi_label_loss(image, caption, self.model.logit_scale) + multi_label_loss(
            image, prompts, self.scale
        )

    def step(self, images: np.ndarray, texts: np.ndarray) -> Step:
        """Return a function that trains on a batch of normalised images and texts [B, N, T]."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)
        ids = torch.from_numpy(texts).long().to(self.device)
        on_gpu = self.device == "cuda"
        loss_of = torch.compile(self.loss) if on_gpu else self.loss

        def run() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                loss = loss_of(pixels, ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
            self.optimizer.step()
            return loss.item()  # waits for the device

        return run


def multi_label_loss(image: torch.Tensor, prompts: torch.Tensor, logit_scale: torch.Tensor):
    """The loss of unit vectors [B, D] and [B, K, D]; with K = 1 the global loss."""
    B, K, D = prompts.shape
    logits = logit_scale.exp().clamp(max=100) * image @ prompts.reshape(B * K, D).T
    owner = torch.arange(B, device=image.device).repeat_interleave(K)
    target = torch.nn.functional.one_hot(owner, B).T / K
    return (
        torch.nn.functional.cross_entropy(logits, target)
        + torch.nn.functional.cross_entropy(logits.T, owner)
    ) / 2


def work(kind: str, connection: Any, arguments: list[str]) -> None:
    """Make one side in a process of its own, then do a step whenever it is asked to."""
    flags.FLAGS(arguments)
    if _THREADS.value:
        torch.set_num_threads(_THREADS.value)
    on_gpu = jax.default_backend() == "gpu"
    config = make_config(_BATCH_SIZE.value, on_gpu)
    batch, texts = make_batch(config)
    pretrained = weights.random_pretrained(config.model)
    if kind == "ours":
        step, flops = our_step(pretrained, config, batch)
    else:
        if kind == "trimmed":
            texts = trim(texts.reshape(-1, texts.shape[-1])).reshape(*texts.shape[:2], -1)
        theirs = Reference(pretrained, config, "cuda" if on_gpu else "cpu")
        step, flops = theirs.step(np.array(normalize(batch["image"])), texts), 0.0
    step()  # compiles
    connection.send((flops, texts.shape[-1]))
    while connection.recv():
        # Memory that was given back while others had their turn comes back slowly, from a virtual
        # machine's host in particular; in training, one step takes what the last one gave.
        step()
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        connection.send((time.perf_counter() - wall, time.process_time() - cpu))


def seconds_in_turns(repeats: int) -> tuple[dict[str, np.ndarray], float, int]:
    """Return [repeats, 2] seconds of wall and CPU time, our FLOPs, and the trimmed length.

    Each side has its own process, so that neither meets the other's threads and memory.
    """
    context = multiprocessing.get_context("spawn")
    connections, told, processes = {}, {}, []
    for kind in KINDS:
        connections[kind], other = context.Pipe()
        process = context.Process(target=work, args=(kind, other, sys.argv), daemon=True)
        process.start()
        processes.append(process)
        told[kind] = connections[kind].recv()
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, connection in connections.items():
            connection.send(True)
            seconds[kind].append(connection.recv())
    for process in processes:
        process.terminate()
    arrays = {kind: np.array(values) for kind, values in seconds.items()}
    return arrays, told["ours"][0], told["trimmed"][1]


def check_losses(arguments: list[str]) -> None:
    """Compare both losses without noise, in float32; on a GPU the reference has bfloat16."""
    flags.FLAGS(arguments)
    on_gpu = jax.default_backend() == "gpu"
    config = make_config(_BATCH_SIZE.value, on_gpu)
    batch, texts = make_batch(config)
    quiet = weights.training_config(config.copy_and_resolve_references().model)
    quiet.dtype = "float32"
    pretrained = weights.random_pretrained(quiet)
    ours = our_loss(pretrained, config, batch)
    theirs = Reference(pretrained, config, "cuda" if on_gpu else "cpu").without_noise()
    expected = theirs.step(np.array(normalize(batch["image"])), texts)()
    print(f"loss without noise: {ours:.6f}, reference {expected:.6f}", flush=True)
    if abs(ours - expected) > (1e-2 if on_gpu else TOLERANCE) * abs(expected):
        raise SystemExit("error: the losses differ, so there is nothing to compare")


def main(argv: list[str]) -> None:
    del argv
    common.use_huge_pages()  # as launch.train does; the reference has them, too
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise app.UsageError("JAX sees a GPU, PyTorch does not: install its CUDA build")
    config = make_config(_BATCH_SIZE.value, on_gpu)
    batch, texts = make_batch(config)
    # In a process of its own, which gives its memory back.
    check = multiprocessing.get_context("spawn").Process(target=check_losses, args=(sys.argv,))
    check.start()
    check.join()
    if check.exitcode:
        raise SystemExit(check.exitcode)
    seconds, flops, trimmed = seconds_in_turns(_REPEATS.value)
    B = len(texts)
    print(
        f"tokens an image: {(batch['text_ends'].max(1) + 1).mean():.1f}, "
        f"{jax.devices()[0].device_kind}, {config.model.dtype}, batch {B}"
    )
    names = {
        "ours": "ours",
        "padded": f"reference, {texts.shape[-1]} tokens",
        "trimmed": f"reference, {trimmed} tokens",
    }
    print(f"{'':<22}{'s/step':>8} {'images/s':>9} {'CPU s':>8}  ours is faster by (wall, CPU)")
    for kind, times in seconds.items():
        wall, cpu = np.median(times, axis=0)
        ratio = np.median(times / seconds["ours"], axis=0)
        print(f"{names[kind]:<22}{wall:>8.3f} {B / wall:>9.2f} {cpu:>8.3f}", end="  ")
        print(f"{ratio[0]:.2f} {ratio[1]:.2f}")
    rate = flops / np.median(seconds["ours"][:, 0]) / 1e12
    print(f"ours: {flops / B / 1e9:.1f} GFLOP an image, {rate:.3f} TFLOP/s", end="")
    print(f", {rate / _PEAK_TFLOPS.value:.1%} of the peak" if on_gpu else "")


if __name__ == "__main__":
    app.run(main)
