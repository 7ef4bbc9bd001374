"""Matrix FLOPs of a compiled program, and the size of its largest logits."""

import math
import re

from groupvit_jax.plan.program import ExecutedInstruction, Program, executions

_DIMENSIONS = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_LIBRARY = re.compile(r'custom_call_target="__cu(blas|dnn)\$(\w+)')
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_WEIGHTS_SHAPE = re.compile(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]')
# The estimate that a Pallas kernel may state for itself.
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')


def matrix_flops(program: Program) -> int:
    """Return the FLOPs of a step's products and convolutions on one device."""
    return sum(run.count * flops(run) for run in executions(program))


def flops(run: ExecutedInstruction) -> int:
    """Return the FLOPs of one execution of a product, convolution or library call; else 0."""
    instruction, computation = run.instruction, run.computation
    if instruction.opcode == "custom-call":
        return _custom_call_flops(run)
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    lhs, rhs = (computation[name].outputs[0].shape for name in instruction.operands[:2])
    out = instruction.outputs[0].shape
    if instruction.opcode == "dot":
        match = _DIMENSIONS.search(instruction.attributes)
        dims = [int(d) for d in match[1].split(",") if d] if match else []
        return 2 * math.prod(out) * math.prod(lhs[d] for d in dims)
    return _convolution_flops(instruction.attributes, lhs, rhs, out)


def logits_bytes(program: Program, embedding_dim: int) -> int:
    """Return the bytes of the largest logits that one chip holds at once; 0 if there are none.

    Args:
      program: of a training step.
      embedding_dim: of the joint space: logits are the loss's products over it.
    """
    return max(
        (
            run.instruction.outputs[0].num_bytes
            for run in executions(program)
            if flops(run)
            if program.stems_from(run.instruction, "groupvit_jax/losses/")
            # A sigmoid's bias is one more dimension of the product.
            if _contracted(run) in (embedding_dim, embedding_dim + 1)
        ),
        default=0,
    )


def _custom_call_flops(run: ExecutedInstruction) -> int:
    """Count the products of calls into cuBLAS and cuDNN, and of kernels that state theirs."""
    attributes = run.instruction.attributes
    if stated := _KERNEL_FLOPS.search(attributes):
        return int(stated[1])
    if (target := _LIBRARY.search(attributes)) is None:
        return 0
    operands = [run.computation[name].outputs[0].shape for name in run.instruction.operands]
    if target[1] == "blas" and (match := _CONTRACTED.search(attributes)):
        contracted = (int(d) for d in re.findall(r"\d+", match[1]))
        out = run.instruction.outputs[0].shape
        return 2 * math.prod(out) * math.prod(operands[0][d] for d in contracted)
    if target[2].startswith("fmha") and (weights := _WEIGHTS_SHAPE.search(attributes)):
        pairs = math.prod(int(d) for d in re.findall(r"\d+", weights[1]))
        # Forward: logits and average. Backward: the logits anew and the gradients of the weights
        # and of queries, keys and values.
        products = 5 if "Backward" in target[2] else 2
        return products * 2 * pairs * operands[0][-1]
    if target[2].startswith("conv"):
        # The labels are those of the forward convolution, whichever of the three arrays results.
        result = run.instruction.outputs[0].shape
        lhs, rhs, out = {
            "convBackwardInput": (result, operands[1], operands[0]),
            "convBackwardFilter": (operands[0], result, operands[1]),
        }.get(target[2], (*operands[:2], result))
        return _convolution_flops(attributes, lhs, rhs, out)
    return 0


def _contracted(run: ExecutedInstruction) -> float:
    return flops(run) / (2 * max(math.prod(run.instruction.outputs[0].shape), 1))


def _convolution_flops(
    attributes: str, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Count the pairs of input and kernel that meet.

    A TPU computes batched products as convolutions too, with padding and dilation that keep the
    batches apart; a plain product of the sizes would count the zeros.
    """
    match = _LABELS.search(attributes)
    if match is None:
        raise ValueError(f"compiled program: convolution without dim_labels: {attributes[:80]!r}")
    lhs_labels, rhs_labels, out_labels = match.groups()
    found = _WINDOW.search(attributes)
    window = dict(field.split("=", 1) for field in found[1].split()) if found else {}
    flops = 2 * out[out_labels.index("b")] * out[out_labels.index("f")]
    flops *= rhs[rhs_labels.index("i")]
    for i, label in enumerate(c for c in out_labels if c.isdigit()):
        flops *= _pairs(
            size=lhs[lhs_labels.index(label)],
            kernel=rhs[rhs_labels.index(label)],
            out=out[out_labels.index(label)],
            stride=_entry(window, "stride", i, 1),
            padding=_entry(window, "pad", i, 0),
            lhs_dilation=_entry(window, "lhs_dilate", i, 1),
            rhs_dilation=_entry(window, "rhs_dilate", i, 1),
        )
    return flops


def _pairs(
    *, size: int, kernel: int, out: int, stride: int, padding: int, lhs_dilation: int,
    rhs_dilation: int,
) -> int:  # fmt: skip
    """Count the (output, kernel) positions of one dimension that fall on an input, not padding."""
    last = (size - 1) * lhs_dilation
    count = 0
    for k in range(kernel):
        for o in range(out):
            position = o * stride + k * rhs_dilation - padding
            count += 0 <= position <= last and position % lhs_dilation == 0
    return count


def _entry(window: dict[str, str], field: str, i: int, default: int) -> int:
    if field not in window:
        return default
    return int(window[field].split("x")[i].split("_")[0])
