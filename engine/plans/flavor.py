"""The two TensorRTs: `tensorrt` for data-centre GPUs, `tensorrt_rtx` for GeForce and RTX PRO.

They share one Python API. Everything in which they differ stands in this file.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..cache import cache_folder
from ..errors import InputError

# Compute capabilities of data-centre GPUs (A100, H100, B200, B300), which `tensorrt` suits best.
DATA_CENTRE = {80, 90, 100, 103}


@dataclass(frozen=True)
class Flavor:
    """One of the two.

    name: of its Python module. package: on PyPI. ahead: whether it builds for GPUs that are not
    there, for several at once, and leaves the tuning to the GPU's machine, where a runtime cache
    keeps it; the other one builds on the GPU itself, for it alone, and keeps what it measured in a
    timing cache.
    """

    name: str
    package: str
    ahead: bool

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.name) is not None

    @property
    def how_to_install(self) -> str:
        return f"pip install {self.package}"

    def module(self) -> ModuleType:
        """The Python module.

        Raises:
            InputError: it is not installed, or its libraries do not load.
        """
        if not self.installed:
            raise InputError(f"{self.name} is not installed: {self.how_to_install}")
        try:
            return importlib.import_module(self.name)
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(f"{self.name} cannot be loaded: {one_line(error)}") from error

    def version(self) -> str:
        return self.module().__version__

    def why_not(self, architectures: list[int], gpu: int | None) -> str | None:
        """Why it cannot build for these architectures on a machine with this GPU, if so."""
        if not self.ahead:
            if architectures == [gpu]:
                return None
            here = "which is not here" if gpu is None else f"and the one here is SM{gpu}"
            return f"{self.name} builds for SM{architectures[-1]} only on such a GPU, {here}"
        known = _capabilities(self.module())
        unknown = [number for number in architectures if number not in known]
        if not unknown:
            return None
        return f"{self.name} does not build for {names(unknown)}, only for {names(sorted(known))}"

    def target(self, config: object, architectures: list[int]) -> None:
        """Tell a builder's configuration which GPUs the plan is for, and that CUDA graphs will
        hold its calls."""
        if self.ahead:
            trt = self.module()
            known = _capabilities(trt)
            # What allocates while it runs cannot be recorded. TensorRT never does.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(architectures)
            for index, number in enumerate(architectures):
                config.set_compute_capability(known[number], index)

    def use_timing_cache(self, config: object) -> Callable[[], None]:
        """Give a builder what earlier builds on this GPU measured; what is returned keeps more.

        TensorRT for RTX measures nothing while it builds.
        """
        if self.ahead:
            return lambda: None
        path = cache_folder() / f"timing-{self.version()}-SM{gpu_architecture()}.cache"
        kept = config.create_timing_cache(_kept(path)) or config.create_timing_cache(b"")
        config.set_timing_cache(kept, ignore_mismatch=False)
        return lambda: _keep(path, config.get_timing_cache().serialize())

    def contexts(self, engine: object, plan: str) -> tuple[Callable[[], Any], Callable[[], None]]:
        """What makes execution contexts (None where TensorRT cannot) that are to be given their
        scratch memory, and what keeps the kernels they compiled, for the next time.

        TensorRT has compiled its kernels when it built the plan.

        Args:
            plan: names it in the cache.
        """
        trt = self.module()
        scratch = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.ahead:
            return lambda: engine.create_execution_context(scratch), lambda: None
        path = cache_folder() / f"kernels-{plan[:32]}-SM{gpu_architecture()}.cache"
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(scratch)
        # Kernels for a batch size are compiled before it first runs. "Lazily" would be while a
        # stand-in runs, and a CUDA graph would keep the stand-in.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        cache = config.create_runtime_cache()
        kept = _kept(path)
        if kept:
            cache.deserialize(kept)  # what another driver or TensorRT left, it refuses
        config.set_runtime_cache(cache)
        return (
            lambda: engine.create_execution_context(config),
            lambda: _keep(path, cache.serialize()),
        )

    def recordable(self, context: Any, stream: torch.cuda.Stream) -> bool:
        """Whether a CUDA graph can hold an execution context's calls."""
        return not self.ahead or context.is_stream_capturable(stream.cuda_stream)


FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("tensorrt", package="tensorrt-cu13", ahead=False),
        Flavor("tensorrt_rtx", package="tensorrt-rtx", ahead=True),
    )
}


def choose(
    name: str | None, architectures: list[int] | None, gpu: int | None
) -> tuple[Flavor, list[int]]:
    """What to build with, and for which architectures.

    Args:
        name: a flavor's; None for the one that is installed and can.
        architectures: compute capabilities as numbers (89 for 8.9); None for the GPU here.
        gpu: the compute capability of the GPU here, None if there is none.

    Raises:
        InputError: nothing installed can build for them.
    """
    flavors = [FLAVORS[name]] if name else list(FLAVORS.values())
    installed = [flavor for flavor in flavors if flavor.installed]
    if not installed:
        ways = {
            "tensorrt_rtx": "for GeForce and RTX PRO, also ahead of time",
            "tensorrt": "for data-centre GPUs, on the GPU itself",
        }
        how = " or ".join(
            f"{flavor.how_to_install} ({ways[flavor.name]})" for flavor in reversed(flavors)
        )
        raise InputError(f"{name or 'TensorRT'} is not installed: {how}")
    if architectures is None and gpu is None:
        raise InputError(
            "there is no GPU here to build for: say for which ones with --arch, such as "
            "--arch 86,89,120 (needs tensorrt_rtx)"
        )
    wanted = sorted(set(architectures or [gpu]))
    if not DATA_CENTRE.issuperset(wanted):
        installed.reverse()
    reasons = []
    for flavor in installed:
        reason = flavor.why_not(wanted, gpu)
        if reason is None:
            return flavor, wanted
        reasons.append(reason)
    others = [flavor for flavor in flavors if flavor not in installed]
    reasons += [f"{flavor.name} is not installed: {flavor.how_to_install}" for flavor in others]
    raise InputError("; ".join(reasons))


def gpu_architecture(device: torch.device | None = None) -> int | None:
    """The compute capability of a GPU as a number, 89 for 8.9; None where there is no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def names(architectures: list[int]) -> str:
    return ", ".join(f"SM{number}" for number in architectures)


def one_line(message: object, limit: int = 300) -> str:
    return " ".join(str(message).split())[:limit]


def _capabilities(trt: ModuleType) -> dict[int, object]:
    """What `tensorrt_rtx` builds for ahead of time, by number."""
    members = trt.ComputeCapability.__members__
    return {int(name[2:]): value for name, value in members.items() if name[2:].isdigit()}


def _kept(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _keep(path: Path, data: bytes) -> None:
    """Write a cache, whole or not at all; without one, the next time only takes longer."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr)


@cache
def logger(flavor: Flavor):
    """The one logger of a flavor: TensorRT keeps the first that it is given for good.

    It keeps to itself what TensorRT says, in many lines, for an error to quote. With `loud` it
    shows it as well. `lines` hold (severity, message); `clear` forgets them.
    """
    trt = flavor.module()

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.lines, self.loud = [], False

        def log(self, severity, message):
            if severity <= trt.ILogger.INFO:
                self.lines.append((severity, message))
                if self.loud:
                    print(f"{flavor.name}: {message}", file=sys.stderr)

        def clear(self, *, loud=False):
            self.lines.clear()
            self.loud = loud

        def error(self) -> str:
            """The first error in one line, without TensorRT's own places in its source."""
            found = [text for severity, text in self.lines if severity <= trt.ILogger.ERROR]
            return one_line(found[0]) if found else "it gave no reason"

    return Log()
