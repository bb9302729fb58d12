"""Compile an ONNX graph to the bytes of a plan, with TensorRT."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..errors import InputError, one_line
from .edition import TensorRTEdition, logger
from .onnx_graph import OnnxGraph
from .profiles import profiles


@dataclass
class Parsed:
    """A network as TensorRT parsed it.

    Attributes:
        edition: the TensorRT that parsed it.
        graph: the ONNX graph.
        data: the graph's bytes. TensorRT's network refers to the weights in them, so they must live
            as long.
        builder, network, parser: TensorRT's objects, which refer to each other in the same way.
    """

    edition: TensorRTEdition
    graph: OnnxGraph
    data: bytes
    builder: Any
    network: Any
    parser: Any

    def tensors(self, names: list[str]) -> list[list]:
        """Return [name, type, shape] of the named inputs and outputs, -1 for the batch."""
        network = self.network
        found = {}
        for count, get in (
            (network.num_inputs, network.get_input),
            (network.num_outputs, network.get_output),
        ):
            for index in range(count):
                tensor = get(index)
                found[tensor.name] = [tensor.name, _type(tensor), list(tensor.shape)]
        return [found[name] for name in names]

    def layers(self) -> Iterator[str]:
        """Yield a line for each layer, before optimization."""
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            ins = [layer.get_input(i) for i in range(layer.num_inputs)]
            outs = [layer.get_output(i) for i in range(layer.num_outputs)]
            shapes = [
                " + ".join(f"{_type(t)}{list(t.shape)}" for t in tensors if t is not None)
                for tensors in (ins, outs)
            ]
            yield f"{index:4} {layer.type.name:14} {' -> '.join(shapes)}  {layer.name}"


def parse(edition: TensorRTEdition, graph: OnnxGraph, *, loud: bool = False) -> Parsed:
    """Parse an ONNX graph with TensorRT.

    Args:
        loud: print TensorRT's messages.

    Raises:
        InputError: TensorRT rejects an operator. The error has TensorRT's message and the node's
            name.
    """
    trt, log = edition.module(), logger(edition)
    log.clear(loud=loud)
    builder = trt.Builder(log)
    # TensorRT 10 needs the flag; it is the default of TensorRT 11 and of TensorRT for RTX.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    data = graph.data
    if not parser.parse(data):
        reasons = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            node = error.node_name() or f"number {error.node()}"
            reasons.append(f"node {node} ({error.node_operator()}): {one_line(error.desc())}")
        raise InputError(
            f"{graph.path} is rejected by {edition.name}: {'; '.join(reasons[:3]) or log.error()}"
        )
    return Parsed(edition, graph, data, builder, network, parser)


def make_profile(parsed: Parsed, batch: list[int]) -> Any:
    """Return an optimization profile with these smallest, best and largest batches."""
    profile = parsed.builder.create_optimization_profile()
    shapes = parsed.graph.signature.inputs.values()
    for name, shape in zip(parsed.graph.inputs, shapes, strict=True):
        profile.set_shape(name, *((size, *shape) for size in batch))
    return profile


def configure(parsed: Parsed, architectures: list[int], precision: str) -> Any:
    """Return a builder's configuration for these GPUs and this precision."""
    trt = parsed.edition.module()
    config = parsed.builder.create_builder_config()
    parsed.edition.set_target(config, architectures)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for --inspect
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 networks compute in float32
    return config


def compile_plan(
    parsed: Parsed, architectures: list[int], precision: str, batch: list[int]
) -> tuple[bytes, int | None]:
    """Build a plan. Ctrl-C stops the build.

    Returns:
        The plan, and the bytes of scratch memory that a run needs; None if TensorRT does not report
        them.

    Raises:
        InputError: TensorRT cannot build it. The message is TensorRT's first error.
    """
    edition, log = parsed.edition, logger(parsed.edition)
    trt = edition.module()
    config = configure(parsed, architectures, precision)
    for sizes in profiles(parsed.graph.signature.kind, batch):
        if config.add_optimization_profile(make_profile(parsed, sizes)) < 0:
            raise InputError(
                f"{parsed.graph.path}: {edition.name} rejects the batch: {log.error()}"
            )
    save_timings = edition.use_timing_cache(config)
    stop = threading.Event()
    # The build runs in another thread, so that this one receives Ctrl-C. A KeyboardInterrupt must
    # not be raised in TensorRT's callbacks.
    with (
        tqdm(disable=None, leave=False, bar_format="{desc} [{elapsed}]") as bar,
        ThreadPoolExecutor(1, "viseme-build") as pool,
    ):
        # TensorRT holds no reference to the monitor.
        config.progress_monitor = monitor = _monitor(trt, bar, stop)
        build = parsed.builder.build_serialized_network
        try:
            plan = pool.submit(build, parsed.network, config)
            # With a timeout, because a signal right before a wait without one is handled only after
            # it.
            while wait([plan], timeout=0.2).not_done:
                pass
            built = plan.result()
        finally:
            stop.set()
    del monitor
    if built is None:
        raise InputError(f"{parsed.graph.path} cannot be built by {edition.name}: {log.error()}")
    save_timings()
    matches = [re.search(r"Total Activation Memory: (\d+)", text) for _, text in log.lines]
    scratch = [int(match[1]) for match in matches if match]
    return bytes(built), max(scratch, default=None)  # of the profiles


def _type(tensor: Any) -> str:
    name = tensor.dtype.name
    return {"HALF": "fp16", "FLOAT": "fp32"}.get(name, name.lower())


def _monitor(trt: Any, bar: tqdm, stop: threading.Event) -> Any:
    """Return a progress monitor that shows the innermost phase, and can stop the build."""
    lock = threading.Lock()  # TensorRT's threads call it too
    steps: dict[str, int] = {}

    # The base class is known only at run time.
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, name: str, parent: str, count: int) -> None:
            with lock:
                steps[name] = count
                bar.set_description_str(f"{name} 0/{count}")

        def step_complete(self, name: str, step: int) -> bool:
            with lock:
                bar.set_description_str(f"{name} {step + 1}/{steps.get(name, '?')}")
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            with lock:
                steps.pop(name, None)

    return Monitor()
