"""Converts a traced JAX function to an ONNX graph, operation by operation.

Ours because no converter fits: jax2onnx (0.17) holds orbax-checkpoint below 0.11.37, which this
project can't use, and would bring Equinox and a model viewer; PyTorch's exporter would need PyTorch
and Hugging Face's GroupViT, which has neither soft assignments, temperatures, BERT nor a segment
head. The models here consist of about 35 JAX operations, and whatever is configured, what is
written is the very function that JAX would run. An operation that is missing is an error.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # of ONNX 1.13, and with it the oldest ONNX Runtime that can run the graphs: 1.14
IR_VERSION = 8  # of the same release
BATCH = "batch"

# A value of the function: known now, or the name of a value of the graph.
Value = np.ndarray | str

_SAME: Mapping[str, str] = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "exp": "Exp",
    "log": "Log",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "stop_gradient": "Identity",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
# Calls of functions, and where they keep the function.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class _Graph:
    """Nodes and constants of a graph that grows."""

    def __init__(self, batch: Any) -> None:
        """Take the symbolic size of a batch."""
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[int, str] = {}
        self._kept: list[np.ndarray] = []  # an id is that of one array as long as the array lives
        self._count = 0

    def add(self, op: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or the names of several."""
        names = [self._new_name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, [*map(self.name, inputs)], names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Value) -> str:
        """Return the name of a value; a known one becomes a constant of the graph."""
        if isinstance(value, str):
            return value
        if id(value) not in self._names:
            self._names[id(value)] = name = self._new_name("constant")
            self._kept.append(value)
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return self._names[id(value)]

    def shape(self, dims: Sequence[Any]) -> Value:
        """Return a shape as a value; sizes of the batch are computed when the graph runs."""
        parts = [self._size(dim) for dim in dims]
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return self.add("Concat", parts, axis=0)

    def _size(self, dim: Any) -> Value:
        if isinstance(dim, int):
            return np.array([dim], np.int64)
        return self.add("Mul", [BATCH, np.array([self.multiple(dim)], np.int64)])

    def multiple(self, dim: Any) -> int:
        """Return how many times the batch a size is."""
        times, rest = divmod(dim, self.batch)
        if not isinstance(times, int) or rest != 0:
            raise ValueError(f"ONNX: a size of {dim} found, expected a multiple of the batch")
        return times

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def export_graph(
    function: Callable[..., Any], argument: jax.ShapeDtypeStruct, batch: Any, input_name: str
) -> onnx.ModelProto:
    """Convert a function of one array; its outputs are named by their places in its result.

    Args:
      function: what JAX would run, without randomness.
      argument: shape and type of the array; its first axis is the batch.
      batch: the symbolic size of that axis, of `jax.export.symbolic_shape`.
      input_name: name of the array in the graph.

    Raises:
      ValueError: the function has an operation that is not converted; the message names it.
    """
    traced = jax.jit(function).trace(argument)
    graph = _Graph(batch)
    graph.nodes.append(helper.make_node("Shape", [input_name], [BATCH], start=0, end=1))
    closed = traced.jaxpr
    found = _run(graph, closed.jaxpr, [np.asarray(c) for c in closed.consts], [input_name])
    outputs = []
    paths = jax.tree_util.tree_leaves_with_path(traced.out_info)
    for (path, info), value in zip(paths, found, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="_") or "embedding"
        graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [name]))
        outputs.append(_describe(name, info, graph))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            input_name,
            [_describe(input_name, argument, graph)],
            outputs,
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="groupvit_jax",
    )
    onnx.checker.check_model(model)
    return model


def _describe(name: str, info: Any, graph: _Graph) -> onnx.ValueInfoProto:
    dims = [d if isinstance(d, int) else _dimension(graph.multiple(d)) for d in info.shape]
    return helper.make_tensor_value_info(name, _type(info.dtype), dims)


def _dimension(times: int) -> str:
    return BATCH if times == 1 else f"{times}*{BATCH}"


def _type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _run(
    graph: _Graph, jaxpr: Any, constants: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """Convert the operations of a function; return its results."""
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def read(atom: Any) -> Value:
        if isinstance(atom, jex.Literal):
            described: Any = atom.aval
            return np.asarray(atom.val, described.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        found = _convert(graph, equation, [read(atom) for atom in equation.invars])
        values |= zip(equation.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _convert(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Convert one operation; one that depends on nothing is computed."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        consts = [np.asarray(c) for c in getattr(inner, "consts", ())]
        return _run(graph, getattr(inner, "jaxpr", inner), consts, inputs)
    sizes = [dim for var in equation.outvars for dim in var.aval.shape]
    known = all(isinstance(value, np.ndarray) for value in inputs)
    if known and all(isinstance(dim, int) for dim in sizes):
        result = equation.primitive.bind(*inputs, **params)
        return [*map(np.asarray, result if equation.primitive.multiple_results else [result])]
    if name in _SAME:
        return [graph.add(_SAME[name], inputs)]
    if name not in _RULES:
        raise ValueError(f"ONNX: {name} found in the model, an operation that is not converted")
    result = _RULES[name](graph, equation, inputs)
    return result if isinstance(result, list) else [result]


def _cast(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    wanted = equation.params["new_dtype"]
    if equation.invars[0].aval.dtype == wanted:
        return inputs[0]
    return graph.add("Cast", inputs, to=_type(wanted))


def _broadcast(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    """Insert axes of size 1 and repeat along them."""
    shape, kept = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    new = [axis for axis in range(len(shape)) if axis not in kept]
    value: Value = inputs[0]
    if new:
        value = graph.add("Unsqueeze", [value, np.array(new, np.int64)])
    # An axis that keeps its size is left as it is by a 1.
    same = {axis for axis, size in zip(kept, before, strict=True) if size == shape[axis]}
    sizes = [1 if axis in same else size for axis, size in enumerate(shape)]
    if all(isinstance(size, int) and size == 1 for size in sizes):
        return value
    return graph.add("Expand", [value, graph.shape(sizes)])


def _reshape(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    # One size may be left to be found: the batch's, of which there is one in a shape.
    sizes = [s if isinstance(s, int) else -1 for s in equation.outvars[0].aval.shape]
    return graph.add("Reshape", [inputs[0], np.array(sizes, np.int64)])


def _transpose(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    return graph.add("Transpose", inputs, perm=equation.params["permutation"])


def _concatenate(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    return graph.add("Concat", inputs, axis=equation.params["dimension"])


def _split(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    sizes, axis = np.array(equation.params["sizes"], np.int64), equation.params["axis"]
    return graph.add("Split", [inputs[0], sizes], outputs=len(sizes), axis=axis)


def _slice(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    params, before = equation.params, equation.invars[0].aval.shape
    value: Value = inputs[0]
    strides = params["strides"] or [1] * len(before)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, before, strict=True)
    for axis, (start, end, stride, size) in enumerate(bounds):
        if (start, stride) != (0, 1) or end != size:
            value = _cut(graph, value, axis, start, end, stride)
    return value


def _cut(graph: _Graph, value: Value, axis: int, start: int, end: int, stride: int = 1) -> Value:
    numbers = (np.array([n], np.int64) for n in (start, end, axis, stride))
    return graph.add("Slice", [value, *numbers])


def _pad(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise ValueError(f"ONNX: padding of {config} found, expected none between or negative")
    lows, highs, _ = zip(*config, strict=True)
    return graph.add("Pad", [inputs[0], np.array([*lows, *highs], np.int64), inputs[1]])


def _reduce(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    op, axes = _REDUCTIONS[equation.primitive.name], equation.params["axes"]
    return graph.add(op, [inputs[0], np.array(axes, np.int64)], keepdims=0)


def _argmax(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    (axis,) = equation.params["axes"]
    value: Value = inputs[0]
    # ONNX's ArgMax takes no booleans.
    if equation.invars[0].aval.dtype == np.bool_:
        value = graph.add("Cast", [value], to=TensorProto.INT32)
    found = graph.add("ArgMax", [value], axis=axis, keepdims=0)  # the first, as in JAX
    return graph.add("Cast", [found], to=_type(equation.params["index_dtype"]))


def _cummax(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    """Return the largest so far along the last axis, of L values: the maximum of an L x L table."""
    aval, params = equation.invars[0].aval, equation.params
    if params["reverse"] or params["axis"] != len(aval.shape) - 1:
        raise ValueError("ONNX: cummax found that is not along the last axis from its start")
    length = aval.shape[-1]
    seen = np.tril(np.ones((length, length), bool))
    rows = graph.add("Unsqueeze", [inputs[0], np.array([-2], np.int64)])
    least = np.array(np.iinfo(aval.dtype).min, aval.dtype)
    table = graph.add("Where", [seen, rows, least])
    return graph.add("ReduceMax", [table, np.array([-1], np.int64)], keepdims=0)


def _dot(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    (of_left, of_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if not batch_left and ranks[1] == 2 and (of_left, of_right) == ((ranks[0] - 1,), (0,)):
        return graph.add("MatMul", inputs)
    letters = iter(string.ascii_lowercase)
    left, right = ([""] * rank for rank in ranks)
    for i, j in [*zip(batch_left, batch_right, strict=True), *zip(of_left, of_right, strict=True)]:
        left[i] = right[j] = next(letters)
    for of_side in (left, right):
        of_side[:] = [letter or next(letters) for letter in of_side]
    shared = [left[i] for i in batch_left]
    summed = {left[i] for i in of_left}
    rest = [x for x in (*left, *right) if x not in summed and x not in shared]
    formula = f"{''.join(left)},{''.join(right)}->{''.join([*shared, *rest])}"
    return graph.add("Einsum", inputs, equation=formula)


def _convolution(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    params = equation.params
    numbers, strides, padding = (
        params[key] for key in ("dimension_numbers", "window_strides", "padding")
    )
    # Batch, channels, space is the only order that ONNX knows.
    image = graph.add("Transpose", [inputs[0]], perm=numbers.lhs_spec)
    kernel = graph.add("Transpose", [inputs[1]], perm=numbers.rhs_spec)
    lows, highs = zip(*padding, strict=True)
    found = graph.add("Conv", [image, kernel], strides=strides, pads=[*lows, *highs])
    # The inverse of the permutation from JAX's order to ONNX's.
    return graph.add("Transpose", [found], perm=np.argsort(numbers.out_spec).tolist())


def _gather(graph: _Graph, equation: Any, inputs: list[Value]) -> Value:
    """Convert a cut at a known place, and the selection of rows by an index."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, index = inputs
    (axis,) = numbers.start_index_map
    if isinstance(index, np.ndarray) and index.size == 1:
        start = int(index.item())
        cut = _cut(graph, value, axis, start, start + sizes[axis])
        if not numbers.collapsed_slice_dims:
            return cut
        return graph.add("Squeeze", [cut, np.array(numbers.collapsed_slice_dims, np.int64)])
    batch_dims = len(numbers.operand_batching_dims)
    leading = tuple(range(batch_dims))
    # Rows of the first axis, or of the second for each row of the first.
    expected = (leading, leading, (batch_dims,), batch_dims)
    found = (
        *(tuple(d) for d in (numbers.operand_batching_dims, numbers.start_indices_batching_dims)),
        tuple(numbers.collapsed_slice_dims),
        axis,
    )
    if found != expected or sizes[axis] != 1:
        raise ValueError(f"ONNX: gather of {numbers} found, expected rows of the first axes")
    index = graph.add("Cast", [index], to=TensorProto.INT64)
    return graph.add("GatherND", [value, index], batch_dims=batch_dims)


_RULES: Mapping[str, Callable[[_Graph, Any, list[Value]], Value | list[Value]]] = {
    "convert_element_type": _cast,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "argmax": _argmax,
    "cummax": _cummax,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "square": lambda graph, _, inputs: graph.add("Mul", [inputs[0], inputs[0]]),
    "rsqrt": lambda graph, _, inputs: graph.add("Reciprocal", [graph.add("Sqrt", inputs)]),
    # `select_n` has the value for False first, ONNX's Where the one for True.
    "select_n": lambda graph, _, inputs: graph.add("Where", [inputs[0], inputs[2], inputs[1]]),
    "copy": lambda graph, _, inputs: inputs[0],
    "squeeze": _reshape,
    "expand_dims": _reshape,
}
