"""An ONNX file as it is found: whether it is one of our networks, and which input is which."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from ..errors import InputError
from ..runtime.onnxruntime import match
from ..runtime.signature import Signature
from .flavor import one_line

_NAMES = {TensorProto.FLOAT: "tensor(float)", TensorProto.FLOAT16: "tensor(float16)"}


class Value(NamedTuple):
    """A tensor of a graph, described as ONNX Runtime does: "?" for a size that is free."""

    name: str
    shape: list
    type: str


@dataclass
class Graph:
    """An ONNX file that is one of our networks.

    model: as it is now, `data` in bytes. inputs, output: names, in the signature's order.
    notices: what differs from the file, for people.
    """

    signature: Signature
    path: Path
    model: onnx.ModelProto
    inputs: list[str]
    output: str
    notices: list[str] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return self.model.SerializeToString()


def load(signature: Signature, path: Path) -> Graph:
    """Read an ONNX file.

    Raises:
        InputError: it is none, or one of another network.
    """
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file") from error
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    graph = model.graph
    if not graph.node:  # what protobuf makes of an empty file, and of some texts
        raise InputError(f"{path} is not an ONNX file")
    weights = {tensor.name for tensor in graph.initializer}
    fed = [describe(value) for value in graph.input if value.name not in weights]
    inputs = [value.name for value in match(path, signature, signature.inputs, fed)]
    given = [describe(value) for value in graph.output]
    (output,) = (value.name for value in match(path, signature, signature.outputs, given))
    found = Graph(signature, path, model, inputs, output)
    wanted = [*signature.inputs, *signature.outputs]
    other = [
        f"{name} as {want}"
        for name, want in zip([*inputs, output], wanted, strict=True)
        if name != want
    ]
    if other:
        found.notices.append(f"its {', its '.join(other)}")
    return found


def describe(value: onnx.ValueInfoProto) -> Value:
    kind = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else "?" for size in kind.shape.dim]
    type_name = TensorProto.DataType.Name(kind.elem_type).lower()
    return Value(value.name, shape, _NAMES.get(kind.elem_type, f"tensor({type_name})"))


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Weights and constants by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def flowing_names(graph: onnx.GraphProto) -> set[str]:
    """Names of what is computed from the inputs' values, and not only from their shapes."""
    found = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # ONNX has them in an order in which they can run
        if node.op_type not in ("Shape", "Size") and found.intersection(node.input):
            found.update(node.output)
    return found
