"""The generator as Triton kernels of whole blocks, on GPUs."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.generator.network import FusedGenerator, reference_of
from kernels.generator.weights import GeneratorWeights, generator_weights

from ..device.batch_sizes import BATCH_SIZES
from ..device.cuda_graphs import whole_device_lock
from ..errors import DeviceError, DeviceFull, InputError, one_line
from ..plans.comparison import measure, random_inputs
from .batching import run_in_chunks
from .fused_check import check_in_process
from .onnx_generator import read_convolutions
from .sharing import SharedCache
from .signature import CHECKPOINT_SUFFIXES, Signature
from .torch import read_folded

LEAST = 8, 0  # compute capability; older GPUs lack instructions of the kernels
ALIGNMENT = 16  # bytes
CHECKED = 1, 6, 25  # batch sizes: one of each of those in `kernels.generator.tiles.usual`
# Buffers for each row of the largest batch: graphs of other sizes, captured before, have their own.
GRAPHS = 3

# Shared, because packing and checking take seconds.
_generators: SharedCache[FusedGenerator] = SharedCache()


class FusedNetwork:
    """A generator's checkpoint or ONNX file in float16.

    When it is opened, its result is compared with PyTorch's in float32, because compilers and GPUs
    differ. The first time on a machine, another process does this before, see `fused_check`.

    Args:
        requested: whether it is to run in float16 even if it is an ONNX file of float32.

    Raises:
        InputError: the file is not a generator's, or its weights do not fit float16.
        DeviceError: the GPU is too old or cannot run the kernels, or the result is wrong there.
    """

    reason = ""  # set by `open_network`
    assumes_mask = True
    capturable, stream = True, None  # memory allocated during a capture belongs to the graph

    def __init__(
        self, signature: Signature, path: Path, device: torch.device, *, requested: bool = True
    ):
        if signature.kind != "generator":
            raise InputError(f"fused kernels run generators; {path} is for an {signature.title}")
        version = check_device(device)
        self.dtype = torch.float16
        float32 = requested or path.suffix.lower() in CHECKPOINT_SUFFIXES
        self._generator = _generators.get(
            path, str(device), float32, make=lambda: _new_generator(path, device, float32)
        )
        self.graph_bytes = GRAPHS * self._generator.row_bytes
        self.description = f"fused kernels, Triton {version}, {device}, {self.dtype}"

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return run_in_chunks(
            self._run,
            inputs,
            out,
            most=BATCH_SIZES[-1],
            dtype=self.dtype,
            out_dtype=self.dtype,
            alignment=ALIGNMENT,
        )

    def _run(self, inputs: list[Tensor], out: Tensor, first: int) -> None:
        pictures, audio = inputs
        self._generator(pictures, audio, out)


def check_device(device: torch.device) -> str:
    """Return Triton's version.

    Raises:
        DeviceError: the kernels do not run on the device.
    """
    if device.type != "cuda":
        raise DeviceError(f"fused kernels need a GPU, but the device is {device}")
    if find_spec("triton") is None:
        raise DeviceError("fused kernels need Triton, which is not installed")
    found = torch.cuda.get_device_capability(device)
    if found < LEAST:
        raise DeviceError(
            f"fused kernels need a GPU of SM{LEAST[0]}{LEAST[1]} or newer; {device} is "
            f"SM{found[0]}{found[1]}"
        )
    import triton

    return str(triton.__version__)


def read_weights(path: Path, *, float32: bool = True) -> GeneratorWeights:
    """Read the weights of a generator out of a checkpoint or an ONNX file.

    Args:
        float32: whether the ONNX file may be one of float32.

    Raises:
        InputError: the file is not a generator's, or its weights do not fit float16.
    """
    is_checkpoint = path.suffix.lower() in CHECKPOINT_SUFFIXES
    if is_checkpoint:
        folded = read_folded(path, "generator")
    else:
        folded = read_convolutions(path, float32=float32)
    try:
        return generator_weights(folded)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _new_generator(path: Path, device: torch.device, float32: bool) -> FusedGenerator:
    weights = read_weights(path, float32=float32)
    check_in_process(path, device, float32=float32)
    return checked_generator(weights, device)


def checked_generator(weights: GeneratorWeights, device: torch.device) -> FusedGenerator:
    """Return the generator on a device, compared with PyTorch.

    Raises:
        DeviceError: the device cannot run it, or the result is wrong.
    """
    try:
        # The host waits for the result, and kernels are loaded, which must not break a capture.
        with whole_device_lock:
            generator = FusedGenerator(weights, device)
            check(generator, weights, device)
    except Exception as error:  # compilers and drivers may raise anything
        raise device_error(error, device) from error
    return generator


def device_error(error: Exception, device: torch.device) -> DeviceError:
    """Return what to raise because of any error on a device."""
    if isinstance(error, DeviceError):
        return error
    said = one_line(f"{type(error).__name__}: {error}")
    # of PyTorch's allocator, or of the driver, for kernels or the context
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in said.lower():
        return DeviceFull(f"the fused generator does not fit {device}")
    return DeviceError(f"fused kernels do not run on {device}: {said}")


@torch.inference_mode()
def check(generator: FusedGenerator, weights: GeneratorWeights, device: torch.device) -> None:
    """Compare the generator's results with PyTorch's in float32, on the CPU.

    Two frames, alternating in batches of all `CHECKED` sizes, because kernels differ by them.

    Raises:
        DeviceError: they differ by more than rounding.
    """
    pictures, audio = (torch.from_numpy(value) for value in random_inputs("generator", 2))
    expected = FusedGenerator(weights, torch.device("cpu"), reference_of, dtype=torch.float32)
    wanted = expected(pictures, audio, torch.empty(2, 3, 320, 320))
    for n in CHECKED:
        frames = torch.arange(n) % 2
        out = torch.full((n, 3, 320, 320), torch.nan, dtype=torch.float16, device=device)
        generator(pictures[frames].to(device).half(), audio[frames].to(device).half(), out)
        found: np.ndarray = out.float().cpu().numpy()
        if excess := measure("generator", [found], [wanted[frames].numpy()]).excess("fp16"):
            raise DeviceError(
                f"the fused generator on {device}, compared with PyTorch in a batch of {n}, "
                f"{excess}"
            )
