"""The two editions of TensorRT: `tensorrt` for data-centre GPUs, `tensorrt_rtx` for GeForce and
RTX PRO.

They share one Python API. Everything in which they differ is in this file.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..cache import cache_folder
from ..errors import InputError, one_line
from ..files import write_whole

# Compute capabilities of data-centre GPUs (A100, H100, B200, B300), for which `tensorrt` is made.
DATA_CENTRE = {80, 90, 100, 103}


@dataclass(frozen=True)
class TensorRTEdition:
    """One of the two editions.

    Attributes:
        name: its Python module.
        package: its package on PyPI.
        purpose: the GPUs it is made for, for messages.
        builds_ahead_of_time: whether it builds without the GPU, for several architectures at once.
            If so, its kernels are compiled on the GPU's machine, and kept in a runtime cache.
            Otherwise it builds on the GPU itself, for that GPU only, and keeps its measurements in
            a timing cache.
    """

    name: str
    package: str
    purpose: str
    builds_ahead_of_time: bool

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.name) is not None

    @property
    def how_to_install(self) -> str:
        return f"pip install {self.package}"

    def module(self) -> ModuleType:
        """Import the Python module.

        Raises:
            InputError: it is not installed, or its libraries do not load.
        """
        if not self.installed:
            raise InputError(f"{self.name} is not installed; {self.how_to_install}")
        try:
            return importlib.import_module(self.name)
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(f"{self.name} cannot be loaded: {one_line(error)}") from error

    def version(self) -> str:
        return self.module().__version__

    def why_not(self, architectures: list[int], gpu: int | None) -> str | None:
        """Return why this edition cannot build for these architectures here, or None if it can.

        Args:
            architectures: compute capabilities to build for.
            gpu: the compute capability of the GPU here, None if there is none.
        """
        if not self.builds_ahead_of_time:
            if architectures == [gpu]:
                return None
            here = "there is none here" if gpu is None else f"the one here is SM{gpu}"
            return f"{self.name} builds for SM{architectures[-1]} only on such a GPU; {here}"
        known = _capabilities(self.module())
        unknown = [number for number in architectures if number not in known]
        if not unknown:
            return None
        return (
            f"{self.name} does not build for {architecture_names(unknown)}, only for "
            f"{architecture_names(sorted(known))}"
        )

    def set_target(self, config: Any, architectures: list[int]) -> None:
        """Configure a builder for these GPUs, and for plans that CUDA graphs can capture."""
        if self.builds_ahead_of_time:
            trt = self.module()
            known = _capabilities(trt)
            # A plan that allocates while it runs cannot be captured. The other edition's plans
            # never allocate.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(architectures)
            for index, number in enumerate(architectures):
                config.set_compute_capability(known[number], index)

    def use_timing_cache(self, config: Any) -> Callable[[], None]:
        """Load the measurements of earlier builds on this GPU into a builder.

        TensorRT for RTX measures nothing during a build.

        Returns:
            A function that saves the measurements of this build.
        """
        if self.builds_ahead_of_time:
            return lambda: None
        path = cache_folder() / f"timing-{self.version()}-SM{gpu_architecture()}.cache"
        timings = config.create_timing_cache(_read(path)) or config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
        return lambda: _save(path, config.get_timing_cache().serialize())

    def contexts(self, engine: Any, plan: str) -> tuple[Callable[[], Any], "CompiledKernels"]:
        """Prepare to create execution contexts whose scratch memory the caller provides.

        Args:
            engine: the deserialized plan.
            plan: the plan's name in the cache.

        Returns:
            A function that creates a context (None if TensorRT cannot), and the kernels that the
            contexts compiled. There are none for `tensorrt`, which compiles kernels when it builds
            a plan.
        """
        trt = self.module()
        scratch = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.builds_ahead_of_time:
            return lambda: engine.create_execution_context(scratch), CompiledKernels()
        path = cache_folder() / f"kernels-{plan[:32]}-SM{gpu_architecture()}.cache"
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(scratch)
        # EAGER compiles the specialized kernel before the first run. LAZY would run a fallback
        # kernel meanwhile, and a CUDA graph captured then would keep the fallback.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        compiled = config.create_runtime_cache()
        saved = _read(path)
        if saved:
            compiled.deserialize(saved)  # it ignores a cache of another driver or version
        config.set_runtime_cache(compiled)
        kernels = CompiledKernels(path, compiled.serialize)
        return lambda: engine.create_execution_context(config), kernels

    def capturable(self, context: Any, stream: torch.cuda.Stream) -> bool:
        """Return whether a CUDA graph can capture an execution context's calls."""
        return not self.builds_ahead_of_time or context.is_stream_capturable(stream.cuda_stream)


class CompiledKernels:
    """The kernels that execution contexts compiled, kept in a file for the next start.

    Args:
        path: the file.
        serialize: returns them; None if there are none.
    """

    def __init__(self, path: Path = Path(), serialize: Callable[[], bytes] | None = None):
        self._path, self._serialize = path, serialize
        # Reentrant: the garbage collector may close it in a thread that holds one of them.
        self._lock, self._writing = threading.RLock(), threading.RLock()
        self._newest: bytes | None = None
        self._written: bytes | None = None
        self._busy = False

    def save(self) -> None:
        """Write the file in a thread, because contexts are made while all renders wait."""
        if self._serialize is None:
            return
        with self._lock:
            self._newest = bytes(self._serialize())
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._write, name="viseme-kernels").start()

    def close(self) -> None:
        """Write the file and wait for it."""
        if self._serialize is not None:
            with self._lock:
                self._newest = bytes(self._serialize())
            self._write()

    def _write(self) -> None:
        while True:
            with self._writing:
                with self._lock:
                    data = self._newest
                    if data is None or data is self._written:
                        self._busy = False
                        return
                # If the garbage collector calls `close` in here, newer ones are written and then
                # replaced by these. They are written again.
                _save(self._path, data)
                self._written = data


EDITIONS = {
    edition.name: edition
    for edition in (
        TensorRTEdition(
            "tensorrt",
            package="tensorrt-cu13",
            purpose="for data-centre GPUs, on the GPU itself",
            builds_ahead_of_time=False,
        ),
        TensorRTEdition(
            "tensorrt_rtx",
            package="tensorrt-rtx",
            purpose="for GeForce and RTX PRO, also ahead of time",
            builds_ahead_of_time=True,
        ),
    )
}


def choose_edition(
    name: str | None, architectures: list[int] | None, gpu: int | None
) -> tuple[TensorRTEdition, list[int]]:
    """Choose the edition to build with, and the architectures to build for.

    Args:
        name: an edition's name; None for one that is installed and can build for them.
        architectures: compute capabilities as numbers (89 for 8.9); None for the GPU here.
        gpu: the compute capability of the GPU here, None if there is none.

    Raises:
        InputError: no installed edition can build for them.
    """
    candidates = [EDITIONS[name]] if name else list(EDITIONS.values())
    installed = [edition for edition in candidates if edition.installed]
    if not installed:
        how = " or ".join(f"{e.how_to_install} ({e.purpose})" for e in reversed(candidates))
        raise InputError(f"{name or 'TensorRT'} is not installed; {how}")
    if architectures is None:
        if gpu is None:
            raise InputError(
                "there is no GPU here to build for; name the architectures, such as "
                "--arch 86,89,120 (needs tensorrt_rtx)"
            )
        architectures = [gpu]
    wanted = sorted(set(architectures))
    if not DATA_CENTRE.issuperset(wanted):
        installed.reverse()
    reasons = []
    for edition in installed:
        reason = edition.why_not(wanted, gpu)
        if reason is None:
            return edition, wanted
        reasons.append(reason)
    others = [edition for edition in candidates if edition not in installed]
    reasons += [f"{edition.name} is not installed; {edition.how_to_install}" for edition in others]
    raise InputError("; ".join(reasons))


def gpu_architecture(device: torch.device | None = None) -> int | None:
    """Return a GPU's compute capability as a number, 89 for 8.9; None if there is no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def architecture_names(architectures: list[int]) -> str:
    return ", ".join(f"SM{number}" for number in architectures)


def _capabilities(trt: ModuleType) -> dict[int, object]:
    """Return the compute capabilities that `tensorrt_rtx` builds for ahead of time, by number."""
    members = trt.ComputeCapability.__members__
    return {int(name[2:]): value for name, value in members.items() if name[2:].isdigit()}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _save(path: Path, data: bytes) -> None:
    """Write a cache file. If it cannot be written, only warn, because that only costs time at the
    next start."""
    try:
        write_whole(path, lambda partial: partial.write_bytes(data))
    except OSError as error:
        print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr)


@cache
def logger(edition: TensorRTEdition) -> Any:
    """Return the edition's only logger, because TensorRT keeps the first one that it gets.

    It collects TensorRT's messages in `lines` as (severity, message), so that errors can quote
    them. `clear(loud=True)` empties `lines`, and prints every message after that.
    """
    trt = edition.module()

    # The base class is known only at run time.
    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[Any, str]] = []
            self.loud = False

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.INFO:
                self.lines.append((severity, message))
                if self.loud:
                    print(f"{edition.name}: {message}", file=sys.stderr)

        def clear(self, *, loud: bool = False) -> None:
            self.lines.clear()
            self.loud = loud

        def error(self) -> str:
            """Return the first error in one line."""
            errors = [text for severity, text in self.lines if severity <= trt.ILogger.ERROR]
            return one_line(errors[0]) if errors else "it gave no reason"

    return Log()
