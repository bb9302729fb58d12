"""The convolutions of a generator, read out of its ONNX file without running it.

The file's graph is followed from the output back to the inputs and compared, node by node, with the
generator's. So a file with the generator's weights but another computation is not mistaken for it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from kernels.generator.weights import HEAD, PARTS, SHAPES, Shape, convolution_shapes

from ..errors import InputError, one_line
from ..reading import read_regular
from .signature import GENERATOR

MAX_BYTES = 256 << 20  # of a file; the generator in float32 has 49 MB
_FLOATS = {
    int(kind)
    for kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
}

Convolutions = dict[str, tuple[Tensor, Tensor]]


class _Unexpected(ValueError):
    """The graph is not the generator's. The message says where."""


def read_convolutions(path: Path, *, float32: bool = True) -> Convolutions:
    """Read weight and bias of each convolution, with batch norms folded in, in float64.

    Args:
        float32: whether the file may be one of float32, not only of float16.

    Returns:
        By the names in a checkpoint: see `kernels.generator.weights.convolution_shapes`.

    Raises:
        InputError: the file cannot be read, or computes something else than the generator.
    """
    try:
        model = onnx.load_model_from_string(read_regular(path, MAX_BYTES))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:  # protobuf's own
        raise InputError(f"{path} is not an ONNX file: {one_line(error)}") from error
    weights = (tensor for tensor in _constants(model.graph).values() if len(tensor.dims) == 4)
    if not float32 and any(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in weights):
        raise InputError(
            f"{path} is float32, but fused kernels compute in float16; --runtime fused allows that"
        )
    try:
        return convolutions_of(model.graph)
    except ValueError as error:
        raise InputError(
            f"{path} is not a generator as python -m export writes it: {one_line(error)}"
        ) from error


def convolutions_of(graph: onnx.GraphProto) -> Convolutions:
    """Read the convolutions of a generator's graph, see `read_convolutions`.

    Raises:
        ValueError: it is another graph, or one that is no valid ONNX.
    """
    try:
        return _Graph(graph).generator()
    except (TypeError, AttributeError, IndexError) as error:  # fewer inputs than an operator has
        raise ValueError(one_line(error)) from error


@dataclass
class _Graph:
    """Follows the values of a graph backwards."""

    graph: onnx.GraphProto

    def __post_init__(self) -> None:
        self._makers = {name: node for node in self.graph.node for name in node.output if name}
        self._constants = _constants(self.graph)
        self._found: Convolutions = {}

    def generator(self) -> Convolutions:
        pictures, features = self._given()
        (output,) = (value.name for value in self.graph.output)
        x = self._conv(self._only(output, "Sigmoid"), HEAD, Shape(16, 3))
        skips = []
        for number in range(5, 0, -1):
            names = [name for name in SHAPES if name.startswith(f"up{number}.")]
            lower, skip = self._joined(self._blocks(x, names))
            skips.append(skip)
            x = self._enlarged(lower)
        names = [name for name in SHAPES if name.startswith("fuse_conv.")]
        x, heard = self._joined(self._blocks(x, names))
        for name in reversed([name for name in SHAPES if name.startswith("audio_model.")]):
            layer = self._dense if SHAPES[name].dense else self._block
            heard = layer(heard, name)
        self._expect(heard == features, "the audio branch does not begin at the features")
        for number in range(5, 0, -1):
            names = [name for name in SHAPES if name.startswith(f"down{number}.")]
            x = self._blocks(x, names)
            fault = f"up{6 - number} does not join what down{number} begins at"
            self._expect(x == skips[number - 1], fault)
        x = self._block(x, "inc.inconv.0")
        self._expect(x == pictures, "inc does not begin at the pictures")
        return self._found

    def _given(self) -> tuple[str, ...]:
        """Return the names of the pictures' and of the features' value."""
        given = [value for value in self.graph.input if value.name not in self._constants]
        found = []
        for wanted in GENERATOR.inputs.values():
            for value in given:
                sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                if tuple(sizes[1:]) == wanted:
                    found.append(value.name)
        self._expect(len(found) == len(given) == 2, f"it has {len(given)} inputs")
        self._expect(len(self.graph.output) == 1, f"it has {len(self.graph.output)} outputs")
        return tuple(found)

    def _blocks(self, value: str, names: Sequence[str]) -> str:
        for name in reversed(names):
            value = self._block(value, name)
        return value

    def _block(self, value: str, name: str) -> str:
        """Read the block that makes a value, and return what it is made of."""
        if not SHAPES[name].residual:
            return self._chain(value, name)
        sides = self._inputs_of(value, "Add", 2)
        for x, y in (sides, sides[::-1]):
            with suppress(_Unexpected):
                if self._chain(y, name) == x:
                    return x
        raise _Unexpected(f"{name} is not a residual block")

    def _chain(self, value: str, name: str) -> str:
        shape = SHAPES[name]
        expanded = 2 * shape.inputs
        expand, depthwise, project = (f"{name}.{part}" for part in PARTS)
        value = self._conv(value, project, Shape(expanded, shape.outputs))
        value = self._only(value, "Relu")
        inner = Shape(expanded, expanded, shape.stride, padding=1)
        value = self._conv(value, depthwise, inner, groups=expanded)
        value = self._only(value, "Relu")
        return self._conv(value, expand, Shape(shape.inputs, expanded))

    def _dense(self, value: str, name: str) -> str:
        return self._conv(self._only(value, "Relu"), name, SHAPES[name])

    def _conv(self, value: str, name: str, shape: Shape, groups: int = 1) -> str:
        """Read a convolution and the batch norm after it, if there is one."""
        norm: onnx.NodeProto | None = self._maker(value)
        if norm is not None and norm.op_type == "BatchNormalization":
            value = self._resolved(norm.input[0])
        else:
            norm = None
        node = self._maker(value)
        if node is None or node.op_type != "Conv":
            raise _Unexpected(f"{name} is {_title(node)}; expected a Conv")
        size = convolution_shapes()[name]
        # A 1x1 convolution has no padding, see `Shape`.
        padding = shape.padding if size[2] == 3 else 0
        pads = [padding] * 4
        wanted: dict[str, Any] = {
            "strides": [shape.stride] * 2, "pads": pads, "dilations": [1, 1], "group": groups,
            "kernel_shape": list(size[2:]), "auto_pad": b"NOTSET",
        }  # fmt: skip
        defaults = wanted | {"strides": [1, 1], "pads": [0] * 4, "group": 1}
        _check(name, node, wanted, defaults)
        weight = self._tensor(node.input[1], size)
        bias = np.zeros(size[0])
        if len(node.input) > 2 and node.input[2]:
            bias = self._tensor(node.input[2], size[:1])
        if norm is not None:
            _check(f"the norm of {name}", norm, {"training_mode": 0}, {"training_mode": 0})
            scale, shift, mean, var = (self._tensor(n, size[:1]) for n in norm.input[1:5])
            factor = scale / np.sqrt(var + _attributes(norm).get("epsilon", 1e-5))
            weight = weight * factor[:, None, None, None]
            bias = (bias - mean) * factor + shift
        self._found[name] = torch.from_numpy(weight), torch.from_numpy(bias)
        return self._resolved(node.input[0])

    def _enlarged(self, value: str) -> str:
        """Return what a value is the bilinear enlargement of. Its size follows from `_joined`."""
        node = self._maker(value)
        if node is None or node.op_type != "Resize":
            raise _Unexpected(f"{_title(node)} instead of a Resize")
        wanted = {"mode": b"linear", "coordinate_transformation_mode": b"align_corners"}
        defaults = {"mode": b"nearest", "coordinate_transformation_mode": b"half_pixel"}
        _check("an upsampling", node, wanted, defaults)
        if node_axes := _attributes(node).get("axes"):
            raise _Unexpected(f"an upsampling of the axes {node_axes}")
        return self._resolved(node.input[0])

    def _joined(self, value: str) -> tuple[str, ...]:
        sides = self._inputs_of(value, "Concat", 2)
        maker = self._maker(value)
        assert maker is not None
        _check("a Concat", maker, {"axis": 1}, {})
        return sides

    def _only(self, value: str, op: str) -> str:
        (x,) = self._inputs_of(value, op, 1)
        return x

    def _inputs_of(self, value: str, op: str, count: int) -> tuple[str, ...]:
        node = self._maker(value)
        if node is None or node.op_type != op or len(node.input) != count:
            raise _Unexpected(f"{_title(node)} instead of {op} of {count}")
        return tuple(map(self._resolved, node.input))

    def _maker(self, value: str) -> onnx.NodeProto | None:
        node = self._makers.get(self._resolved(value))
        if node is not None and node.domain not in ("", "ai.onnx"):
            raise _Unexpected(f"an operator of {node.domain!r}")
        return node

    def _resolved(self, value: str) -> str:
        """Return the value that this one is a copy of, of whatever precision."""
        for _ in range(len(self.graph.node)):
            node = self._makers.get(value)
            if node is None or node.op_type not in ("Identity", "Cast") or node.domain:
                break
            if node.op_type == "Cast" and _attributes(node).get("to") not in _FLOATS:
                break
            value = node.input[0]
        return value

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = self._constants.get(self._resolved(name))
        if tensor is None:
            raise _Unexpected(f"{name} is not a constant")
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if external or tensor.data_type not in _FLOATS:
            raise _Unexpected(f"{name} is not a tensor of floats in the file itself")
        if tuple(tensor.dims) != shape:
            raise _Unexpected(f"{name} is {tuple(tensor.dims)}; expected {shape}")
        return numpy_helper.to_array(tensor).astype(np.float64)

    @staticmethod
    def _expect(right: bool, fault: str) -> None:
        if not right:
            raise _Unexpected(fault)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a graph holds, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and _attributes(node).keys() == {"value"}:
            found[node.output[0]] = node.attribute[0].t
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _check(
    what: str, node: onnx.NodeProto, wanted: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Raise _Unexpected if an attribute of a node, or its default, is not the wanted one."""
    given = defaults | _attributes(node)
    for name, value in wanted.items():
        if given.get(name) != value:
            raise _Unexpected(f"{what} has {name} {given.get(name)}; expected {value}")


def _title(node: onnx.NodeProto | None) -> str:
    return "an input" if node is None else f"a {node.op_type}"
