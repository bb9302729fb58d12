"""The generator's weights with batch norms folded in, checked, and scaled to fit float16."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

Convolution = tuple[Tensor, Tensor]  # weight (O, C / groups, k, k) and bias (O,)


@dataclass(frozen=True)
class Block:
    """An inverted residual: 1x1 expand, ReLU, 3x3 depthwise, ReLU, 1x1 project. Float32, on the
    CPU; E = 2 C."""

    expand: Tensor  # (E, C)
    expand_bias: Tensor  # (E,)
    depthwise: Tensor  # (E, 3, 3)
    depthwise_bias: Tensor  # (E,)
    project: Tensor  # (O, E)
    project_bias: Tensor  # (O,)
    stride: int = 1
    residual: bool = False


@dataclass(frozen=True)
class Dense:
    """A 3x3 convolution and ReLU. Float32, on the CPU."""

    weight: Tensor  # (O, C, 3, 3)
    bias: Tensor  # (O,)
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Head:
    """A 1x1 convolution and sigmoid. Float32, on the CPU."""

    weight: Tensor  # (3, C)
    bias: Tensor  # (3,)


_Layer = TypeVar("_Layer", Block, Dense, Head)
Pair = tuple[Block, Block]
Audio = tuple[Block, Block, Dense, Block, Dense, Block, Block]


@dataclass(frozen=True)
class GeneratorWeights:
    """All layers of a generator, in the order in which they run."""

    inc: Block
    downs: tuple[Pair, Pair, Pair, Pair, Pair]
    fuse: tuple[Block, Block, Block, Block]
    ups: tuple[Pair, Pair, Pair, Pair, Pair]
    audio: Audio
    head: Head


@dataclass(frozen=True)
class Shape:
    """Of a block, or of a dense convolution."""

    inputs: int
    outputs: int
    stride: int = 1
    residual: bool = False
    padding: int = 1
    dense: bool = False


def _pair(name: str, inputs: int, outputs: int, stride: int = 1) -> dict[str, Shape]:
    return {
        f"{name}.double_conv.0": Shape(inputs, outputs, stride),
        f"{name}.double_conv.1": Shape(outputs, outputs, residual=True),
    }


_DOWNS = {
    name: shape
    for i, (inputs, outputs) in enumerate(
        ((32, 32), (32, 64), (64, 128), (128, 256), (256, 512)), start=1
    )
    for name, shape in _pair(f"down{i}.maxpool_conv.0", inputs, outputs, 2).items()
}
_FUSE = _pair("fuse_conv.0", 1024, 512) | _pair("fuse_conv.1", 512, 256)
_UPS = {
    name: shape
    for i, (inputs, outputs) in enumerate(
        ((512, 128), (256, 64), (128, 32), (64, 32), (64, 16)), start=1
    )
    for name, shape in _pair(f"up{i}.conv", inputs, outputs).items()
}
_AUDIO = {
    "audio_model.conv1": Shape(32, 64),
    "audio_model.conv2": Shape(64, 128),
    "audio_model.conv3": Shape(128, 256, dense=True),
    "audio_model.conv4": Shape(256, 256, residual=True),
    "audio_model.conv5": Shape(256, 512, stride=2, padding=3, dense=True),
    "audio_model.conv6": Shape(512, 512, residual=True),
    "audio_model.conv7": Shape(512, 512, residual=True),
}
# By the names of a checkpoint.
SHAPES = {"inc.inconv.0": Shape(6, 32)} | _DOWNS | _FUSE | _UPS | _AUDIO
HEAD = "outc.conv"
# The expand, depthwise and project convolution of a block, in the names of a checkpoint.
PARTS = "conv.0", "conv.3", "conv.6"


def convolution_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each of the generator's convolutions, by the names of a
    checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in SHAPES.items():
        if shape.dense:
            shapes[name] = shape.outputs, shape.inputs, 3, 3
            continue
        expanded = 2 * shape.inputs
        kernels = (
            (expanded, shape.inputs, 1, 1), (expanded, 1, 3, 3), (shape.outputs, expanded, 1, 1),
        )  # fmt: skip
        shapes |= {f"{name}.{part}": kernel for part, kernel in zip(PARTS, kernels, strict=True)}
    return shapes | {HEAD: (3, 16, 1, 1)}


def generator_weights(convolutions: Mapping[str, Convolution]) -> GeneratorWeights:
    """Make the weights of a generator from its convolutions, with batch norms folded in.

    Each block is scaled, which changes nothing else, so that float16 holds its expanded channels
    and its weights, see `scaled`.

    Args:
        convolutions: weight and bias of each convolution, of any dtype, by the names of a
            checkpoint, see `convolution_shapes`.

    Raises:
        ValueError: a convolution is missing or has another shape, or a weight is not finite or too
            large for float16.
    """
    for name, shape in convolution_shapes().items():
        if name not in convolutions:
            raise ValueError(f"there is no convolution {name}")
        weight, bias = convolutions[name]
        if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
            raise ValueError(
                f"{name} has a weight of {tuple(weight.shape)} and a bias of {tuple(bias.shape)}; "
                f"expected {shape} and {shape[:1]}"
            )
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ValueError(f"{name} has weights that are not finite, its batch norm included")

    def block(name: str) -> Block:
        (expand, first), (depthwise, second), (project, third) = (
            convolutions[f"{name}.{part}"] for part in PARTS
        )
        shape = SHAPES[name]
        made = Block(
            expand[:, :, 0, 0], first, depthwise[:, 0], second, project[:, :, 0, 0], third,
            shape.stride, shape.residual,
        )  # fmt: skip
        return _checked(name, scaled(made))

    def dense(name: str) -> Dense:
        shape = SHAPES[name]
        return _checked(name, Dense(*convolutions[name], shape.stride, shape.padding))

    def pairs(shapes: Mapping[str, Shape]) -> Iterator[Pair]:
        names = list(shapes)
        for first, second in zip(names[::2], names[1::2], strict=True):
            yield block(first), block(second)

    one, two, three, four, five, six, seven = _AUDIO
    down1, down2, down3, down4, down5 = pairs(_DOWNS)
    up1, up2, up3, up4, up5 = pairs(_UPS)
    fuse1, fuse2 = pairs(_FUSE)
    weight, bias = convolutions[HEAD]
    return GeneratorWeights(
        inc=block("inc.inconv.0"),
        downs=(down1, down2, down3, down4, down5),
        fuse=(*fuse1, *fuse2),
        ups=(up1, up2, up3, up4, up5),
        audio=(
            block(one), block(two), dense(three), block(four), dense(five), block(six),
            block(seven),
        ),
        head=_checked(HEAD, Head(weight[:, :, 0, 0], bias)),
    )  # fmt: skip


def scaled(block: Block) -> Block:
    """Scale a block's two expanded tensors, channel by channel, by powers of two.

    ReLU commutes with positive scales: relu(2^k x) = 2^k relu(x). So a channel's weights and bias
    times 2^k and the weights that read it times 2^-k give the same block. Here k is such that the
    largest weight that reads a channel is in [1, 2): then the channel is as large as what it adds
    to the result, however small or large the variances of its batch norm are.
    """
    double = (getattr(block, field.name) for field in fields(block)[:6])
    expand, expand_bias, depthwise, depthwise_bias, project, project_bias = (
        tensor.detach().double().cpu() for tensor in double
    )
    scale = _power(project.abs().amax(0))
    project = project / scale
    depthwise, depthwise_bias = depthwise * scale[:, None, None], depthwise_bias * scale
    scale = _power(depthwise.abs().amax((1, 2)))
    depthwise = depthwise / scale[:, None, None]
    expand, expand_bias = expand * scale[:, None], expand_bias * scale
    return replace(
        block, expand=expand, expand_bias=expand_bias, depthwise=depthwise,
        depthwise_bias=depthwise_bias, project=project, project_bias=project_bias,
    )  # fmt: skip


def _power(x: Tensor) -> Tensor:
    """Return the largest powers of two that are not larger; 1 for 0."""
    _, exponent = torch.frexp(torch.where(x > 0, x, 1.0))
    return torch.ldexp(torch.ones_like(x), exponent - 1)


def _checked(name: str, layer: _Layer) -> _Layer:
    """Return the layer in float32, contiguous, on the CPU.

    Raises:
        ValueError: a weight is too large for float16.
    """
    tensors = {
        field.name: getattr(layer, field.name).detach().float().cpu().contiguous()
        for field in fields(layer)
        if isinstance(getattr(layer, field.name), Tensor)
    }
    most = torch.finfo(torch.float16).max
    for field_name, tensor in tensors.items():
        if not tensor.abs().max() <= most:
            raise ValueError(
                f"{name} has a {field_name.replace('_', ' ')} of {tensor.abs().max():.3g}; float16 "
                f"ends at {most:.0f}"
            )
    return replace(layer, **tensors)
