"""Read an ONNX file of one of our networks, and find out which input is which."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from ..errors import InputError, one_line
from ..runtime.onnxruntime import match
from ..runtime.signature import Signature

_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "tensor(float)",
    TensorProto.FLOAT16: "tensor(float16)",
}


class Value(NamedTuple):
    """A graph's tensor as ONNX Runtime describes it; a free size is "?"."""

    name: str
    shape: list
    type: str


@dataclass
class OnnxGraph:
    """An ONNX file of one of our networks.

    Attributes:
        signature: the network's inputs and outputs.
        path: the file.
        model: the graph, which conversions change.
        inputs: names of the inputs, in the signature's order.
        output: name of the output.
        notices: the changes, for messages.
    """

    signature: Signature
    path: Path
    model: onnx.ModelProto
    inputs: list[str]
    output: str
    notices: list[str] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """The serialized model."""
        return self.model.SerializeToString()


def load_graph(signature: Signature, path: Path) -> OnnxGraph:
    """Read an ONNX file.

    Raises:
        InputError: it is not an ONNX file, or the file of another network.
    """
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file") from error
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    graph = model.graph
    if not graph.node:  # protobuf reads an empty file, and some texts, as an empty graph
        raise InputError(f"{path} is not an ONNX file")
    weights = {tensor.name for tensor in graph.initializer}
    fed = [describe(value) for value in graph.input if value.name not in weights]
    inputs = [value.name for value in match(path, signature, signature.inputs, fed)]
    results = [describe(value) for value in graph.output]
    (output,) = (value.name for value in match(path, signature, signature.outputs, results))
    loaded = OnnxGraph(signature, path, model, inputs, output)
    expected = [*signature.inputs, *signature.outputs]
    renamed = [
        f"{name} as {usual}"
        for name, usual in zip([*inputs, output], expected, strict=True)
        if name != usual
    ]
    if renamed:
        loaded.notices.append(f"its {', its '.join(renamed)}")
    return loaded


def describe(value: onnx.ValueInfoProto) -> Value:
    kind = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else "?" for size in kind.shape.dim]
    type_name = TensorProto.DataType.Name(kind.elem_type).lower()
    return Value(value.name, shape, _NAMES.get(int(kind.elem_type), f"tensor({type_name})"))


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return a graph's weights and constants by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def data_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of tensors that depend on the inputs' values, not only on their shapes."""
    found = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # ONNX keeps nodes in topological order
        if node.op_type not in ("Shape", "Size") and found.intersection(node.input):
            found.update(node.output)
    return found
