"""Make ONNX files of our networks in many forms, and some that are invalid."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from models import checkpoint


def fixed_batch(source: Path, target: Path, batch: int = 1) -> Path:
    """Fix the batch of a network, so that the file has no free size."""
    model = onnx.load(source)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def older_export(source: Path, target: Path) -> Path:
    """Export a generator's checkpoint with PyTorch's older exporter: batch 1, float32, opset 11."""
    example = torch.rand(1, 6, 320, 320), torch.rand(1, 32, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            checkpoint.load(source, "generator"),
            example,
            target,
            dynamo=False,
            opset_version=11,
            input_names=["face", "sound"],
            output_names=["mouth"],
        )
    return target


def weights_as_nodes(source: Path, target: Path) -> Path:
    """Make Constant nodes of a network's weights."""
    model = onnx.load(source)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    del model.graph.initializer[:]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, target)
    return target


def baked_reshape(source: Path, target: Path) -> Path:
    """Make an audio encoder for one window, whose last step is a Reshape to [1, 512]."""
    model = onnx.load(fixed_batch(source, target))
    graph = model.graph
    squeezes = [node for node in graph.node if node.op_type == "Squeeze"]
    first, last = squeezes[0].input[0], squeezes[-1].output[0]
    for node in squeezes:
        graph.node.remove(node)
    graph.initializer.append(numpy_helper.from_array(np.array([1, 512]), "shape"))
    graph.node.append(helper.make_node("Reshape", [first, "shape"], [last], "tail"))
    onnx.save(model, target)
    return target


def baked_flatten(source: Path, target: Path) -> Path:
    """Make the same with a Flatten over the batch too, so that the batch cannot be made free."""
    model = onnx.load(baked_reshape(source, target))
    tail = model.graph.node[-1]
    tail.op_type = "Flatten"
    del tail.input[1:]
    tail.attribute.append(helper.make_attribute("axis", 0))
    onnx.save(model, target)
    return target


def baked_sizes(source: Path, target: Path) -> Path:
    """Make a generator for one frame, whose upsampling has constant sizes: [1, channels, rows,
    columns]."""
    model = onnx.shape_inference.infer_shapes(onnx.load(fixed_batch(source, target)))
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "Resize"):
        name = f"sizes{number}"
        sizes = np.array(shapes[node.output[0]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(sizes, name))
        node.input[:] = [node.input[0], "", "", name]
    onnx.save(model, target)
    return target


def float32_outside(source: Path, target: Path) -> Path:
    """Make a float16 network with casts, so that its inputs and outputs are float32."""
    model = onnx.load(source)
    graph = model.graph
    for value in graph.input:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            node.input[:] = [f"{n}/half" if n == value.name else n for n in node.input]
        to = TensorProto.FLOAT16
        graph.node.insert(0, helper.make_node("Cast", [value.name], [f"{value.name}/half"], to=to))
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            node.output[:] = [f"{n}/half" if n == value.name else n for n in node.output]
        to = TensorProto.FLOAT
        graph.node.append(helper.make_node("Cast", [f"{value.name}/half"], [value.name], to=to))
    del graph.value_info[:]
    onnx.save(model, target)
    return target


def loud(source: Path, target: Path) -> Path:
    """Make an audio encoder with the same output, whose inner values reach a million."""
    model = onnx.load(source)
    graph = model.graph
    last = graph.node[-1]
    graph.initializer.append(numpy_helper.from_array(np.float32(1e6), "million"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-6), "millionth"))
    out = last.output[0]
    last.output[0] = "quiet"
    graph.node.append(helper.make_node("Mul", ["quiet", "million"], ["roar"], "up"))
    graph.node.append(helper.make_node("Mul", ["roar", "millionth"], [out], "down"))
    onnx.save(model, target)
    return target


def strange(target: Path) -> Path:
    """Make a graph with a generator's inputs and output and an unknown operator."""
    node = helper.make_node("Lipsync", ["input", "audio"], ["output"], "strange")
    value = helper.make_tensor_value_info
    half = TensorProto.FLOAT16
    inputs = [value("input", half, ["n", 6, 320, 320]), value("audio", half, ["n", 32, 16, 16])]
    graph = helper.make_graph([node], "g", inputs, [value("output", half, ["n", 3, 320, 320])])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), target)
    return target


def weights_beside(source: Path, target: Path) -> Path:
    """Save the network with its weights in a second file, NAME.onnx.data."""
    onnx.save(onnx.load(source), target, save_as_external_data=True, location=f"{target.name}.data")
    return target


def changed_weight(path: Path) -> None:
    """Change one weight."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.data_type in (1, 10) and t.dims)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
