"""The order of work on a GPU: streams, waits and captures, with fakes instead of CUDA."""

import contextlib
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from engine.device.cuda_graphs import (
    ATTEMPTS,
    WARM_UPS,
    CudaGraphs,
    keep_for_capture,
    whole_device_lock,
)
from engine.device.executor import CpuExecutor, CudaExecutor, Part
from engine.device.stopwatch import Stopwatch
from engine.errors import DeviceError

CUDA = torch.device("cuda", 0)


class Cuda:
    """A fake `torch.cuda` that records the calls and runs work immediately."""

    def __init__(self):
        self.log: list[str] = []
        self.streams = self.pools = 0
        self.breaks = 0  # captures that end with CUDA's error
        self.current = self.stream_named("caller")

    def stream_named(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            cuda_stream=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            synchronize=lambda: self.log.append(f"the host waits for {name}"),
        )

    def Stream(self, device, priority=0):
        self.streams += 1
        return self.stream_named(f"stream {self.streams} {priority}")

    def current_stream(self, device=None):
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def device(self, device):
        self.log.append("device {")
        yield
        self.log.append("}")

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.log.append(f"replay on {self.current.name}"))

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.log.append(f"capture {{ {pool} {capture_error_mode} on {stream.name}")
        yield
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        self.log.append("}")

    def graph_pool_handle(self):
        self.pools += 1
        return 0, self.pools

    def memory_snapshot(self):
        return [
            {"segment_pool_id": pool, "total_size": size}
            for pool, size in (((0, 0), 7000), ((0, 1), 300), ((0, 1), 40), ((0, 2), 5))
        ]

    def work(self, name: str) -> None:
        self.log.append(f"{name} on {self.current.name}")


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    cuda = Cuda()
    names = "Stream", "current_stream", "stream", "device", "CUDAGraph", "graph"
    for name in (*names, "graph_pool_handle", "memory_snapshot"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda index, pool, name=name: cuda.log.append(f"{name} {index} {pool}")
        )

    @contextlib.contextmanager
    def marked(name):
        cuda.log.append(f"{name} {{")
        yield
        cuda.log.append("}")

    monkeypatch.setattr(torch.cuda.nvtx, "range", marked)
    return cuda


class Memory:
    device = CUDA

    def __init__(self, log, name="memory"):
        self.log, self.name = log, name

    def record_stream(self, stream):
        self.log.append(f"{self.name} is used on {stream.name}")


def test_a_capture_and_replays(cuda):
    graphs, own = CudaGraphs(CUDA), cuda.stream_named("own")
    for _ in range(2):
        graphs.run("key", partial(cuda.work, "work"))
    captured = [
        "stream 1 -2 waits for caller",
        *["work on stream 1 -2"] * WARM_UPS,
        "capture { (0, 1) thread_local on stream 1 -2",
        "work on stream 1 -2",
        "}",
    ]
    assert cuda.log == [*captured, "replay on caller", "replay on caller"] and len(graphs) == 1
    cuda.log.clear()
    graphs.run("other", partial(cuda.work, "work"), stream=own)
    replayed = ["own waits for caller", "replay on own", "caller waits for own"]
    assert cuda.log == [*captured, *replayed] and len(graphs) == 2
    cuda.log.clear()
    graphs.run("third", partial(cuda.work, "work"), capture=False)
    assert cuda.log == ["work on caller"] and len(graphs) == 2


def test_memory_of_the_graphs_is_counted(cuda):
    graphs = CudaGraphs(CUDA)
    assert graphs.bytes == 0
    graphs.run("key", partial(cuda.work, "work"))
    assert graphs.bytes == 340  # two segments of the graphs' own pool


def test_a_broken_capture_is_repeated(cuda):
    """Another thread waited for the whole device. PyTorch's allocator is told that it is over, and
    the next capture has another pool, because no graph has the first one."""
    graphs = CudaGraphs(CUDA)
    cuda.breaks = 2
    graphs.run("key", partial(cuda.work, "work"))
    captures = [entry for entry in cuda.log if entry.startswith(("capture", "_cuda", "replay"))]
    assert captures == [
        *["capture { (0, 1) thread_local on stream 1 -2"],
        *["_cuda_endAllocateToPool 0 (0, 1)", "_cuda_releasePool 0 (0, 1)"],
        *["capture { (0, 2) thread_local on stream 1 -2"],
        *["_cuda_endAllocateToPool 0 (0, 2)", "_cuda_releasePool 0 (0, 2)"],
        *["capture { (0, 3) thread_local on stream 1 -2", "replay on caller"],
    ]
    cuda.breaks = ATTEMPTS
    with pytest.raises(DeviceError, match="cuda:0 was interrupted 3 times, .* call warm_up before"):
        graphs.run("other", partial(cuda.work, "work"))
    assert len(graphs) == 1
    cuda.log.clear()
    graphs.run("third", partial(cuda.work, "work"))  # the first graph's pool is still good
    assert "capture { (0, 3) thread_local on stream 1 -2" in cuda.log


def test_an_error_of_the_work_is_not_repeated(cuda):
    def fails():
        calls.append(1)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    graphs, calls = CudaGraphs(CUDA), []
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.run("key", fails)
    assert calls == [1] and len(graphs) == 0
    graphs.run("key", partial(cuda.work, "work"))
    assert "capture { (0, 2) thread_local on stream 1 -2" in cuda.log


def test_what_a_graph_needs_goes_with_it(cuda):
    class Context:
        pass

    def work():
        for made in contexts:
            assert keep_for_capture(made, own)

    own, contexts = cuda.stream_named("own"), [Context(), Context()]
    kept = [weakref.ref(context) for context in contexts]
    graphs = CudaGraphs(CUDA)
    graphs.run("key", work, stream=own)
    contexts.clear()
    gc.collect()
    assert all(context() for context in kept)
    assert not keep_for_capture(Context(), own)  # nothing is captured now
    cuda.log.clear()
    del graphs
    assert cuda.log == ["the host waits for own"] and not any(context() for context in kept)


def test_replays_do_not_wait_for_what_may_wait_for_the_device(cuda):
    """A network that is opened in another thread takes seconds. Captures wait for it."""
    graphs, replayed, opened = CudaGraphs(CUDA), threading.Event(), threading.Event()
    graphs.run("key", partial(cuda.work, "work"))
    captured = threading.Event()

    def render():
        graphs.run("key", partial(cuda.work, "work"))
        replayed.set()
        graphs.run("other", captured.set)
        assert opened.is_set()

    with ThreadPoolExecutor(1) as thread:
        with whole_device_lock:
            rendered = thread.submit(render)
            assert replayed.wait(30) and not captured.is_set()
            opened.set()
        rendered.result(30)
    assert captured.is_set()


def test_blocks_follow_each_other_from_stream_to_stream(cuda):
    """And the buffers and the avatar's frames are held by each stream that reads them, also by the
    first one, because the avatar may have been loaded on another."""
    executor = CudaExecutor(Memory(cuda.log), Memory(cuda.log, "frames"))
    caller, reader = cuda.current, cuda.stream_named("reader")
    for stream in (caller, reader, reader, caller):
        with cuda.stream(stream), executor.on_current_stream():
            cuda.work("work")
    assert cuda.log == [
        *["device {", "memory is used on caller", "frames is used on caller"],
        *["work on caller", "}"],
        *["device {", "reader waits for caller", "memory is used on reader"],
        *["frames is used on reader", "work on reader", "}"],
        *["device {", "work on reader", "}"],
        *["device {", "caller waits for reader", "work on caller", "}"],
    ]


def test_an_upload(cuda):
    """It uses pinned memory and a separate stream. Tensors on the device are not pinned."""

    class Copy:
        def record_stream(self, stream):
            cuda.log.append(f"copy is used on {stream.name}")

    class OnHost:
        is_cuda = False

        def pin_memory(self):
            cuda.log.append("pin")
            return self

        def to(self, device, *, non_blocking):
            cuda.work(f"copy to {device} {non_blocking}")
            return Copy()

    class OnDevice(OnHost):
        is_cuda = True

    assert len(CudaExecutor(Memory(cuda.log)).upload(OnHost(), OnDevice())) == 2
    assert cuda.log == [
        *["pin", "copy to cuda:0 True on stream 2 0", "copy to cuda:0 True on stream 2 0"],
        *["caller waits for stream 2 0", "copy is used on caller", "copy is used on caller"],
    ]


def run(cuda: Cuda, parts: list[Part], stopwatch) -> list[str]:
    """Return the NVTX ranges, and the graphs that run in them."""
    executor = CudaExecutor(Memory([]))

    def note(key, work, *, capture, stream):
        cuda.log.append((key, capture, stream))
        work()

    executor._graphs = SimpleNamespace(run=note)
    executor.run((4, 0), parts, stopwatch)
    return cuda.log


def test_parts_are_one_graph_if_all_can_be_captured(cuda):
    parts = [Part("a", partial(cuda.work, "a")), Part("b", partial(cuda.work, "b"), key=("slot",))]
    assert run(cuda, parts, Stopwatch.off(CUDA)) == [
        *["a, b {", (("a, b", 4, 0, "slot"), True, None), "a on caller", "b on caller", "}"],
    ]


def test_only_a_network_with_its_own_stream_runs_there(cuda):
    """What is done before and after it runs on the caller's, beside other renders."""
    parts = [
        Part("a", partial(cuda.work, "a")),
        Part("b", partial(cuda.work, "b")),
        Part("c", partial(cuda.work, "c"), stream="c's"),
        Part("d", partial(cuda.work, "d"), key=("slot",)),
    ]
    assert run(cuda, parts, Stopwatch.off(CUDA)) == [
        *["a, b {", (("a, b", 4, 0), True, None), "a on caller", "b on caller", "}"],
        *["c {", (("c", 4, 0), True, "c's"), "c on caller", "}"],
        *["d {", (("d", 4, 0, "slot"), True, None), "d on caller", "}"],
    ]


def test_a_part_that_cannot_be_captured_is_separate(cuda):
    parts = [
        Part("a", partial(cuda.work, "a")),
        Part("b", partial(cuda.work, "b")),
        Part("c", partial(cuda.work, "c"), capturable=False),
        Part("d", partial(cuda.work, "d"), capturable=False),
    ]
    assert run(cuda, parts, Stopwatch.off(CUDA)) == [
        *["a, b {", (("a, b", 4, 0), True, None), "a on caller", "b on caller", "}"],
        *["c {", (("c", 4, 0), False, None), "c on caller", "}"],
        *["d {", (("d", 4, 0), False, None), "d on caller", "}"],
    ]


def test_parts_are_separate_if_they_are_measured(cuda, monkeypatch):
    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            cuda.log.append(f"event on {stream.name}")

        def query(self):
            return False

    monkeypatch.setattr(torch.cuda, "Event", Event)
    parts = [Part("a", partial(cuda.work, "a")), Part("b", partial(cuda.work, "b"), stream="b's")]
    event = "event on caller"
    assert run(cuda, parts, Stopwatch(CUDA)) == [
        *["a {", event, (("a", 4, 0), True, None), "a on caller", event, "}"],
        *["b {", event, (("b", 4, 0), True, "b's"), "b on caller", event, "}"],
    ]


def test_a_stopwatch_that_is_off(cuda):
    """On a GPU it marks stages in a profiler, except those of the host. On a CPU it does
    nothing."""
    off = Stopwatch.off(CUDA)
    with off.stage("a"), off.stage("write", host=True):
        cuda.work("a")
    assert cuda.log == ["a {", "a on caller", "}"] and off.seconds() == {}
    off = Stopwatch.off(torch.device("cpu"))
    with off.stage("b"):
        pass
    assert len(cuda.log) == 3 and off.seconds() == {}


def test_a_cpu_calls_the_parts():
    calls, stopwatch = [], Stopwatch(torch.device("cpu"))
    executor = CpuExecutor()
    parts = [Part("a", partial(calls.append, "a")), Part("b", partial(calls.append, "b"))]
    for _ in range(2):
        with executor.on_current_stream():
            executor.run(("key",), parts, stopwatch)
    assert calls == ["a", "b"] * 2 and list(stopwatch.seconds()) == ["a", "b"]
    pcm = torch.zeros(3)
    assert executor.upload(pcm)[0] is pcm
