"""ONNX Runtime: on a GPU with its CUDA provider, otherwise on the CPU."""

from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..device.cuda_graphs import whole_device_lock
from ..errors import DeviceError, InputError, one_line
from ..forks import keep_in_children
from .batching import run_in_chunks
from .exported import exported
from .sharing import SharedCache
from .signature import CHECKPOINT_SUFFIXES, Signature

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
NUMPY = {torch.float32: np.float32, torch.float16: np.float16}

# Shared, because every session has as many threads as there are cores.
_sessions: "SharedCache[_Session]" = SharedCache()


class OnnxNetwork:
    """An ONNX file in a session: float16 or float32, with a free or a fixed batch size.

    Raises:
        InputError: the file is not an ONNX file, or is the file of another network. In a call: the
            network fails, for example because of too little memory.
        DeviceError: the CUDA provider does not start.
    """

    reason = ""  # set by `open_network`
    assumes_mask = False
    graph_bytes = 0
    capturable, stream = False, None  # a call may allocate

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        self._path = path
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            path = exported(signature, path, "fp16" if device.type == "cuda" else "fp32")
        self._session = _sessions.get(path, str(device), make=lambda: _Session(path, device))
        session = self._session.session
        self._inputs = match(path, signature, signature.inputs, session.get_inputs())
        (self._output,) = match(path, signature, signature.outputs, session.get_outputs())
        self.dtype = DTYPES[self._inputs[0].type]
        batch = self._inputs[0].shape[0]
        self._fixed = batch if isinstance(batch, int) else None
        self._most = self._fixed or (signature.cpu_batch if device.type == "cpu" else None)
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {device}, {self.dtype}" + (
            f", batch {self._fixed}" if self._fixed else ""
        )

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return run_in_chunks(
            self._run,
            inputs,
            out,
            most=self._most or max(out.shape[0], 1),
            least=self._fixed or 1,
            dtype=self.dtype,
            out_dtype=DTYPES[self._output.type],
        )

    def _run(self, inputs: list[Tensor], out: Tensor, first: int) -> None:
        binding = self._session.session.io_binding()
        try:
            for value, tensor in zip(self._inputs, inputs, strict=True):
                binding.bind_input(value.name, *self._address(tensor))
            binding.bind_output(self._output.name, *self._address(out))
            self._session.run(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise InputError(
                f"{self._path} failed in ONNX Runtime: {one_line(error) or 'no reason given'}"
            ) from error

    @staticmethod
    def _address(tensor: Tensor) -> tuple[object, ...]:
        device = tensor.device
        return (
            device.type,
            device.index or 0,
            NUMPY[tensor.dtype],
            tuple(tensor.shape),
            tensor.data_ptr(),
        )


class _Session:
    """A session. On a GPU its calls run on a stream of its own, in order with the caller's current
    stream, and the host does not wait for them.

    ONNX Runtime would choose streams by itself otherwise, and the host would have to wait for the
    caller's before a call, and for ONNX Runtime's after it.
    """

    def __init__(self, path: Path, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.session = open_session(path, device, self._stream)
        # The libraries' handles belong to the stream, and are not for two threads at a time.
        self._lock = Lock()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, binding: Any) -> None:
        if self._stream is None:
            self.session.run_with_iobinding(binding)
            return
        current = torch.cuda.current_stream(self._device)
        with self._lock:
            self._stream.wait_stream(current)
            try:
                self.session.run_with_iobinding(binding, self._options)
            finally:
                current.wait_stream(self._stream)


def open_session(
    path: Path, device: torch.device, stream: torch.cuda.Stream | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file.

    Args:
        stream: of a GPU, on which all calls run; by default ONNX Runtime chooses one for each.

    Raises:
        InputError: ONNX Runtime cannot open it.
        DeviceError: the CUDA provider does not start.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads sleep instead of spinning, because the other stages need the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, object]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        onnxruntime.preload_dlls()  # the CUDA libraries installed with PyTorch
        settings = {
            "device_id": device.index or 0,
            "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE takes seconds for each size
            # Otherwise it doubles its memory at each step.
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": 0,  # float32 networks compute in float32
        }
        if stream is not None:
            settings["user_compute_stream"] = str(stream.cuda_stream)
        providers.insert(0, ("CUDAExecutionProvider", settings))
    name = str(path)
    is_utf8 = name == name.encode(errors="replace").decode()  # ONNX Runtime opens only such names
    source = name if is_utf8 else path.read_bytes()
    # The CUDA provider may wait for the whole device, which would break another thread's capture.
    quiet = whole_device_lock if device.type == "cuda" else nullcontext()
    try:
        with quiet:
            session = onnxruntime.InferenceSession(source, options, providers=providers)
        keep_in_children(session)
        for value in (*session.get_inputs(), *session.get_outputs()):
            str(value.name)  # raises UnicodeDecodeError if it is not UTF-8
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = str(error).strip().splitlines()[0][:300]
        raise InputError(f"{path} cannot be opened by ONNX Runtime: {reason}") from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"ONNX Runtime {onnxruntime.__version__} has no working CUDA provider here; "
            "use --runtime torch with checkpoints, or --device cpu"
        )
    return session


def match(
    path: Path, signature: Signature, wanted: dict[str, tuple[int, ...]], found: list[Any]
) -> list[Any]:
    """Match a file's inputs (or outputs) to the signature by shape; names may differ.

    Args:
        path: the file, for errors.
        signature: the network.
        wanted: shapes by name, without the batch.
        found: values with name, shape and type as ONNX Runtime describes them.

    Returns:
        The values in the signature's order.

    Raises:
        InputError: they do not match the signature.
    """

    def fits(have: list[Any], shape: tuple[int, ...]) -> bool:  # a free size matches any
        return len(have) == 1 + len(shape) and all(
            size == want or not isinstance(size, int)
            for size, want in zip(have[1:], shape, strict=True)
        )

    try:
        shapes = {id(value): value.shape for value in found}
    except UnicodeDecodeError as error:
        raise InputError(f"{path} has a size whose name is not UTF-8; expected UTF-8") from error
    ordered = []
    for shape in wanted.values():
        match = [value for value in found if fits(shapes[id(value)], shape)]
        if len(match) == 1 and match[0].type in DTYPES:
            ordered += match
    if len(ordered) != len(wanted) or len(found) != len(wanted):
        have = ", ".join(f"{value.name} {value.shape} {value.type}" for value in found)
        want = ", ".join(f"{name} {['batch', *shape]}" for name, shape in wanted.items())
        kind = signature.title
        raise InputError(f"{path} is not the ONNX of a(n) {kind}; it has {have}; expected {want}")
    return ordered
