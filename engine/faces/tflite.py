"""Convert a TFLite file to ONNX: networks of convolutions with weights in float16."""

from typing import Any

import numpy as np
import onnx
import tflite
from onnx import helper, numpy_helper

from ..errors import InputError

OPSET = 17
NUMPY = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
}
OPERATORS = {code: name for name, code in vars(tflite.BuiltinOperator).items()}
NHWC_TO_NCHW, NCHW_TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def to_onnx(data: bytes) -> onnx.ModelProto:
    """Convert a TFLite file. Weights stay in float16; it computes in float32.

    Inputs and outputs have their names and layout (N, H, W, C), but a free batch size. Inside it is
    (N, C, H, W), for which ONNX's operators are defined.

    Raises:
        InputError: the network has an operator, or an option of one, that is not supported.
    """
    model = tflite.Model.GetRootAsModel(data, 0)
    if model.SubgraphsLength() != 1:
        raise InputError(f"the TFLite file has {model.SubgraphsLength()} graphs; expected 1")
    return _Conversion(model).model()


class _Conversion:
    """The graph of one file. Tensors are known by their number in it."""

    def __init__(self, model: Any):
        self._model, self._graph = model, model.Subgraphs(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._names: dict[int, str] = {}  # of the tensors computed so far, in (N, C, H, W)
        self._constants: dict[int, np.ndarray] = {}

    def model(self) -> onnx.ModelProto:
        inputs = [self._input(number) for number in self._graph.InputsAsNumpy()]
        for number in range(self._graph.OperatorsLength()):
            self._operator(self._graph.Operators(number))
        outputs = [self._output(number) for number in self._graph.OutputsAsNumpy()]
        graph = helper.make_graph(self._nodes, "network", inputs, outputs, self._weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        made.ir_version = 8  # the one of this opset's time, which every runtime reads
        onnx.checker.check_model(made, full_check=True)
        return made

    def _shape(self, number: int) -> tuple[int, ...]:
        return tuple(map(int, self._graph.Tensors(number).ShapeAsNumpy()))

    def _name(self, number: int) -> str:
        return str(self._graph.Tensors(number).Name().decode())

    def _value(self, number: int) -> onnx.ValueInfoProto:
        shape: list[str | int | None] = ["batch", *self._shape(number)[1:]]
        return helper.make_tensor_value_info(self._name(number), onnx.TensorProto.FLOAT, shape)

    def _input(self, number: int) -> onnx.ValueInfoProto:
        value = self._value(number)
        self._names[number] = self._add("Transpose", [value.name], perm=NHWC_TO_NCHW)
        return value

    def _output(self, number: int) -> onnx.ValueInfoProto:
        value = self._value(number)
        if len(self._shape(number)) == 4:
            self._add("Transpose", [self._names[number]], to=value.name, perm=NCHW_TO_NHWC)
        else:
            self._add("Identity", [self._names[number]], to=value.name)
        return value

    def _add(self, kind: str, inputs: list[str], to: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = to or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _weight(self, array: np.ndarray) -> str:
        """Add a constant, and return the name of its value: float32 where it is float16."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if array.dtype != np.float16:
            return name
        wide = f"{name}_float32"
        cast = helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT)
        self._nodes.append(cast)
        return wide

    def _constant(self, number: int) -> np.ndarray:
        """Return the values of a constant tensor."""
        if number not in self._constants:
            tensor = self._graph.Tensors(number)
            data = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
            if tensor.Type() not in NUMPY or not isinstance(data, np.ndarray):
                raise InputError(f"tensor {self._name(number)!r} is not a constant of a known type")
            array = data.view(NUMPY[tensor.Type()]).reshape(self._shape(number))
            self._constants[number] = array
        return self._constants[number]

    def _operator(self, operator: Any) -> None:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        # The older field holds codes up to 127.
        kind = OPERATORS.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "unknown")
        inputs = operator.InputsAsNumpy().tolist()
        (output,) = operator.OutputsAsNumpy().tolist()
        if kind == "DEQUANTIZE":  # of weights in float16: `_weight` does it
            self._constants[output] = self._constant(inputs[0])
            return
        convert = {
            "ADD": self._sum,
            "CONV_2D": self._convolution,
            "DEPTHWISE_CONV_2D": self._convolution,
            "MAX_POOL_2D": self._max_pool,
            "PAD": self._pad,
            "PRELU": self._prelu,
            "RELU": self._relu,
            "RESHAPE": self._reshape,
            "RESIZE_BILINEAR": self._resize,
        }.get(kind)
        if convert is None:
            raise InputError(f"the TFLite operator {kind} is not supported")
        self._names[output] = convert(operator, inputs, output)

    def _sum(self, operator: Any, inputs: list[int], output: int) -> str:
        _no_activation(_options(operator, tflite.AddOptions()))
        if any(self._shape(number) != self._shape(output) for number in inputs):
            raise InputError("an ADD of tensors of different shapes is not supported")
        return self._add("Add", [self._names[number] for number in inputs])

    def _convolution(self, operator: Any, inputs: list[int], output: int) -> str:
        """Convert CONV_2D, kernel (O, H, W, I), or DEPTHWISE_CONV_2D, kernel (1, H, W, O)."""
        source, kernel, bias = inputs
        weights = self._constant(kernel)
        channels = self._shape(source)[3]
        depthwise = operator.BuiltinOptionsType() == tflite.BuiltinOptions.DepthwiseConv2DOptions
        if depthwise:
            options = _options(operator, tflite.DepthwiseConv2DOptions())
            weights, groups = weights.transpose(3, 0, 1, 2), channels
        else:
            options = _options(operator, tflite.Conv2DOptions())
            weights, groups = weights.transpose(0, 3, 1, 2), 1
        if weights.shape[1] * groups != channels:
            raise InputError("a CONV_2D in groups is not supported")
        _no_activation(options)
        if (options.DilationHFactor(), options.DilationWFactor()) != (1, 1):
            raise InputError("a dilated convolution is not supported")
        strides = options.StrideH(), options.StrideW()
        size = weights.shape[2:]
        return self._add(
            "Conv",
            [self._names[source], self._weight(weights), self._weight(self._constant(bias))],
            group=groups,
            kernel_shape=size,
            strides=strides,
            pads=_pads(options.Padding(), self._shape(source)[1:3], size, strides),
        )

    def _max_pool(self, operator: Any, inputs: list[int], output: int) -> str:
        options = _options(operator, tflite.Pool2DOptions())
        _no_activation(options)
        size = options.FilterHeight(), options.FilterWidth()
        strides = options.StrideH(), options.StrideW()
        return self._add(
            "MaxPool",
            [self._names[inputs[0]]],
            kernel_shape=size,
            strides=strides,
            pads=_pads(options.Padding(), self._shape(inputs[0])[1:3], size, strides),
        )

    def _pad(self, operator: Any, inputs: list[int], output: int) -> str:
        before, after = self._constant(inputs[1])[list(NHWC_TO_NCHW)].T
        pads = np.concatenate([before, after]).astype(np.int64)
        return self._add("Pad", [self._names[inputs[0]], self._weight(pads)])

    def _prelu(self, operator: Any, inputs: list[int], output: int) -> str:
        slopes = self._constant(inputs[1])
        channels = self._shape(output)[3]
        if slopes.size != channels:
            raise InputError(f"a PRELU of {slopes.size} slopes for {channels} is not supported")
        slope = self._weight(slopes.reshape(channels, 1, 1))
        return self._add("PRelu", [self._names[inputs[0]], slope])

    def _relu(self, operator: Any, inputs: list[int], output: int) -> str:
        return self._add("Relu", [self._names[inputs[0]]])

    def _reshape(self, operator: Any, inputs: list[int], output: int) -> str:
        """Convert a RESHAPE from (N, H, W, C) to fewer sizes, as of the last tensors."""
        before, after = self._shape(inputs[0]), self._shape(output)
        if len(before) != 4 or len(after) == 4 or before[0] != after[0]:
            raise InputError(f"a RESHAPE of {before} to {after} is not supported")
        channels_last = self._add("Transpose", [self._names[inputs[0]]], perm=NCHW_TO_NHWC)
        shape = np.array([0, *after[1:]], np.int64)  # 0: as it is
        return self._add("Reshape", [channels_last, self._weight(shape)])

    def _resize(self, operator: Any, inputs: list[int], output: int) -> str:
        options = _options(operator, tflite.ResizeBilinearOptions())
        if options.AlignCorners() or not options.HalfPixelCenters():
            raise InputError("RESIZE_BILINEAR is only supported with half-pixel centers")
        before, after = self._shape(inputs[0]), self._shape(output)
        scales = np.array([1, 1, after[1] / before[1], after[2] / before[2]], np.float32)
        return self._add(
            "Resize",
            [self._names[inputs[0]], "", self._weight(scales)],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )


def _options(operator: Any, options: Any) -> Any:
    """Return an operator's options, read into the given object of their type."""
    table = operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _no_activation(options: Any) -> None:
    if options.FusedActivationFunction() != tflite.ActivationFunctionType.NONE:
        raise InputError("operators with an activation of their own are not supported")


def _pads(
    padding: int, sides: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, ...]
) -> list[int]:
    """Return the pixels to add at the top, the left, the bottom and the right.

    With the padding "same" the output has ceil(side / stride) pixels, and if the number of pixels
    to add is odd, the bottom and the right get one more.
    """
    if padding == tflite.Padding.VALID:
        return [0, 0, 0, 0]
    totals = [
        max((-(-side // stride) - 1) * stride + length - side, 0)
        for side, length, stride in zip(sides, size, strides, strict=True)
    ]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]
