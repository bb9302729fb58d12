"""The generator and its layers for `benchmarks.generator`: inputs, kernels, alternatives."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stages import Inputs, Provider, Stage
from engine.plans.comparison import random_inputs
from engine.runtime.fused import read_weights
from examples import network_files
from kernels import ROI_SIZE
from kernels.generator.network import FusedGenerator, Run, kernels_of, reference_of
from kernels.generator.plan import Activation, Layer, layers
from kernels.generator.weights import Dense, GeneratorWeights

FIRST = "up5.0"  # the layer that takes the most time, measured in more forms
FLOAT32_SUMS, ENLARGED, TWO = "float32 sums", "enlarged in memory", "two kernels"
PYTORCH = "PyTorch in float16"


@cache
def weights() -> GeneratorWeights:
    """Return the weights of the demo's generator."""
    return read_weights(network_files()["generator"])


def layer(name: str) -> Layer:
    return next(layer for layer in layers(weights()) if layer.name == name)


@cache
def _packed(name: str, device: torch.device) -> Run:
    return kernels_of(layer(name), device)


def block(batch: int, name: str) -> Stage:
    """Return one layer of the generator as a stage."""
    own = layer(name)

    def values(activation: Activation | None, device: torch.device) -> Tensor | None:
        if activation is None:
            return None
        side, channels = activation.side, activation.channels
        if activation.name in ("inputs", "out"):
            return torch.rand(batch, channels, side, side, device=device).half()
        return torch.randn(batch, side, side, channels, device=device).half()

    def inputs(device: torch.device) -> Inputs:
        x = {"x": own.x, "out": own.out, "lower": own.lower, "beside": own.beside}
        x |= {"expanded": own.expanded, "convolved": own.convolved}
        made = {name: values(activation, device) for name, activation in x.items()}
        if own.planar:
            made["x"] = _pictures(batch, device)
        return Inputs(**made)

    def run(layer_run: Run, x: Inputs) -> Tensor:
        given = dict(vars(x))
        layer_run(given.pop("x"), given.pop("out"), **given)
        return x.out

    libraries: dict[str, Provider] = {PYTORCH: partial(run, _in_float16(own))}
    if name == FIRST:
        libraries |= {
            FLOAT32_SUMS: lambda x: _with_float32_sums(lambda: run(_packed(name, x.x.device), x)),
            ENLARGED: _enlarged,
            TWO: _two_kernels,
        }
    return Stage(
        f"generator, {name}", batch, (own.x.side, own.x.side), inputs,
        viseme=lambda x: run(_packed(name, x.x.device), x),
        reference=lambda x: run(reference_of(own, x.x.device), x),
        libraries=libraries,
        bytes=lambda x: batch * (sum(read.bytes for read in own.reads) + own.out.bytes),
    )  # fmt: skip


def generator(batch: int) -> Stage:
    """Return the whole generator as a stage."""

    @cache
    def network(device: torch.device) -> FusedGenerator:
        return FusedGenerator(weights(), device)

    def inputs(device: torch.device) -> Inputs:
        audio = torch.randn(batch, 32, 16, 16, device=device).relu().half()
        out = torch.empty(batch, 3, ROI_SIZE, ROI_SIZE, dtype=torch.float16, device=device)
        return Inputs(pictures=_pictures(batch, device), audio=audio, out=out)

    def run(x: Inputs) -> Tensor:
        return network(x.out.device)(x.pictures, x.audio, x.out)

    return Stage(
        "generator", batch, (ROI_SIZE, ROI_SIZE), inputs, viseme=run,
        reference=lambda x: FusedGenerator(weights(), x.out.device, reference_of)(
            x.pictures, x.audio, x.out
        ),
        libraries={
            "torch.compile": _compiled,
            FLOAT32_SUMS: lambda x: _with_float32_sums(lambda: run(x)),
        },
        bytes=lambda x: batch * sum(network(x.out.device).traffic.values()),
    )  # fmt: skip


def accuracy(device: torch.device, *, float32_sums: bool) -> dict[str, float]:
    """Compare the kernels' generator with PyTorch in float32 on the CPU, on two frames."""
    from engine.plans.comparison import measure

    pictures, audio = (torch.from_numpy(value) for value in random_inputs("generator", 2))
    exact = FusedGenerator(weights(), torch.device("cpu"), reference_of, dtype=torch.float32)
    wanted = exact(pictures, audio, torch.empty(2, 3, ROI_SIZE, ROI_SIZE))
    out = torch.empty(2, 3, ROI_SIZE, ROI_SIZE, dtype=torch.float16, device=device)
    sums: AbstractContextManager = _float32_sums() if float32_sums else nullcontext()
    with sums:
        FusedGenerator(weights(), device)(pictures.to(device).half(), audio.to(device).half(), out)
    found = measure("generator", [out.float().cpu().numpy()], [wanted.numpy()])
    assert found.psnr is not None
    return {"PSNR, dB": found.psnr, "largest difference": found.largest}


def launches(stage: Stage, device: torch.device) -> int:
    """Count the kernels of one call."""
    x = stage.inputs(device)
    stage.viseme(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        stage.viseme(x)
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_time_total)


def _pictures(batch: int, device: torch.device) -> Tensor:
    """Make inputs whose channels 3-5 are channels 0-2 with the mouth set to 0."""
    pictures = torch.rand(batch, 6, ROI_SIZE, ROI_SIZE, device=device).half()
    pictures[:, 3:] = pictures[:, :3]
    pictures[:, 3:, 5:310, 5:315] = 0
    return pictures


def _float32_sums() -> AbstractContextManager:
    import triton.language as tl

    from kernels.generator import narrow

    return patch.object(narrow, "SUMS", tl.constexpr(tl.float32))


def _with_float32_sums(run):  # type: ignore[no-untyped-def]
    with _float32_sums():
        return run()


def _enlarged(x: Inputs) -> Tensor:
    """Run the first layer with its smaller image enlarged and joined in memory."""
    from kernels.generator.narrow import narrow, pack_narrow

    packed = _pack(pack_narrow, x.out.device)
    planes = x.lower.permute(0, 3, 1, 2)
    larger = F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=True)
    return narrow(torch.cat((larger.permute(0, 2, 3, 1), x.x), 3), packed, x.out)


def _two_kernels(x: Inputs) -> Tensor:
    """Run the first layer with its expanded channels in memory."""
    from kernels.generator.wide import depthwise_project, expand, pack_wide

    packed = _pack(pack_wide, x.out.device, lower=x.lower.shape[3])
    expanded = x.x.new_empty(*x.x.shape[:3], len(packed.expand))
    expand(x.x, packed, expanded, x.lower)
    return depthwise_project(expanded, packed, x.out)


@cache
def _pack(pack, device: torch.device, **options: int):  # type: ignore[no-untyped-def]
    return pack(layer(FIRST).weights, device, **options)


def _in_float16(own: Layer) -> Run:
    """Return a layer in PyTorch's own float16 kernels, eagerly, in channels-last."""
    made: dict[torch.device, SimpleNamespace] = {}

    def half(device: torch.device) -> SimpleNamespace:
        if device not in made:
            layers = vars(own.weights) | ({"head": own.head.weight, "head_bias": own.head.bias}
                                          if own.head else {})  # fmt: skip
            tensors = {n: t.to(device).half() for n, t in layers.items() if isinstance(t, Tensor)}
            made[device] = SimpleNamespace(**tensors)
        return made[device]

    def run(x: Tensor, out: Tensor, *, lower: Tensor | None, beside: Tensor | None,
            **scratch: object) -> object:  # fmt: skip
        w = half(out.device)
        planes = x if own.planar else x.permute(0, 3, 1, 2)
        if lower is not None:
            larger = F.interpolate(
                lower.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True
            )
            planes = torch.cat((larger, planes), 1)
        if beside is not None:
            planes = torch.cat((planes, beside.permute(0, 3, 1, 2)), 1)
        if isinstance(own.weights, Dense):
            y = F.conv2d(planes, w.weight, w.bias, own.weights.stride, own.weights.padding).relu()
            return out.copy_(y.permute(0, 2, 3, 1))
        y = F.conv2d(planes, w.expand[:, :, None, None], w.expand_bias).relu()
        y = F.conv2d(
            y,
            w.depthwise[:, None],
            w.depthwise_bias,
            own.weights.stride,
            1,
            groups=len(w.depthwise),
        ).relu()
        y = F.conv2d(y, w.project[:, :, None, None], w.project_bias)
        y = planes + y if own.weights.residual else y
        if own.head is None:
            return out.copy_(y.permute(0, 2, 3, 1))
        return out.copy_(F.conv2d(y, w.head[:, :, None, None], w.head_bias).sigmoid())

    return run


def _compiled(x: Inputs) -> Tensor:
    return _torch_network(x.out.device)(x.pictures, x.audio, out=x.out)


@cache
def _torch_network(device: torch.device):  # type: ignore[no-untyped-def]
    from engine.runtime import open_network
    from engine.runtime.signature import GENERATOR

    return open_network(GENERATOR, network_files()["generator"], device=device, runtime="torch")
