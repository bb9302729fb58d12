"""ONNX Runtime: on a GPU through its CUDA provider, else on the CPU."""

from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..errors import DeviceError, InputError
from .exported import exported
from .signature import CHECKPOINT_SUFFIXES, Signature

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
NUMPY = {torch.float32: np.float32, torch.float16: np.float16}

# Pipelines of one process share a network's session, and with it its threads: sessions of their
# own would have as many threads each as there are cores, fighting for them.
_sessions: WeakValueDictionary[tuple, onnxruntime.InferenceSession] = WeakValueDictionary()
_lock = Lock()


class OnnxNetwork:
    """An ONNX file in a session, float16 or float32, of a fixed batch size or a free one.

    Raises:
        InputError: not an ONNX file, one of another network, or CUDA that does not start.
    """

    recordable, stream = False, None  # the session has a stream of its own, and is waited for

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        self._device = device
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            path = exported(signature, path, "fp16" if device.type == "cuda" else "fp32")
        self._session = _open_session(path, device)
        self._inputs = match(path, signature, signature.inputs, self._session.get_inputs())
        (self._output,) = match(path, signature, signature.outputs, self._session.get_outputs())
        self.dtype = DTYPES[self._inputs[0].type]
        batch = self._inputs[0].shape[0]
        self._fixed = batch if isinstance(batch, int) else None
        self._step = self._fixed or (signature.cpu_batch if device.type == "cpu" else None)
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {device}, {self.dtype}" + (
            f", batch {self._fixed}" if self._fixed else ""
        )

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        n = out.shape[0]
        step = self._step or max(n, 1)
        for first in range(0, n, step):
            last = min(first + step, n)
            self._run([tensor[first:last] for tensor in inputs], out[first:last])
        return out

    def _run(self, inputs: list[Tensor], out: Tensor) -> None:
        missing = (self._fixed or out.shape[0]) - out.shape[0]
        if missing:
            inputs = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in inputs]
        binding = self._session.io_binding()
        bound = [tensor.to(self.dtype).contiguous() for tensor in inputs]
        for value, tensor in zip(self._inputs, bound, strict=True):
            binding.bind_input(value.name, *self._address(tensor))
        direct = out.dtype == DTYPES[self._output.type] and out.is_contiguous() and not missing
        result = out
        if not direct:
            shape = (out.shape[0] + missing, *out.shape[1:])
            result = torch.empty(shape, dtype=DTYPES[self._output.type], device=out.device)
        binding.bind_output(self._output.name, *self._address(result))
        if self._device.type == "cuda":
            # the provider runs on a stream of its own
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        if not direct:
            out.copy_(result[: out.shape[0]])

    @staticmethod
    def _address(tensor: Tensor) -> tuple:
        device = tensor.device
        return (
            device.type,
            device.index or 0,
            NUMPY[tensor.dtype],
            tuple(tensor.shape),
            tensor.data_ptr(),
        )


def _open_session(path: Path, device: torch.device) -> onnxruntime.InferenceSession:
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size, str(device))
    with _lock:
        session = _sessions.get(key)
        if session is None:
            session = _sessions[key] = _new_session(path, device)
    return session


def _new_session(path: Path, device: torch.device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait sleep: while the networks rest, the other stages need the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list = ["CPUExecutionProvider"]
    if device.type == "cuda":
        onnxruntime.preload_dlls()  # the CUDA libraries that PyTorch came with
        settings = {
            "device_id": device.index or 0,
            "cudnn_conv_algo_search": "HEURISTIC",  # not a search of seconds for every batch size
            "use_tf32": 0,  # float32 networks compute in float32
        }
        providers.insert(0, ("CUDAExecutionProvider", settings))
    source: str | bytes = str(path)
    if source != source.encode(errors="replace").decode():  # ONNX Runtime takes names in UTF-8
        source = path.read_bytes()
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        reason = str(error).strip().splitlines()[0][:300]
        raise InputError(f"{path} cannot be opened by ONNX Runtime: {reason}") from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} has no working CUDA provider here: "
            "use --runtime torch with checkpoints, or --device cpu"
        )
    return session


def match(path: Path, signature: Signature, wanted: dict, found: list) -> list:
    """The file's inputs (or outputs) in the signature's order: by shape, whatever their names.

    `found` are values with name, shape and type as ONNX Runtime has them.

    Raises:
        InputError: they are not those of the signature.
    """

    def fits(have: list, shape: tuple[int, ...]) -> bool:  # sizes that the file leaves free fit
        return len(have) == 1 + len(shape) and all(
            size == want or not isinstance(size, int)
            for size, want in zip(have[1:], shape, strict=True)
        )

    ordered = []
    for shape in wanted.values():
        match = [value for value in found if fits(value.shape, shape)]
        if len(match) == 1 and match[0].type in DTYPES:
            ordered += match
    if len(ordered) != len(wanted) or len(found) != len(wanted):
        have = ", ".join(f"{value.name} {value.shape} {value.type}" for value in found)
        want = ", ".join(f"{name} {['batch', *shape]}" for name, shape in wanted.items())
        kind = signature.kind.replace("_", " ")
        raise InputError(f"{path} is not the ONNX of a(n) {kind}: it has {have}, wanted is {want}")
    return ordered
