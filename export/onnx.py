"""Checkpoint -> ONNX file that has been checked against PyTorch."""

import contextlib
import copy
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from engine.errors import printable
from engine.files import whole
from engine.plans.comparison import Difference, measure, random_inputs
from models import checkpoint
from models.batch_norm import fold_batch_norms

# The lowest opset that PyTorch's exporter writes without converting, so that the file runs on the
# oldest runtimes it can.
_OPSET = 18

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_NAMES = {
    "generator": (["input", "audio"], ["output"]),
    "audio_encoder": (["mel_spectrogram"], ["audio_features"]),
}


class ExportError(RuntimeError):
    """The exported network does not compute what the checkpoint computes. One line."""


@dataclass(frozen=True)
class Report:
    """What was exported, and how close it is to PyTorch float32.

    max_difference: largest |difference|, in the output's own units; relative_difference: the same
    over the output's scale (1 for the generator); psnr: dB, None for the audio encoder.
    """

    file: Path
    bytes: int
    nodes: int
    precision: str
    max_difference: float
    relative_difference: float
    psnr: float | None


def export(
    kind: str,
    checkpoint_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    max_batch: int = 64,
) -> Report:
    """Exports a checkpoint, checks the file in ONNX Runtime, and only then gives it its name.

    kind: "generator" or "audio_encoder". precision: "fp16" or "fp32", of the weights, the inputs
    and the outputs. max_batch: the batch dimension is free from 1 to this; 1 fixes it.
    Batch norms are folded into the convolutions before them, and the weights are in the file.

    The check compares with PyTorch float32 on random inputs of realistic scale, in batches of 1
    and 3. Raises `ExportError` when it fails, `models.checkpoint.CheckpointError` for a checkpoint
    that does not fit, `OSError` for an output that cannot be written, `ValueError` for the rest;
    whatever is raised, an existing output stays as it was and no other file is left.
    """
    if kind not in _NAMES:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(_NAMES)}")
    if precision not in _DTYPES:
        raise ValueError(f"precision is {precision!r}, must be one of {', '.join(_DTYPES)}")
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}, must be at least 1")
    output = Path(output)
    if output.suffix != ".onnx":
        raise ValueError(f"{output}: the output's name must end in .onnx")
    if output.is_dir():
        raise IsADirectoryError(f"{output}: is a folder")

    with whole(output) as part:
        try:
            # Before the long work: is there a folder, and may one write there?
            part.touch()
        except OSError as error:
            raise type(error)(f"{output.parent}: cannot be written to: {error.strerror}") from None
        _progress(printable(f"loading {checkpoint_path}"))
        reference = checkpoint.load(checkpoint_path, kind)
        network = copy.deepcopy(reference)
        fold_batch_norms(network)
        network.to(_DTYPES[precision])
        for name, weight in network.named_parameters():
            if not torch.isfinite(weight).all():
                raise ExportError(f"{name} is not finite in {precision} once its norm is folded in")

        _progress(f"exporting to {precision}")
        model = _to_onnx(kind, network, max_batch)
        onnx.save(model, part)
        _progress("checking against PyTorch")
        difference = _check(kind, reference, part, precision, max_batch)
    return Report(
        file=output,
        bytes=output.stat().st_size,
        nodes=len(model.graph.node),
        precision=precision,
        max_difference=difference.largest,
        relative_difference=difference.relative,
        psnr=difference.psnr,
    )


def _to_onnx(kind: str, network: nn.Module, max_batch: int) -> onnx.ModelProto:
    inputs, outputs = _NAMES[kind]
    dtype = next(network.parameters()).dtype
    free = max_batch > 1
    # The exporter would take a batch of 1 for a constant.
    example = tuple(torch.from_numpy(x).to(dtype) for x in random_inputs(kind, 2 if free else 1))
    batch = torch.export.Dim("batch", min=1, max=max_batch) if free else None
    with _silence():
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example) if free else None,
            input_names=inputs,
            output_names=outputs,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None  # only without `dynamo`
    model = program.model_proto
    # The exporter's notes hold stack traces, with the paths of the machine they were made on.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.metadata_props.add(key="max_batch", value=str(max_batch))
    return model


def _check(
    kind: str, reference: nn.Module, path: Path, precision: str, max_batch: int
) -> Difference:
    """Compares the file with PyTorch. Raises ExportError."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    dtype = np.float16 if precision == "fp16" else np.float32
    outputs: list[np.ndarray] = []
    references: list[np.ndarray] = []
    for n in sorted({1, min(3, max_batch)}):
        inputs = random_inputs(kind, n)
        expected, peak = _run_reference(reference, inputs)
        if precision == "fp16" and peak > torch.finfo(torch.float16).max:
            # ONNX Runtime computes in float32 on a CPU and would not notice; a GPU would.
            raise ExportError(
                f"values inside the network reach {peak:.3g}, beyond float16's 65504: use fp32"
            )
        feeds = {i.name: x.astype(dtype) for i, x in zip(session.get_inputs(), inputs, strict=True)}
        (actual,) = session.run(None, feeds)
        if actual.shape != expected.shape or actual.dtype != dtype:
            raise ExportError(
                f"the exported network gives {actual.dtype} {actual.shape} "
                f"instead of {np.dtype(dtype)} {expected.shape}"
            )
        outputs.append(actual)
        references.append(expected)
    difference = measure(kind, outputs, references)
    if excess := difference.excess(precision):
        raise ExportError(f"the exported network, compared with PyTorch, {excess}")
    return difference


def _run_reference(reference: nn.Module, inputs: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """The output in float32, and the largest |value| of any layer's output on the way."""
    peak = 0.0

    def note_peak(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, output.abs().max().item())

    # A batch norm's input does not exist in the exported network, hence no hook on its conv.
    hooks = [
        module.register_forward_hook(note_peak)
        for module in reference.modules()
        if not isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            output = reference(*(torch.from_numpy(x) for x in inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return output.numpy(), peak


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's prints, warnings and log lines from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
