"""TensorRT's part of a build: an ONNX graph in, the bytes of a plan out."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from tqdm import tqdm

from ..errors import InputError
from .flavor import Flavor, logger, one_line
from .graph import Graph


@dataclass
class Parsed:
    """A network as TensorRT understands it. Everything it refers to lives as long as it does."""

    flavor: Flavor
    graph: Graph
    data: bytes
    builder: object
    network: object
    parser: object

    def tensors(self, names: list[str]) -> list[list]:
        """[name, type, shape] of inputs and outputs, the batch as -1."""
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
        """A line for each layer, before TensorRT changes any."""
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            ins = [layer.get_input(i) for i in range(layer.num_inputs)]
            outs = [layer.get_output(i) for i in range(layer.num_outputs)]
            shapes = [
                " + ".join(f"{_type(t)}{list(t.shape)}" for t in tensors if t is not None)
                for tensors in (ins, outs)
            ]
            yield f"{index:4} {layer.type.name:14} {' -> '.join(shapes)}  {layer.name}"


def parse(flavor: Flavor, graph: Graph, *, loud: bool = False) -> Parsed:
    """Have TensorRT read a graph.

    Raises:
        InputError: it rejects an operator; its words, and the node's name.
    """
    trt, log = flavor.module(), logger(flavor)
    log.clear(loud=loud)
    builder = trt.Builder(log)
    # What TensorRT 11 and TensorRT for RTX do anyway, TensorRT 10 does when told.
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
            f"{graph.path} is rejected by {flavor.name}: {'; '.join(reasons[:3]) or log.error()}"
        )
    return Parsed(flavor, graph, data, builder, network, parser)


def make_profile(parsed: Parsed, batch: list[int]) -> object:
    """An optimization profile: least, best and most for every input's batch."""
    profile = parsed.builder.create_optimization_profile()
    shapes = parsed.graph.signature.inputs.values()
    for name, shape in zip(parsed.graph.inputs, shapes, strict=True):
        profile.set_shape(name, *((size, *shape) for size in batch))
    return profile


def configure(parsed: Parsed, architectures: list[int], precision: str) -> object:
    """A builder's configuration for these GPUs and this precision."""
    trt = parsed.flavor.module()
    config = parsed.builder.create_builder_config()
    parsed.flavor.target(config, architectures)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for --inspect
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 networks compute in float32
    return config


def compile_plan(
    parsed: Parsed, architectures: list[int], precision: str, batch: list[int]
) -> tuple[bytes, int | None]:
    """Build a plan. Ctrl-C stops it.

    Returns:
        The plan, and how many bytes of scratch memory it takes to run (None if TensorRT was
        silent about it).

    Raises:
        InputError: TensorRT cannot; its first error.
    """
    flavor, log = parsed.flavor, logger(parsed.flavor)
    trt = flavor.module()
    config = configure(parsed, architectures, precision)
    profile = make_profile(parsed, batch)
    if config.add_optimization_profile(profile) < 0:
        raise InputError(f"{parsed.graph.path}: {flavor.name} refuses the batch: {log.error()}")
    save_timings = flavor.use_timing_cache(config)
    stop = threading.Event()
    # In a thread of its own, so that this one hears of Ctrl-C: TensorRT's calls back into Python
    # must not raise.
    with (
        tqdm(disable=None, leave=False, bar_format="{desc} [{elapsed}]") as bar,
        ThreadPoolExecutor(1, "viseme-build") as pool,
    ):
        config.progress_monitor = monitor = _monitor(trt, bar, stop)  # TensorRT does not hold it
        build = parsed.builder.build_serialized_network
        try:
            work = pool.submit(build, parsed.network, config)
            # a signal that comes just before a wait without a timeout is seen only after it
            while wait([work], timeout=0.2).not_done:
                pass
            built = work.result()
        finally:
            stop.set()
    del monitor
    if built is None:
        raise InputError(f"{parsed.graph.path} cannot be built by {flavor.name}: {log.error()}")
    save_timings()
    scratch = [re.search(r"Total Activation Memory: (\d+)", text) for _, text in log.lines]
    found = [int(hit[1]) for hit in scratch if hit]
    return bytes(built), found[-1] if found else None


def _type(tensor: object) -> str:
    name = tensor.dtype.name
    return {"HALF": "fp16", "FLOAT": "fp32"}.get(name, name.lower())


def _monitor(trt: object, bar: tqdm, stop: threading.Event) -> object:
    """Shows the innermost phase and how far it is, and passes on that the build should stop."""
    lock = threading.Lock()  # it is called from TensorRT's threads too
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            super().__init__()

        def phase_start(self, name, parent, count):
            with lock:
                steps[name] = count
                bar.set_description_str(f"{name} 0/{count}")

        def step_complete(self, name, step):
            with lock:
                bar.set_description_str(f"{name} {step + 1}/{steps.get(name, '?')}")
            return not stop.is_set()

        def phase_finish(self, name):
            with lock:
                steps.pop(name, None)

    return Monitor()
