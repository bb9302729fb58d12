"""Convert ONNX graphs for TensorRT: a free batch, one precision.

A converted graph is compared with the original in ONNX Runtime, on a CPU.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from ..errors import InputError
from .onnx_graph import OnnxGraph, constants_of, data_names, describe
from .verify import check_fp16_range, compare, open_session

TYPES = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}

# Inputs that are float32 in any precision: a Resize's region and scales.
_ALWAYS_FLOAT32 = {("Resize", 1), ("Resize", 2), ("Upsample", 1)}


def convert(graph: OnnxGraph, precision: str) -> None:
    """Make a fixed batch of 1 free, and convert all floats to one precision, in place.

    Args:
        graph: the graph; its `notices` get the changes.
        precision: "fp16" or "fp32".

    Raises:
        InputError: it cannot be converted, or computes other results afterwards.
    """
    original = onnx.ModelProto()
    original.CopyFrom(graph.model)
    freed = _free_batch(graph)
    found = _float_types(graph.model)
    converted = found != {TYPES[precision]}
    if converted:
        _widen(graph.model)
        if precision == "fp16":
            graph.model = _fold(graph)
            check_fp16_range(graph)
            _narrow(graph)
    if not (freed or converted):
        return
    changes = ["batch of 1 freed"] if freed else []
    if converted:
        was = " and ".join(name for name, number in TYPES.items() if number in found)
        changes.append(f"{was} converted to {precision}")
    tolerated = "fp16" if TYPES["fp16"] in found else precision
    difference = compare(graph, original, tolerated, " and ".join(changes))
    graph.notices.append(f"{' and '.join(changes)} (largest difference {difference:.2g})")


# --- batch ---------------------------------------------------------------------------------------


def _free_batch(graph: OnnxGraph) -> bool:
    """Make the batch a free dimension in inputs, outputs and constant shapes.

    Returns:
        Whether the batch was fixed.
    """
    inner, signature = graph.model.graph, graph.signature
    shapes = dict(zip(graph.inputs, signature.inputs.values(), strict=True))
    shapes[graph.output] = next(iter(signature.outputs.values()))
    fixed = False
    for value in [*inner.input, *inner.output]:
        dims = value.type.tensor_type.shape.dim if value.name in shapes else ()
        if dims and dims[0].HasField("dim_value") and value.name != graph.output:
            if dims[0].dim_value != 1:
                raise InputError(
                    f"{graph.path} has a fixed batch of {dims[0].dim_value}; expected a free "
                    "batch or 1. Export it again"
                )
            fixed = True
    sizes = {}
    if fixed:  # inferred first, because the inner sizes are unknown with a free batch
        inferred = onnx.shape_inference.infer_shapes(graph.model).graph
        sizes = {v.name: describe(v).shape for v in [*inferred.value_info, *inferred.input]}
        del inner.value_info[:]
    for value in [*inner.input, *inner.output]:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.dim.add(dim_param="batch")
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    if fixed:
        _free_constants(inner, sizes)
    return fixed


def _free_constants(inner: onnx.GraphProto, sizes: dict[str, list]) -> None:
    """Replace the batch of 1 in the constant target shapes of Reshape and Resize."""
    constants, flowing = constants_of(inner), data_names(inner)

    def replace(node: onnx.NodeProto, position: int, array: np.ndarray) -> None:
        name = f"{node.output[0]}/free/{position}"
        inner.initializer.append(numpy_helper.from_array(array, name))
        node.input[position] = name

    for node in inner.node:
        if not node.input or node.input[0] not in flowing:
            continue
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if shape.size and shape[0] == 1:
                shape[0] = 0 if (shape == -1).any() else -1  # 0 copies the input's size
                replace(node, 1, shape)
        if node.op_type == "Resize" and len(node.input) == 4 and node.input[3] in constants:
            target = numpy_helper.to_array(constants[node.input[3]])
            source = sizes.get(node.input[0], [])
            if len(target) == len(source) and target[0] == 1 and "?" not in source:
                replace(node, 2, (target / np.array(source)).astype(np.float32))
                del node.input[3]


# --- precision -----------------------------------------------------------------------------------


def _float_types(model: onnx.ModelProto) -> set[int]:
    """Return the float types of inputs, outputs and weights."""
    constants, flowing = constants_of(model.graph), data_names(model.graph)
    found = {v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]}
    for node in model.graph.node:
        if flowing.intersection(node.output):
            found |= {
                constants[name].data_type
                for position, name in enumerate(node.input)
                if name in constants and (node.op_type, position) not in _ALWAYS_FLOAT32
            }
    return found & set(TYPES.values())


def _widen(model: onnx.ModelProto) -> None:
    """Convert every float16 to float32, which is exact."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT

    def widened(tensor: TensorProto) -> None:
        if tensor.data_type == half:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    for tensor in model.graph.initializer:
        widened(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            widened(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single


def _narrow(graph: OnnxGraph) -> None:
    """Convert floats on the data path to float16, but not those from which only shapes are
    computed."""
    inner = graph.model.graph
    constants, flowing = constants_of(inner), data_names(inner)
    half, halves = TensorProto.FLOAT16, dict[str, str]()
    for node in inner.node:
        if not flowing.intersection(node.output):
            continue
        for position, name in enumerate(node.input):
            tensor = constants.get(name)
            if tensor is None or tensor.data_type != TensorProto.FLOAT:
                continue
            if (node.op_type, position) in _ALWAYS_FLOAT32:
                continue
            if name not in halves:
                halves[name] = f"{name}/fp16"
                with np.errstate(over="ignore"):
                    array = numpy_helper.to_array(tensor).astype(np.float16)
                if not np.isfinite(array).all():
                    raise InputError(
                        f"{graph.path}: {name} is not finite in fp16; use --precision fp32"
                    )
                inner.initializer.append(numpy_helper.from_array(array, halves[name]))
            node.input[position] = halves[name]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = half if attribute.i == TensorProto.FLOAT else attribute.i
    used = {name for node in inner.node for name in node.input}
    kept = [tensor for tensor in inner.initializer if tensor.name in used]
    del inner.initializer[:]
    inner.initializer.extend(kept)
    del inner.value_info[:]
    for value in [*inner.input, *inner.output]:
        value.type.tensor_type.elem_type = half


def _fold(graph: OnnxGraph) -> onnx.ModelProto:
    """Fold constants, and batch norms into convolutions.

    A batch norm's variance may exceed float16's range where the folded weights do not.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        open_session(graph, graph.data, options)
        return onnx.load(options.optimized_model_filepath)
