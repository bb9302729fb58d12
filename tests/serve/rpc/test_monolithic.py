"""The Go server's methods: answers, errors in their order, statistics; on the wire."""

import asyncio
import logging
import threading
import time

import grpc
import numpy as np
import pytest

from engine.batches import BatchResult
from engine.errors import InputError
from serve.config import Capacity, Config
from serve.errors import Busy, Ending, LoadFailed
from serve.rpc.monolithic import MonolithicService
from tests.serve.rpc.encoding import content, number, read
from tests.serve.rpc.fakes import FakeModel, FakeRegistry, files_of
from tests.serve.rpc.go_client import FACE_BYTES, OTHER, SERVICE, GoClient

SPEECH = np.sin(np.arange(16000) / 30).astype("<f4").tobytes()
FEATURES = bytes(32768)
GOOD = {"model_id": "anna", "batch_size": 2, "raw_audio": SPEECH}


def speech(text: str) -> bytes:
    """Return an answer that holds nothing but an error."""
    return content(9, text.encode())


# --- the errors of InferBatchComposite ------------------------------------------------------------

MISTAKES = [
    ("model_id is required", {"model_id": ""}),
    ("batch_size must be 1-32, got 33", {"batch_size": 33}),
    (
        f"Invalid visual frames size: got 5 bytes, expected {2 * FACE_BYTES} bytes",
        {"visual_frames": b"12345"},
    ),
    ("Invalid raw audio size: got 3 bytes, expected a multiple of 4", {"raw_audio": b"abc"}),
    (
        "Invalid sample rate: got 7999 Hz, expected 8000 to 192000, or 0 for 16000",
        {"sample_rate": 7999},
    ),
    ("Either raw_audio or audio_features must be provided", {"raw_audio": b""}),
    (
        "Invalid audio features size: got 32767 bytes, expected 32768 bytes",
        {"raw_audio": b"", "audio_features": bytes(32767)},
    ),
    (
        "Invalid audio_context_frames: got 101, expected 0 to 100",
        {"audio_context_frames": 101},
    ),
    ("Failed to load model 'carla': model 'carla' not configured", {"model_id": "carla"}),
    (
        "Invalid raw audio: sample 1 is nan, expected -32768 to 32768",
        {"raw_audio": np.array([0, np.nan], "<f4").tobytes()},
    ),
    ("Inference failed: the generator returned NaN", {}),
]


@pytest.mark.parametrize("service", [SERVICE, OTHER])
@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_one_mistake(client, registry, messages, number, service):
    text, fields = MISTAKES[number]
    registry.models["anna"].served.batches.error = InputError("the generator returned NaN")
    message = messages.CompositeBatchRequest(**{**GOOD, **fields})
    answer = client.raw("InferBatchComposite", message.SerializeToString(), service)
    assert answer == speech(text)
    assert registry.models["anna"].requests == 0 and registry.models["anna"].in_use == 0


def test_the_order_of_errors(client):
    """Of a request with several mistakes, the first one is told; it is mended, and so on."""
    fields = {
        "model_id": "", "batch_size": 0, "visual_frames": b"12345", "raw_audio": b"abc",
        "sample_rate": 5, "audio_features": b"x", "audio_context_frames": -1,
    }  # fmt: skip
    mended = [
        ("model_id is required", {"model_id": "carla"}),
        ("batch_size must be 1-32, got 0", {"batch_size": 1}),
        (f"Invalid visual frames size: got 5 bytes, expected {FACE_BYTES} bytes", {"visual_frames": b""}),
        ("Invalid raw audio size: got 3 bytes", {"raw_audio": np.array([np.nan], "<f4").tobytes()}),
        ("Invalid sample rate: got 5 Hz", {"sample_rate": 0}),
        ("Invalid audio_context_frames: got -1", {"audio_context_frames": 0}),
        ("Failed to load model 'carla': model 'carla' not configured", {"model_id": "anna"}),
        ("Invalid raw audio: sample 0 is nan", {"raw_audio": b""}),
        ("Invalid audio features size: got 1 bytes, expected 32768 bytes", {"audio_features": b""}),
        ("Either raw_audio or audio_features must be provided", {"audio_features": FEATURES}),
        ("", {}),
    ]  # fmt: skip
    for text, mend in mended:
        error = client.infer(**fields).error
        assert error.startswith(text) and bool(error) == bool(text)
        fields |= mend


@pytest.mark.parametrize("size", [0, -1, 33, 2**31 - 1, -(2**31)])
def test_batch_sizes(client, size):
    answer = client.infer(**{**GOOD, "batch_size": size, "visual_frames": b"x"})
    assert answer.error == f"batch_size must be 1-32, got {size}"
    assert not answer.success


@pytest.mark.parametrize("size", [1, 32])
def test_allowed_batch_sizes(client, size):
    answer = client.infer(**{**GOOD, "batch_size": size})
    assert answer.success and len(answer.composited_frames) == size and answer.error == ""


@pytest.mark.parametrize("less", [1, 4, FACE_BYTES, 2 * FACE_BYTES - 1, -1])
def test_sizes_of_faces(client, less):
    faces = bytes(2 * FACE_BYTES - less) if less > 0 else bytes(2 * FACE_BYTES + 1)
    answer = client.infer(**GOOD, visual_frames=faces)
    assert answer.error == (
        f"Invalid visual frames size: got {len(faces)} bytes, expected {2 * FACE_BYTES} bytes"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4001])
def test_pieces_of_samples(client, size):
    answer = client.infer(**{**GOOD, "raw_audio": SPEECH[:size]})
    assert answer.error == f"Invalid raw audio size: got {size} bytes, expected a multiple of 4"


@pytest.mark.parametrize("rate", [-1, 1, 7999, 192_001, 2**31 - 1, -(2**31)])
def test_sample_rates(client, rate):
    assert client.infer(**GOOD, sample_rate=rate).error.startswith(
        f"Invalid sample rate: got {rate} Hz, expected "
    )
    features = {"model_id": "anna", "batch_size": 1, "audio_features": FEATURES}
    assert client.infer(**features, sample_rate=rate).success  # it is the rate of raw_audio


def test_a_large_message_is_refused(client):
    """More than this server's 100 MB."""
    with pytest.raises(grpc.RpcError) as failed:
        client.raw("InferBatchComposite", bytes(101 << 20))
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.infer(**GOOD).success


@pytest.mark.parametrize(
    ("service", "method", "message"),
    [
        (SERVICE, "InferBatchComposite", content(1, b"anna")[:-1]),
        (SERVICE, "InferBatchComposite", content(1, b"\xff\xfe")),
        (OTHER, "InferBatchComposite", b"\x07"),
        (SERVICE, "LoadModel", content(1, b"\xff")),
        (SERVICE, "UnloadModel", b"\x0a\x05abc"),
        (SERVICE, "Health", b"\xff"),
    ],
)
def test_what_is_no_message(client, service, method, message, caplog):
    with pytest.raises(grpc.RpcError) as failed:
        client.raw(method, message, service)
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert "Traceback" not in failed.value.details()
    assert not caplog.records  # a client's mistake is nobody's traceback


def test_names_are_looked_up_and_nothing_else(client, registry):
    for name in ("../anna", "/etc/passwd", "anna\n", "anna\0", "Anna", "anna "):
        answer = client.infer(**{**GOOD, "model_id": name})
        assert answer.error.startswith("Failed to load model '") and "\n" not in answer.error
    long = client.infer(**{**GOOD, "model_id": "x" * 5_000_000})
    assert len(long.error) <= 1000
    assert not registry.models["anna"].loaded


# --- errors of the server -------------------------------------------------------------------------


def test_a_model_that_cannot_be_loaded(client, registry):
    registry.models["anna"].error = LoadFailed("boxes.json is missing")
    assert client.infer(**GOOD).error == "Failed to load model 'anna': boxes.json is missing"
    assert client.call("LoadModel", model_id="anna").error == (
        "Failed to load model: boxes.json is missing"
    )
    registry.models["anna"].error = Busy("it is being loaded since 120 s")
    assert (
        client.infer(**GOOD).error == "Failed to load model 'anna': it is being loaded since 120 s"
    )


def test_models_without_an_audio_encoder(client, registry):
    """The configuration knows of dora that she has none."""
    registry.models["dora"] = FakeModel("dora", error=LoadFailed("there is no audio encoder"))
    fields = {"model_id": "dora", "batch_size": 1}
    assert client.infer(**fields, raw_audio=SPEECH).error == (
        "Raw audio processing not available (audio encoder pool not initialized)"
    )
    load = "Failed to load model 'dora': there is no audio encoder"
    assert client.infer(**fields, audio_features=FEATURES).error == load


def test_a_server_that_ends(client, registry):
    """UNAVAILABLE, so that a client looks for another server."""
    registry.models["anna"].error = Ending("the server is ending")
    for method in ("InferBatchComposite", "LoadModel", "UnloadModel"):
        with pytest.raises(grpc.RpcError) as failed:
            client.call(method, **(GOOD if method[0] == "I" else {"model_id": "anna"}))
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert failed.value.details() == "the server is ending"


@pytest.mark.parametrize("late", [True, False])
def test_bugs_are_logged_and_not_told(client, registry, caplog, late):
    batches = registry.models["anna"].served.batches
    batches.error, batches.late = RuntimeError("secret /path"), late
    with caplog.at_level(logging.ERROR):
        answer = client.infer(**GOOD)
    assert answer.error == "Inference failed: an internal error, which the server's log describes"
    assert "secret /path" in caplog.text
    caplog.clear()
    registry.models["anna"].error = KeyError("secret")
    internal = "an internal error, which the server's log describes"
    assert client.infer(**GOOD).error == f"Failed to load model 'anna': {internal}"
    assert client.call("LoadModel", model_id="anna").error == f"Failed to load model: {internal}"
    assert (
        client.call("UnloadModel", model_id="anna").error == f"Failed to unload model: {internal}"
    )
    assert caplog.text.count("KeyError: 'secret'") == 3


# --- answers --------------------------------------------------------------------------------------


def test_a_request_and_an_answer_in_bytes(client, registry):
    """Both encoded by hand; only times are not known beforehand."""
    request = (
        content(1, b"berta") + content(2, bytes(2 * FACE_BYTES)) + content(3, SPEECH)
        + content(4, b"ignored") + number(5, 2) + number(6, -3) + number(7, 0)
    )  # fmt: skip
    answers = [client.raw("InferBatchComposite", request, service) for service in (SERVICE, OTHER)]
    (batch, _) = registry.models["berta"].served.batches.requests
    assert (batch.count, batch.start, batch.layout) == (2, -3, "planar")
    for answer, loaded in zip(answers, (True, False), strict=True):
        fields = read(answer)
        numbers = [field for field, _ in fields]
        assert numbers == [1, 1, 2, 3, 4, 5, *([6, 7] if loaded else []), 8, 10]
        assert [value for _, value in fields[:2]] == files_of(batch)
        found = dict(fields)
        assert (found[2], found[3]) == pytest.approx((2, 3))
        assert 1 <= found[5] <= found[4] < 30_000  # audio (1 ms and its decoding), total
        assert (found[8], found[10]) == (1, 1)
        if loaded:
            assert (found[6], found[7]) == (1, 250)
    # a request of nothing
    assert client.raw("InferBatchComposite", b"") == speech("model_id is required")


def test_fields_that_nobody_knows_are_ignored(client, messages, registry):
    request = messages.CompositeBatchRequest(**GOOD).SerializeToString()
    answer = client.raw("InferBatchComposite", request + content(77, b"new") + number(8, 4))
    assert (8, 1) in read(answer)
    assert registry.models["anna"].served.batches.requests[0].context == 4


@pytest.mark.parametrize("start", [0, -1, 2**31 - 1, -(2**31)])
def test_any_start(client, start):
    answer = client.infer(**GOOD, start_frame_idx=start)
    assert [int(file.split()[0]) for file in answer.composited_frames] == [start, start + 1]


def test_requests_of_features_alone(client):
    fields = {"model_id": "anna", "batch_size": 3, "audio_features": FEATURES}
    answer = client.infer(**fields)
    assert answer.success and len(answer.composited_frames) == 3
    assert answer.gpu_id == 0 and answer.model_loaded and answer.model_load_time_ms == 250
    again = client.infer(**fields)
    assert not again.model_loaded and again.model_load_time_ms == 0


# --- clients that go, and too many ----------------------------------------------------------------


def test_a_client_that_goes_away(client, registry):
    """Its batch's future is cancelled, and the avatar is free."""
    model = registry.models["anna"]
    model.served.batches.held = []
    call = client.begin(**GOOD)
    assert model.served.batches.arrived.acquire(timeout=30)
    (future,) = model.served.batches.held
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert not done.is_set() and model.in_use == 1
    call.cancel()
    assert done.wait(30) and future.cancelled()
    wait_for(lambda: model.in_use == 0)
    assert model.requests == 0


def test_a_client_that_goes_away_while_its_faces_are_read(client, registry):
    model = registry.models["anna"]
    batches = model.served.batches
    batches.held, batches.gate = [], threading.Event()
    call = client.begin(**GOOD, visual_frames=bytes(2 * FACE_BYTES))
    assert batches.arrived.acquire(timeout=30)
    call.cancel()
    wait_for(lambda: model.in_use == 0)  # the call does not wait for the thread
    assert not batches.held
    batches.gate.set()
    wait_for(lambda: batches.held and batches.held[0].cancelled())
    # what fails then is nobody's
    batches.gate.clear()
    batches.error, batches.late = InputError("the batches ended"), False
    call = client.begin(**GOOD, visual_frames=bytes(2 * FACE_BYTES))
    for _ in range(2):
        assert batches.arrived.acquire(timeout=30)
    call.cancel()
    wait_for(lambda: model.in_use == 0)
    batches.gate.set()
    batches.error, batches.gate, batches.held = None, None, None
    assert client.infer(**GOOD).success


def test_a_client_whose_channel_breaks(server, registry, messages):
    batches = registry.models["anna"].served.batches
    batches.held = []
    with GoClient(server.port, messages) as client:
        call = client.begin(**GOOD)  # without a reference to it, it is cancelled
        assert batches.arrived.acquire(timeout=30)
    wait_for(batches.held[0].cancelled)
    assert call.code() == grpc.StatusCode.CANCELLED


def test_too_many_requests(client, registry):
    """8 of them, of both services; the next one is an answer that old clients know."""
    batches = registry.models["anna"].served.batches
    batches.held = []
    calls = [client.begin(**GOOD) for _ in range(8)]
    for _ in calls:
        assert batches.arrived.acquire(timeout=30)
    text = (
        "Inference failed: 8 other requests are waiting; expected less than 8 (limits.max_requests)"
    )
    for service in (SERVICE, OTHER):
        assert client.infer(service, **GOOD).error == text
    assert client.infer(**{**GOOD, "batch_size": 0}).error.startswith("batch_size")
    assert client.call("Health").healthy
    calls[0].cancel()
    wait_for(lambda: any(future.cancelled() for future in batches.held))
    wait_for(lambda: registry.models["anna"].in_use == 7)
    calls[0] = client.begin(**GOOD)
    assert batches.arrived.acquire(timeout=30)
    for future in batches.held:
        if not future.cancelled():
            future.set_result(BatchResult([b"1", b"2"], 0.0, 0.0, 0.0))
    assert all(read(call.result(30))[0] == (1, b"1") for call in calls)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_many_clients(server, registry, messages):
    """6 clients, 90 frames each in batches: each client's frames are those of a run alone."""
    registry.models["anna"].served.batches.keep = False

    def run(client: GoClient, person: int) -> list[bytes]:
        random = np.random.default_rng(person)
        speech = random.uniform(-1, 1, 100_000).astype("<f4")
        face = random.random((1, 6, 320, 320), np.float32).tobytes()
        files: list[bytes] = []
        while len(files) < 90:
            first = len(files)
            size = min((15, 7, 10)[person % 3], 90 - first)
            fields = {"batch_size": size, "start_frame_idx": first}
            if person == 1 and first < 14:
                fields["visual_frames"] = face * fields["batch_size"]
            answer = client.infer(
                model_id="anna", raw_audio=speech[640 * first :].tobytes(), **fields
            )
            assert answer.success, answer.error
            files += answer.composited_frames
        return files

    clients = [GoClient(server.port, messages) for _ in range(6)]
    alone = [run(client, person) for person, client in enumerate(clients)]
    together: list[list[bytes] | None] = [None] * 6
    threads = [
        threading.Thread(target=lambda n=n: together.__setitem__(n, run(clients[n], n)))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for client in clients:
        client.channel.close()
    assert together == alone
    assert len({tuple(files) for files in alone}) == 6 and all(len(f) == 90 for f in alone)


# --- models ---------------------------------------------------------------------------------------


def test_loading_and_unloading(client, registry):
    assert client.raw("UnloadModel", content(1, b"anna")) == content(
        2, b"Failed to unload model: model 'anna' not loaded"
    )
    assert client.raw("LoadModel", content(1, b"x")) == content(
        2, b"Failed to load model: model 'x' not configured"
    )
    assert client.call("LoadModel").error == "Failed to load model: model '' not configured"
    answer = client.raw("LoadModel", content(1, b"berta") + number(2, 1))
    assert read(answer) == [(1, 1), (3, 1), (4, 250.0)]
    again = client.call("LoadModel", model_id="berta", preferred_gpu=-1)
    assert again.success and again.gpu_id == 1 and 0 <= again.load_time_ms < 30_000
    client.call("LoadModel", model_id="berta", preferred_gpu=-(2**31))
    assert registry.preferred == [0, 0, 1, -1, -1]
    assert client.raw("UnloadModel", content(1, b"berta")) == number(1, 1)
    assert not registry.models["berta"].loaded


def test_what_models_say_of_themselves(client, registry, server):
    unused = [client.call("ListModels"), client.call("GetModelStats")]
    assert [(m.model_id, m.loaded) for m in unused[0].models] == [("anna", False), ("berta", False)]
    assert [m.last_used_timestamp for m in unused[1].models] == [0, 0]
    server.counted.clear()
    for _ in range(3):
        assert client.infer(**{**GOOD, "model_id": "berta"}).success
    assert server.counted == [("berta", 2)] * 3
    client.infer(**{**GOOD, "model_id": "berta", "batch_size": 0})  # counts for nothing
    registry.models["berta"].inference_seconds += 1
    listed, stats = client.call("ListModels").models[1], client.call("GetModelStats").models[1]
    for model in (listed, stats):
        assert (model.model_id, model.loaded, model.gpu_id) == ("berta", True, 1)
        assert (model.memory_mb, model.request_count) == (5, 3)
        assert model.avg_inference_ms == pytest.approx(1006 / 3)
    assert (stats.total_inference_ms, stats.last_used_timestamp) == (1006, 1_700_000_000)
    registry.models["berta"].requests = 2**40
    assert client.call("ListModels").models[1].request_count == 2**31 - 1


def test_health_in_bytes(client, registry):
    assert read(client.raw("Health", b"")) == [(1, 1), (3, 100), (4, b"\0\1"), (5, bytes(8))]
    for name in ("anna", "berta"):
        client.call("LoadModel", model_id=name)
    registry.models["anna"].bytes, registry.models["berta"].bytes = 2**30, 3 * 2**29
    used = np.array([1, 1.5], "<f4").tobytes()
    expected = number(1, 1) + number(2, 2) + number(3, 100) + content(4, b"\0\1") + content(5, used)
    assert client.raw("Health", b"") == expected
    registry.failure = RuntimeError("a bug")
    assert not client.call("Health").healthy


def test_a_limit_that_int32_cannot_hold():
    config = Config(capacity=Capacity(max_models=2**40))
    answer = asyncio.run(MonolithicService(FakeRegistry(), config).Health(None, None))
    assert answer.max_models == 2**31 - 1
