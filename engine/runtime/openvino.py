"""OpenVINO on a CPU: in float32, or in bfloat16 on CPUs with AVX512_BF16 or AMX."""

import os
from collections import deque
from functools import cache
from pathlib import Path

import openvino
import torch
from torch import Tensor

from ..errors import InputError, one_line
from .batching import run_in_chunks
from .exported import exported
from .onnxruntime import match
from .sharing import SharedCache
from .signature import CHECKPOINT_SUFFIXES, Signature

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}
TYPES = {"f32": "tensor(float)", "f16": "tensor(float16)"}  # ONNX Runtime's names

# Shared, because a compiled network has a copy of the weights and a pool of threads.
_networks: "SharedCache[_Compiled]" = SharedCache()


class OpenVinoNetwork:
    """An ONNX file or a checkpoint on a CPU. Inputs and outputs are float32.

    It runs one row at a time, because that is fastest on few cores, and makes a row's result
    independent of its batch.

    Args:
        precision: precision of the computation, "bf16" or "fp32".

    Raises:
        InputError: the file is not an ONNX file, is that of another network, or the CPU does not
            support the precision. In a call: the network fails.
    """

    reason = ""  # set by `open_network`
    assumes_mask = False
    graph_bytes = 0
    capturable, stream = False, None
    dtype = torch.float32

    def __init__(self, signature: Signature, path: Path, device: torch.device, precision: str):
        if device.type != "cpu":
            raise InputError(f"runtime is openvino, but the device is {device}; expected cpu")
        if precision == "bf16" and not has_bf16():
            raise InputError(
                "precision is bf16, but this CPU has neither AVX512_BF16 nor AMX; expected fp32"
            )
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            path = exported(signature, path, "fp32")
        threads = torch.get_num_threads()
        self._compiled = _networks.get(
            path,
            precision,
            threads,
            make=lambda: _Compiled(signature, path, precision, threads),
        )
        name = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        self.description = f"OpenVINO {openvino.__version__.partition('-')[0]}, cpu, {name}"

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return run_in_chunks(
            self._compiled.run,
            inputs,
            out,
            most=1,
            dtype=torch.float32,
            out_dtype=torch.float32,
        )


class _Compiled:
    """A network compiled for one row, with an inference request for each concurrent call."""

    def __init__(self, signature: Signature, path: Path, precision: str, threads: int):
        self._path = path
        core = _core()
        try:
            model = core.read_model(path)
        except Exception as error:  # OpenVINO raises RuntimeError for every fault
            raise InputError(f"{path} cannot be read by OpenVINO: {one_line(error)}") from error
        inputs = match(path, signature, signature.inputs, [_Value(port) for port in model.inputs])
        (output,) = match(
            path, signature, signature.outputs, [_Value(port) for port in model.outputs]
        )
        shapes = signature.inputs.values()
        self._inputs, self._output = [value.name for value in inputs], output.name
        config = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
        }
        try:
            steps = openvino.preprocess.PrePostProcessor(model)
            for value in inputs:
                steps.input(value.name).tensor().set_element_type(openvino.Type.f32)
            steps.output(output.name).tensor().set_element_type(openvino.Type.f32)
            model = steps.build()
            model.reshape({v.name: [1, *shape] for v, shape in zip(inputs, shapes, strict=True)})
            self._model = core.compile_model(model, "CPU", config)
        except Exception as error:
            raise InputError(
                f"{path} cannot be compiled by OpenVINO in {precision}: {one_line(error)}"
            ) from error
        self._idle: deque[openvino.InferRequest] = deque()

    def run(self, inputs: list[Tensor], out: Tensor, first: int) -> None:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            for name, tensor in zip(self._inputs, inputs, strict=True):
                request.set_tensor(name, openvino.Tensor(tensor.numpy(), shared_memory=True))
            request.set_tensor(self._output, openvino.Tensor(out.numpy(), shared_memory=True))
            request.infer()
        except Exception as error:
            raise InputError(f"{self._path} failed in OpenVINO: {one_line(error)}") from error
        finally:
            self._idle.append(request)


class _Value:
    """An input or output, described as ONNX Runtime does."""

    def __init__(self, port: openvino.Output):
        self.name = port.get_any_name()
        self.shape = [
            size.get_length() if size.is_static else "?" for size in port.get_partial_shape()
        ]
        kind = port.get_element_type().get_type_name()
        self.type = TYPES.get(kind, f"tensor({kind})")


@cache
def _core() -> openvino.Core:
    """Return the one core of this process, which is never freed.

    The CPU plugin gives a stack for signal handlers to the thread that creates it, and unmaps this
    stack in whichever thread frees it. The next signal in the first thread would then end the
    process, because Python's handlers use that stack.
    """
    return openvino.Core()


@cache
def has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, and oneDNN may use it."""
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if isa not in ("", "ALL", "DEFAULT") and "BF16" not in isa and "AMX" not in isa:
        return False  # OpenVINO ignores the limit, and fails when it compiles a network
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
