"""Export a checkpoint to an ONNX file, and compare the file with PyTorch."""

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

# The lowest opset that PyTorch's exporter writes without a conversion, so that old runtimes can run
# the file.
_OPSET = 18

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_NAMES = {
    "generator": (["input", "audio"], ["output"]),
    "audio_encoder": (["mel_spectrogram"], ["audio_features"]),
}


class ExportError(RuntimeError):
    """The exported network differs from the checkpoint. The message is one line."""


@dataclass(frozen=True)
class Report:
    """The exported file, and how close it is to PyTorch in float32.

    Attributes:
        file: the ONNX file.
        bytes: its size.
        nodes: number of nodes in its graph.
        precision: "fp16" or "fp32".
        max_difference: largest |difference|, in the output's own units.
        relative_difference: the same divided by the output's scale (1 for the generator).
        psnr: PSNR in dB; None for the audio encoder.
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
    """Export a checkpoint to ONNX, and compare the file in ONNX Runtime with PyTorch in float32.

    Batch norms are folded into the convolutions before them, and the weights are in the file. The
    comparison uses random inputs of realistic scale, in batches of 1 and 3. The file gets its name
    only after the comparison. After an error, an existing output is unchanged, and no partial file
    stays.

    Args:
        kind: "generator" or "audio_encoder".
        checkpoint_path: the checkpoint, see `models.checkpoint.load`.
        output: name of the ONNX file, which ends in .onnx.
        precision: precision of weights, inputs and outputs, "fp16" or "fp32".
        max_batch: largest batch. With 1, the batch is fixed; otherwise it is free.

    Raises:
        ExportError: the exported network differs from the checkpoint.
        models.checkpoint.CheckpointError: the checkpoint cannot be used.
        OSError: the output cannot be written.
        ValueError: an argument is out of range.
    """
    if kind not in _NAMES:
        raise ValueError(f"kind is {kind!r}; expected one of: {', '.join(_NAMES)}")
    if precision not in _DTYPES:
        raise ValueError(f"precision is {precision!r}; expected one of: {', '.join(_DTYPES)}")
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; expected at least 1")
    output = Path(output)
    if output.suffix != ".onnx":
        raise ValueError(f"output is {output}; expected a name that ends in .onnx")
    if output.is_dir():
        raise IsADirectoryError(f"{output}: is a folder")

    with contextlib.ExitStack() as stack:
        try:
            part = stack.enter_context(whole(output))
        except OSError as error:
            raise type(error)(f"{output.parent}: cannot be written: {error.strerror}") from None
        _progress(printable(f"loading {checkpoint_path}"))
        reference = checkpoint.load(checkpoint_path, kind)
        network = copy.deepcopy(reference)
        fold_batch_norms(network)
        network.to(_DTYPES[precision])
        for name, weight in network.named_parameters():
            if not torch.isfinite(weight).all():
                raise ExportError(f"{name} is not finite in {precision} after its norm is folded")

        _progress(f"exporting to {precision}")
        model = _to_onnx(kind, network, max_batch)
        try:
            onnx.save(model, part)
        except OSError as error:  # a full disk, whose error has no file name
            raise OSError(error.errno, error.strerror, str(output)) from error
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
    # The exporter would make a batch of 1 a constant.
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
    assert program is not None  # None only without `dynamo`
    model = program.model_proto
    # The exporter's metadata has stack traces with the paths of this machine.
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
    """Compare the file with PyTorch, and raise ExportError if it differs too much."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    dtype = np.float16 if precision == "fp16" else np.float32
    outputs: list[np.ndarray] = []
    references: list[np.ndarray] = []
    for n in sorted({1, min(3, max_batch)}):
        inputs = random_inputs(kind, n)
        expected, peak = _run_reference(reference, inputs)
        if precision == "fp16" and peak > torch.finfo(torch.float16).max:
            # ONNX Runtime on a CPU computes in float32, so only a GPU would overflow.
            raise ExportError(
                f"values inside the network reach {peak:.3g}, beyond float16's 65504; use fp32"
            )
        feeds = {i.name: x.astype(dtype) for i, x in zip(session.get_inputs(), inputs, strict=True)}
        (actual,) = session.run(None, feeds)
        if actual.shape != expected.shape or actual.dtype != dtype:
            raise ExportError(
                f"the exported network returns {actual.dtype} {actual.shape}; "
                f"expected {np.dtype(dtype)} {expected.shape}"
            )
        outputs.append(actual)
        references.append(expected)
    difference = measure(kind, outputs, references)
    if excess := difference.excess(precision):
        raise ExportError(f"the exported network, compared with PyTorch, {excess}")
    return difference


def _run_reference(reference: nn.Module, inputs: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the output in float32, and the largest |value| of any layer's output."""
    peak = 0.0

    def note_peak(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, output.abs().max().item())

    # No hooks on convolutions: their outputs do not exist in the exported network, where the batch
    # norms are folded into them.
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
    """Suppress the exporter's prints, warnings and log lines."""
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
