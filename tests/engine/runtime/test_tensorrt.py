"""TensorRT plans: which ones are loaded, the choice of the runtime, and the results on a GPU."""

import contextlib
import gc
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import Avatar, InputError, Pipeline
from engine.build import main
from engine.device.cuda_graphs import whole_device_lock
from engine.errors import DeviceError
from engine.plans.check import check_plan
from engine.plans.edition import EDITIONS, gpu_architecture, logger
from engine.runtime import open as open_module
from engine.runtime import open_network
from engine.runtime import tensorrt as tensorrt_module
from engine.runtime.reserve import RESERVED, reserved_bytes
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from models import checkpoint
from tests.engine import onnx_files
from tests.tolerances import TOLERANCES, assert_close

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def cache(export_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(export_cache))


@pytest.fixture(scope="module")
def shared(trt, halves, tmp_path_factory) -> Path:
    """A folder with encoder.onnx and its plan for SM86 and SM89."""
    folder = tmp_path_factory.mktemp("plans")
    source = folder / "encoder.onnx"
    shutil.copy(halves["audio_encoder"], source)
    assert main(["audio-encoder", str(source), "--arch", "86,89", "--batch", "2", "3", "4"]) == 0
    return folder


@pytest.fixture
def plan(shared, tmp_path) -> Path:
    for path in shared.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "encoder.plan"


def on_gpu(monkeypatch, architecture: int | None) -> None:
    monkeypatch.setattr("engine.plans.check.gpu_architecture", lambda device=None: architecture)


# --- which plans are loaded ----------------------------------------------------------------------


def alter(**changes):
    """Return a function that changes values of a plan's record or of its key."""

    def change(plan):
        path = plan.with_suffix(".json")
        record = json.loads(path.read_text())
        for name, value in changes.items():
            (record["key"] if name in record["key"] else record)[name] = value
        path.write_text(json.dumps(record))

    return change


def flip(plan):
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


AGAIN = "build it again: python -m engine.build audio-encoder "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: plan.write_bytes(plan.read_bytes()[:5000]),
            r"is damaged \(it has 5000 bytes",
        ),
        (lambda plan: plan.write_bytes(b""), rf"is damaged \(it has 0 bytes.*{AGAIN}.* --force$"),
        (flip, rf"is damaged \(its hash differs from that in its record\); {AGAIN}.* --force$"),
        (lambda plan: plan.with_suffix(".json").unlink(), "has no record .encoder.json beside it"),
        (
            lambda plan: plan.with_suffix(".json").write_text("[1, 2]"),
            "encoder.json is not the record of a TensorRT plan",
        ),
        (
            lambda plan: plan.with_suffix(".json").write_text('{"key": {"forma'),
            "encoder.json is not the record of a TensorRT plan",
        ),
        (alter(format=7), "is a record of format 7; this version reads 4"),
        (alter(batch=None), "encoder.json is not the record of a TensorRT plan"),
        (
            alter(network="generator"),
            r"is the plan of a\(n\) generator; expected that of a\(n\) audio encoder, built with "
            "python -m engine.build audio-encoder FILE$",
        ),
        (
            alter(version="1.6.0.1"),
            rf"was built by tensorrt_rtx 1\.6\.0\.1 and runs with no other version; .* is installed; {AGAIN}",
        ),
        (
            alter(edition="tensorrt"),
            "needs tensorrt .*, which is not installed; pip install tensorrt-cu13",
        ),
        (alter(edition="openvino"), "was built by 'openvino'; expected tensorrt or tensorrt_rtx"),
        (
            alter(architectures=[75, 120]),
            rf"is for SM75, SM120, but the GPU here is SM89; {AGAIN}.*encoder.onnx -o .*encoder.plan "
            "--precision fp16 --batch 2 3 4$",
        ),
    ],
)
def test_unusable_plans(plan, monkeypatch, change, message):
    on_gpu(monkeypatch, 89)
    assert check_plan(plan, AUDIO_ENCODER, CUDA).key.architectures == [86, 89]
    monkeypatch.setattr(
        "engine.plans.edition.TensorRTEdition.installed",
        property(lambda self: self.name == "tensorrt_rtx"),
    )
    change(plan)
    with pytest.raises(InputError, match=message) as caught:
        open_network(AUDIO_ENCODER, plan, device=CUDA)
    assert "\n" not in str(caught.value) and str(plan.with_suffix("")) in str(caught.value)


def test_the_command_that_an_error_gives_builds_the_plan(plan, monkeypatch, capsys):
    alter(version="1.6.0.1")(plan)
    with pytest.raises(InputError) as caught:
        check_plan(plan, AUDIO_ENCODER)
    command = str(caught.value).split("python -m engine.build ")[1]
    assert main([*command.split(), "--arch", "86"]) == 0
    assert check_plan(plan, AUDIO_ENCODER).key.batch == [2, 3, 4]


# --- which runtime is chosen ---------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """The runtimes that were opened, in order. Those in `broken` raise its errors."""
    found, broken = [], {}

    def open_(runtime, signature, path, device, reason):
        found.append((runtime, path.name, reason))
        if runtime in broken:
            raise broken[runtime]
        return found[-1]

    monkeypatch.setattr(open_module, "_open", open_)
    return found, broken


def test_a_plan_that_fits_comes_first(plan, opened):
    for path in (plan.with_suffix(".onnx"), plan):
        open_network(AUDIO_ENCODER, path, device=CUDA)
    found, _ = opened
    assert [entry[:2] for entry in found] == [("tensorrt", "encoder.plan")] * 2
    assert found[0][2] == "encoder.plan fits this GPU"


def test_a_checkpoint_has_a_plan_too(trt, fp16_safe_checkpoints, halves, tmp_path, opened):
    source = tmp_path / "encoder.safetensors"
    shutil.copy(fp16_safe_checkpoints["audio_encoder"], source)
    assert main(["audio-encoder", str(source), "--arch", "86"]) == 0
    open_network(AUDIO_ENCODER, source, device=CUDA)
    assert opened[0][0][:2] == ("tensorrt", "encoder.plan")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "there is no encoder.plan beside "),
        (
            lambda plan: onnx_files.changed_weight(plan.with_suffix(".onnx")),
            "was built from another encoder.onnx",
        ),
        (lambda plan: plan.with_suffix(".json").write_text("{}"), "not the record of a TensorRT"),
    ],
)
def test_a_plan_that_does_not_fit(plan, opened, change, reason):
    change(plan)
    found, _ = opened
    open_network(AUDIO_ENCODER, plan.with_suffix(".onnx"), device=CUDA)
    ((runtime, name, said),) = found
    assert (runtime, name) == ("onnxruntime", "encoder.onnx") and reason in said
    with pytest.raises(InputError, match=reason):  # requested, it is an error
        open_network(AUDIO_ENCODER, plan.with_suffix(".onnx"), device=CUDA, runtime="tensorrt")


def test_fallbacks_after_tensorrt(plan, fp16_safe_checkpoints, opened):
    found, broken = opened
    broken["tensorrt"] = InputError("the plan is for SM75")
    broken["onnxruntime"] = DeviceError("no CUDA provider")
    with pytest.raises(DeviceError):  # PyTorch runs no ONNX files, so the CPU has to render
        open_network(AUDIO_ENCODER, plan.with_suffix(".onnx"), device=CUDA)
    assert [runtime for runtime, *_ in found] == ["tensorrt", "onnxruntime"]
    assert found[-1][2] == "the plan is for SM75"
    found.clear()
    open_network(AUDIO_ENCODER, fp16_safe_checkpoints["audio_encoder"], device=CUDA)
    assert [runtime for runtime, *_ in found] == ["onnxruntime", "torch"]
    assert found[-1][2].startswith("there is no ") and found[-1][2].endswith("no CUDA provider")


def test_a_given_plan_has_no_fallback(plan, opened):
    found, broken = opened
    broken["tensorrt"] = InputError("the plan is for SM75")
    with pytest.raises(InputError, match="the plan is for SM75"):
        open_network(AUDIO_ENCODER, plan, device=CUDA)
    assert len(found) == 1


def test_plans_need_a_gpu(plan, opened):
    found, _ = opened
    open_network(AUDIO_ENCODER, plan.with_suffix(".onnx"), device=CPU)
    assert found == [("onnxruntime", "encoder.onnx", "the default on a CPU")]
    with pytest.raises(
        InputError, match="is a TensorRT plan, which needs a GPU, but the device is cpu"
    ):
        open_network(AUDIO_ENCODER, plan, device=CPU)
    with pytest.raises(InputError, match="tensorrt needs a GPU, but the device is cpu"):
        open_network(AUDIO_ENCODER, plan.with_suffix(".onnx"), device=CPU, runtime="tensorrt")
    with pytest.raises(
        InputError, match="runtime is torch; expected tensorrt for the TensorRT plan"
    ):
        open_network(AUDIO_ENCODER, plan, device=CUDA, runtime="torch")


def test_scratch_memory_of_a_plan_is_reserved(plan):
    """An avatar's frames leave it free: float32 at batch 25 needs more than usual."""
    for file in (plan, plan.with_suffix(".onnx"), plan.with_suffix(".pth")):
        assert reserved_bytes(file) == RESERVED
        alter(scratch_bytes=25 * 128_000_000)(plan)
        assert reserved_bytes(file) == 25 * 128_000_000 + (1 << 30) > RESERVED
        alter(scratch_bytes=None)(plan)
    plan.with_suffix(".json").write_text("{}")
    assert reserved_bytes(plan) == RESERVED == reserved_bytes(None)


def test_an_avatar_may_name_a_plan(own, plan):
    root = own.native()
    for path in plan.parent.glob("encoder.*"):
        shutil.copy(path, root)
    record = json.loads((root / "avatar.json").read_text())
    (root / "avatar.json").write_text(json.dumps({**record, "audio_encoder": "encoder.plan"}))
    avatar = Avatar.load(root)
    assert avatar.audio_encoder == root / "encoder.plan"
    with pytest.raises(InputError, match=r"encoder\.plan is a TensorRT plan, which needs a GPU"):
        Pipeline(avatar)


# --- calls, with a fake engine -------------------------------------------------------------------


@pytest.fixture
def recorder(monkeypatch):
    engine = Recorder()
    monkeypatch.setattr(tensorrt_module, "_open_engine", lambda *_: engine)
    monkeypatch.setattr(tensorrt_module, "ALIGNMENT", 64)  # of PyTorch's memory on a CPU
    return engine


class Recorder:
    """Computes 512 numbers of each window, and records its batches."""

    def __init__(self):
        self.batches = []

    capturable = True

    def run(self, inputs, outputs, part):
        (windows,), (features,) = inputs.values(), outputs.values()
        assert list(inputs) == ["mel_spectrogram"] and list(outputs) == ["audio_features"]
        for tensor in (windows, features):
            assert tensor.dtype == torch.float16 and tensor.is_contiguous()
            assert tensor.data_ptr() % tensorrt_module.ALIGNMENT == 0
        assert windows.shape == (len(features), 1, 80, 16)
        assert part == sum(self.batches)
        self.batches.append(len(features))
        features.copy_(windows.flatten(1)[:, :512] + 1)


@pytest.mark.parametrize(
    ("n", "batches"),
    [(0, []), (1, [2]), (2, [2]), (3, [3]), (4, [4]), (5, [4, 2]), (11, [4, 4, 3])],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1])
def test_any_batch_in_any_memory(plan, recorder, n, batches, dtype, offset):
    """The plan is for batches of 2 to 4 in float16."""
    network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
    assert network.dtype == torch.float16 and "tensorrt_rtx" in network.description
    scratch = json.loads(plan.with_suffix(".json").read_text())["scratch_bytes"]
    assert network.description.endswith(f", {scratch / 1e6:.0f} MB to run")
    # `offset` values into its memory, a tensor is not aligned
    windows = torch.randn(n * 1280 + offset).to(dtype)[offset:].view(n, 1, 80, 16)
    memory = torch.full((n * 512 + offset,), float("nan"), dtype=dtype)
    out = memory[offset:].view(n, 512)
    assert network(windows, out=out) is out
    assert recorder.batches == batches
    assert torch.equal(out, (windows.half().flatten(1)[:, :512] + 1).to(dtype))


def test_non_contiguous_tensors(plan, recorder):
    """Neither the output nor the inputs are contiguous."""
    network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
    windows = torch.randn(1, 80, 16, 3).half().permute(3, 0, 1, 2)
    out = torch.zeros(3, 1024).half()
    network(windows, out=out[:, ::2])
    assert torch.equal(out[:, ::2], windows.flatten(1)[:, :512] + 1) and not out[:, 1::2].any()


class Stream:
    """A fake CUDA stream that records its waits."""

    cuda_stream = 7

    def __init__(self, calls):
        self.calls = calls

    def wait_stream(self, other):
        self.calls.append(("wait", "engine" if isinstance(self, Own) else "caller"))


class Own(Stream):
    pass


class Log:
    def clear(self):
        pass

    def error(self):
        return "it says why"


class TensorRT:
    """A fake of TensorRT's Python API for running plans, which records the calls."""

    device_memory_size_v2 = 1000
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="the user's")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self):
        self.calls, self.fails = [], None

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return None if name == self.fails else self

        return call

    def serialize(self):
        return b"kernels"


@pytest.fixture
def simulated(monkeypatch, export_cache):
    """A fake GPU and a fake TensorRT, which record their calls."""
    trt = TensorRT()
    monkeypatch.setattr("engine.plans.edition.TensorRTEdition.module", lambda self: trt)
    monkeypatch.setattr("engine.plans.edition.gpu_architecture", lambda: 89)
    monkeypatch.setattr("engine.plans.edition.TensorRTEdition.version", lambda self: "1.2.3")
    monkeypatch.setattr(tensorrt_module, "logger", lambda edition: Log())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    trt.capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: trt.capturing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Own(trt.calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(trt.calls))
    monkeypatch.setattr(tensorrt_module, "ALIGNMENT", 1)
    return trt


@pytest.fixture
def calls(plan, simulated):
    """A function of (windows, out) that calls the network and returns TensorRT's calls."""
    alter(version="1.2.3")(plan)
    network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
    assert network.capturable

    def call(windows, out):
        simulated.calls.clear()
        network(windows, out=out)
        return [call for call in simulated.calls if call != ("serialize",)]

    return call


RUN = [("wait", "engine"), ("execute_async_v3", 7), ("wait", "caller")]


def new_context(calls) -> bool:
    """Return whether the calls begin with a new context that gets the scratch memory."""
    names = [name for name, *_ in calls[:2]]
    assert ("set_device_memory" in names) == ("create_execution_context" in names)
    if "set_device_memory" in names:
        assert names == ["create_execution_context", "set_device_memory"]
        assert calls[1][2] == TensorRT.device_memory_size_v2
    return "set_device_memory" in names


def bound(windows, out) -> list[tuple]:
    """Return the bindings of a new context."""
    return [
        ("set_input_shape", "mel_spectrogram", tuple(windows.shape)),
        ("set_tensor_address", "mel_spectrogram", windows.data_ptr()),
        ("set_tensor_address", "audio_features", out.data_ptr()),
    ]


def test_addresses_are_bound_once(calls, simulated):
    windows, out = torch.zeros(4, 1, 80, 16).half(), torch.zeros(4, 512).half()
    first = calls(windows, out)
    assert new_context(first) and first[2:] == bound(windows, out) + RUN
    assert calls(windows, out) == RUN
    other = torch.zeros_like(out)
    assert calls(windows, other) == [bound(windows, other)[2], *RUN]
    # another batch size has another context, and the first one stays unchanged
    second = calls(windows[:3], out[:3])
    assert new_context(second) and second[2:] == bound(windows[:3], out[:3]) + RUN
    assert calls(windows, other) == calls(windows[:3], out[:3]) == RUN


def test_bindings_are_renewed_after_a_failure(calls, simulated):
    windows, out = torch.zeros(4, 1, 80, 16).half(), torch.zeros(4, 512).half()
    calls(windows, out)
    simulated.fails = "set_tensor_address"
    with pytest.raises(RuntimeError, match="TensorRT: it says why"):
        calls(windows, torch.zeros_like(out))
    simulated.fails = None
    again = calls(windows, out)
    assert new_context(again) and again[2:] == bound(windows, out) + RUN
    simulated.fails = "execute_async_v3"
    with pytest.raises(RuntimeError, match="TensorRT: it says why"):
        calls(windows, out)


def test_the_context_of_a_captured_call_is_not_reused(calls, simulated):
    """And no context is created during a capture if an earlier call has created it."""
    windows, out = torch.zeros(7, 1, 80, 16).half(), torch.zeros(7, 512).half()  # 4 and 3
    calls(windows, out)
    simulated.capturing = True
    assert calls(windows, out) == RUN + RUN
    simulated.capturing = False
    assert calls(windows, out) == RUN + RUN  # the same call may use it, because its bindings stay
    other = torch.zeros_like(out)
    for call in (calls(windows[:4], other[:4]), calls(windows[4:], other[4:])):
        assert new_context(call)
    # two chunks of one size have a context each before the capture
    windows, out = torch.zeros(8, 1, 80, 16).half(), torch.zeros(8, 512).half()
    calls(windows, out)
    simulated.capturing = True
    assert calls(windows, out) == RUN + RUN


def test_the_context_of_a_captured_call_goes_with_its_graph(calls, simulated, monkeypatch):
    """Which belongs to a render's buffers. Other captures may be replayed as long as the engine
    exists."""
    windows = torch.zeros(4, 1, 80, 16).half()
    outs = [torch.zeros(4, 512).half() for _ in range(2)]
    kept = []
    graphs = SimpleNamespace(keep=lambda needed, stream: kept.append((needed, stream)))
    monkeypatch.setattr("engine.device.cuda_graphs._capturing", graphs)
    calls(windows, outs[0])
    simulated.capturing = True
    calls(windows, outs[0])
    simulated.capturing = False
    assert calls(windows, outs[0]) == RUN
    assert len(kept) == 1 and isinstance(kept[0][1], Own)
    kept.clear()
    gc.collect()
    assert new_context(calls(windows, outs[0]))
    monkeypatch.setattr("engine.device.cuda_graphs._capturing", None)
    simulated.capturing = True
    calls(windows, outs[0])
    simulated.capturing = False
    gc.collect()
    assert new_context(calls(windows, outs[1])) and calls(windows, outs[0]) == RUN


def test_small_batches_use_their_profile(plan, simulated):
    alter(version="1.2.3", batch=[1, 32, 32])(plan)
    network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
    for n, chosen in ((8, [1]), (1, [1]), (9, []), (32, [])):
        simulated.calls.clear()
        network(torch.zeros(n, 1, 80, 16).half(), out=torch.zeros(n, 512).half())
        names = [name for name, *_ in simulated.calls]
        profiles = [c[1:] for c in simulated.calls if c[0] == "set_optimization_profile_async"]
        assert profiles == [(profile, 7) for profile in chosen]  # on the engine's stream
        if chosen:  # before the memory, and before the shape, which it resets
            order = "set_optimization_profile_async", "set_device_memory", "set_input_shape"
            assert [name for name in names if name in order] == list(order)
    simulated.fails = "set_optimization_profile_async"
    with pytest.raises(RuntimeError, match="TensorRT: it says why"):
        network(torch.zeros(3, 1, 80, 16).half(), out=torch.zeros(3, 512).half())


def test_nothing_is_captured_while_an_engine_is_opened(plan, simulated):
    """TensorRT may wait for the whole device."""
    alter(version="1.2.3")(plan)
    free = []

    def deserialize(data):
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(whole_device_lock.acquire, blocking=False).result())
        return simulated

    simulated.deserialize_cuda_engine = deserialize
    tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
    assert free == [False]
    with ThreadPoolExecutor(1) as other:
        assert other.submit(whole_device_lock.acquire, blocking=False).result()
        other.submit(whole_device_lock.release).result()


def test_one_device_has_one_name(plan, monkeypatch):
    """Networks are shared by it."""
    devices = []
    monkeypatch.setattr(
        open_module, "_open", lambda runtime, signature, path, device, *_: devices.append(device)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name in ("cuda", "cuda:1", "cuda:0"):
        open_network(AUDIO_ENCODER, plan, device=torch.device(name))
    assert [str(device) for device in devices] == ["cuda:1", "cuda:1", "cuda:0"]


def test_compiled_kernels_are_kept(plan, simulated, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    alter(version="1.2.3")(plan)
    for first in (True, False):
        simulated.calls.clear()
        network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
        again = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)
        assert network._engine is again._engine
        names = [name for name, *_ in simulated.calls]
        assert names.count("create_execution_context") == 1
        assert ("set_execution_context_allocation_strategy", "the user's") in simulated.calls
        assert simulated.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert names.count("deserialize") == (0 if first else 1)
        assert names.index("set_runtime_cache") < names.index("create_execution_context")
        del network, again
        (kept,) = (tmp_path / "cache").rglob("*.cache")
        assert kept.read_bytes() == b"kernels" and kept.name.endswith("-SM89.cache")


def test_nobody_waits_until_compiled_kernels_are_written(plan, simulated, monkeypatch):
    """Contexts are made while all renders wait. What is compiled meanwhile is written at last."""
    found, written, go = [b"one", b"two", b"three", b"four"], [], threading.Event()
    simulated.serialize = lambda: found.pop(0)
    alter(version="1.2.3")(plan)
    network = tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)

    def save(path, data):
        assert go.wait(30)
        written.append(data)

    monkeypatch.setattr("engine.plans.edition._save", save)
    windows, out = torch.zeros(4, 1, 80, 16).half(), torch.zeros(4, 512).half()
    threads = set(threading.enumerate())
    for n in (4, 3, 2):  # each has a new context
        network(windows[:n], out=out[:n])
    assert found == [b"four"] and written == []
    go.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join(30)
    assert written[-1] == b"three" and len(written) <= 2
    del network
    assert written[-1] == b"four"


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("deserialize_cuda_engine", "encoder.plan cannot be loaded: it says why"),
        (
            "create_execution_context",
            "encoder.plan cannot run: it says why",
        ),
    ],
)
def test_errors_of_tensorrt(plan, simulated, fails, message):
    alter(version="1.2.3")(plan)
    simulated.fails = fails
    with pytest.raises(InputError, match=message):
        tensorrt_module.TensorRTNetwork(AUDIO_ENCODER, plan, CPU)


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EDITIONS)
def on_this_gpu(request, halves, tmp_path_factory):
    """An edition, and a folder with both networks and their plans for the GPU here."""
    edition = EDITIONS[request.param]
    if not edition.installed:
        pytest.skip(f"{edition.name} is not installed")
    reason = edition.why_not([gpu_architecture()], gpu_architecture())
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("gpu")
    for kind, path in halves.items():
        shutil.copy(path, folder / f"{kind}.onnx")
        name = kind.replace("_", "-")
        options = ["--edition", edition.name, "--batch", "1", "4", "6"]
        assert main([name, str(folder / f"{kind}.onnx"), *options]) == 0
    return edition, folder


def random_inputs(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    pictures = torch.rand(n, 6, 320, 320, generator=generator)
    return [pictures, torch.randn(n, 32, 16, 16, generator=generator)]


@pytest.mark.gpu
def test_the_engine_matches_the_record(on_this_gpu):
    """Inputs, outputs, types and profile are read from the plan."""
    edition, folder = on_this_gpu
    trt = edition.module()
    for kind in ("generator", "audio_encoder"):
        record = check_plan(
            folder / f"{kind}.plan", {"generator": GENERATOR}.get(kind, AUDIO_ENCODER)
        )
        runtime = trt.Runtime(logger(edition))
        engine = runtime.deserialize_cuda_engine((folder / f"{kind}.plan").read_bytes())
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        assert names == {name for name, *_ in record.inputs + record.outputs}
        for name, _, shape in record.inputs:
            assert engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            profile = engine.get_tensor_profile_shape(name, 0)
            assert [tuple(s) for s in profile] == [(size, *shape[1:]) for size in (1, 4, 6)]
        for name, _, shape in record.inputs + record.outputs:
            assert engine.get_tensor_dtype(name) == trt.DataType.HALF
            assert list(engine.get_tensor_shape(name)) == shape
        assert engine.num_optimization_profiles == 1
        if record.scratch_bytes is not None:
            assert record.scratch_bytes == pytest.approx(engine.device_memory_size_v2, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 4, 6, 13])
def test_computes_what_pytorch_computes(on_this_gpu, fp16_safe_checkpoints, n):
    _, folder = on_this_gpu
    inputs = random_inputs(n)
    with torch.inference_mode():
        expected = checkpoint.load(fp16_safe_checkpoints["generator"])(*inputs)
    path = folder / "generator.onnx"
    network = open_network(GENERATOR, path, device=CUDA, runtime="tensorrt")
    assert network.reason == "generator.plan was given"
    for dtype in (torch.float16, torch.float32):
        out = torch.full((n, 3, 320, 320), float("nan"), dtype=dtype, device=CUDA)
        assert network(*(t.to(CUDA, dtype) for t in inputs), out=out) is out
        assert_close(out.cpu(), expected, TOLERANCES["generator", torch.float16, "PyTorch"])


@pytest.mark.gpu
def test_threads_and_streams(on_this_gpu):
    """Concurrent calls on several streams give the right results."""
    _, folder = on_this_gpu
    one, two = (open_network(GENERATOR, folder / "generator.plan", device=CUDA) for _ in range(2))
    assert one._engine is two._engine
    inputs = [[t.to(CUDA) for t in random_inputs(n)] for n in (1, 3, 5, 6)]
    expected = []
    for tensors in inputs:
        out = torch.empty(len(tensors[0]), 3, 320, 320, dtype=torch.float16, device=CUDA)
        expected.append(one(*tensors, out=out))
    torch.cuda.synchronize()
    wrong = []

    def work(tensors, wanted):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                out = torch.empty_like(wanted)
                two(*tensors, out=out)
                try:
                    assert_close(out, wanted, TOLERANCES["generator", torch.float16, "itself"])
                except AssertionError as error:
                    wrong.append(error)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.gpu
def test_caches_are_kept(on_this_gpu, tmp_path, monkeypatch):
    """The measurements of a build, and the kernels compiled by a run, are kept."""
    edition, folder = on_this_gpu
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "plans")
    plan = tmp_path / "plans" / "audio_encoder.plan"
    if edition.builds_ahead_of_time:
        network = open_network(AUDIO_ENCODER, plan, device=CUDA)
        network(torch.zeros(4, 1, 80, 16, device=CUDA), out=torch.zeros(4, 512, device=CUDA))
        torch.cuda.synchronize()
        del network
    else:
        source = str(plan.with_suffix(".onnx"))
        assert main(["audio-encoder", source, "--edition", edition.name, "--force"]) == 0
    (kept,) = tmp_path.rglob("*.cache")
    assert kept.stat().st_size > 0
    assert f"SM{gpu_architecture()}" in kept.name


@pytest.mark.gpu
def test_inspect_on_the_gpu(on_this_gpu, capsys):
    edition, folder = on_this_gpu
    options = ["--edition", edition.name, "--batch", "1", "4", "6", "--inspect"]
    assert main(["audio-encoder", str(folder / "audio_encoder.onnx"), *options]) == 0
    out = capsys.readouterr().out
    assert "layers as parsed" in out and "layers as built" in out and ": up to date" in out
