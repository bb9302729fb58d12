"""Requests of many clients: what they share, and what they do not."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import pytest

from engine import Avatar, Pipeline
from engine.batches import BatchRequest, SharedBatches
from engine.device.buffers import RING
from engine.errors import InputError
from tests.engine.batches.conftest import pixels, write_avatar

WAIT = 60
NONE = np.zeros(0, np.float32)


def make_requests(formulas, speech, seed: int, most: int) -> list[BatchRequest]:
    """Some with faces and some without, of any length, with speech or audio."""
    random, found = np.random.default_rng(seed), []
    for number in range(most):
        count, start = int(random.integers(1, 13)), int(random.integers(-20, 20))
        begin = int(random.integers(0, 40_000))
        options: dict = {"speech": speech[begin : begin + int(random.integers(0, 12_000))].numpy()}
        if random.random() < 0.3:
            options = {"audio": random.normal(size=(32, 16, 16)).astype(np.float32)}
        if number % 2:
            options["faces"] = formulas.faces(start, count)
        found.append(BatchRequest(count, start, context=int(random.integers(0, 9)), **options))
    return found


@contextmanager
def held(batches: SharedBatches) -> Iterator[list[list]]:
    """Let the first batch wait until the block ends. Yields the spans of each batch."""
    make, go, began, spans = batches._maker.make, threading.Event(), threading.Event(), []

    def waiting(batch, stopwatch):
        spans.append(batch)
        began.set()
        assert go.wait(WAIT)
        return make(batch, stopwatch)

    batches._maker.make = waiting
    first = batches.submit(BatchRequest(1, speech=NONE))
    assert began.wait(WAIT)
    try:
        yield spans
    finally:
        go.set()
        first.exception(WAIT)


def viseme_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("viseme-b", "viseme-enc"))]


@pytest.mark.parametrize("place", ["host", "memory"])
def test_each_client_gets_its_own_frames(place, on_host, in_memory, formulas, speech):
    """Six clients at once, bit for bit as alone."""
    requests = [make_requests(formulas, speech, seed, 4) for seed in range(6)]
    pipeline = on_host if place == "host" else in_memory
    with SharedBatches(on_host, encode=pixels) as alone:
        wanted = [[alone.submit(r).result(WAIT).files for r in each] for each in requests]
    found: list[list] = [[] for _ in requests]

    def client(number: int) -> None:
        futures = [batches.submit(request) for request in requests[number]]
        sent.release()
        found[number] = [future.result(WAIT).files for future in futures]

    sent = threading.Semaphore(0)
    with SharedBatches(pipeline, encode=pixels) as batches:
        clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        with held(batches) as spans:
            for thread in clients:
                thread.start()
            for _ in clients:
                assert sent.acquire(timeout=WAIT)
        for thread in clients:
            thread.join(WAIT)
        counts = batches.sizes
    assert found == wanted
    total = sum(request.count for each in requests for request in each)
    assert batches.frames == total + 1 and batches.batches == len(spans) == counts.total()
    # full but for the first one and the last one of each kind; one kind each
    assert len(spans) <= 1 + 2 + total // 8
    assert max(len({span.job for span in batch}) for batch in spans) > 1
    for batch in spans:
        assert len({span.job.request.faces is None for span in batch}) == 1


def test_the_oldest_request_is_next(on_host, formulas):
    """With those of its kind, in order."""
    counts = [3, 2, 7, 1, 4, 9, 2]
    with SharedBatches(on_host, encode=pixels) as batches:
        with held(batches) as spans:
            futures = [
                batches.submit(
                    BatchRequest(n, speech=NONE, faces=formulas.faces(0, n) if k % 2 else None)
                )
                for k, n in enumerate(counts)
            ]
        for future in futures:
            future.result(WAIT)
    named = [[(futures.index(s.job.future), s.first, s.stop) for s in b] for b in spans[1:]]
    assert named == [
        [(0, 0, 3), (2, 0, 5)],
        [(1, 0, 2), (3, 0, 1), (5, 0, 5)],
        [(2, 5, 7), (4, 0, 4), (6, 0, 2)],
        [(5, 5, 9)],
    ]


def test_windows_of_several_requests_share_the_encoders_calls(on_host, speech, monkeypatch):
    calls, encode = [], on_host.encode
    monkeypatch.setattr(
        on_host, "encode", lambda buffers, m, watch: calls.append(m) or encode(buffers, m, watch)
    )
    with SharedBatches(on_host, encode=pixels) as batches:
        with held(batches):
            pcm = speech[:9000].numpy()
            futures = [batches.submit(BatchRequest(1, start, pcm)) for start in range(8)]
        for future in futures:
            future.result(WAIT)
    assert calls == [32, 8 * 7 - 32]  # the first frame reads 7 features


def test_a_request_that_fails_fails_alone(batches, formulas, speech):
    """Whose pictures make the generator return NaN, in a batch with others."""
    pcm = speech[:9000].numpy()
    good = [BatchRequest(2, i, pcm, faces=formulas.faces(i, 2)) for i in range(3)]
    wanted = [batches.submit(request).result(WAIT).files for request in good]
    bad = BatchRequest(2, 0, pcm, faces=np.full((2, 6, 320, 320), 3e38, np.float32))
    with SharedBatches(batches._pipeline, encode=pixels) as shared:
        with held(shared) as spans:
            futures = [shared.submit(request) for request in (good[0], bad, *good[1:])]
        message = r"generator\.onnx: the generator returns NaN in video frame 0"
        with pytest.raises(InputError, match=message) as raised:
            futures.pop(1).result(WAIT)
        assert "\n" not in str(raised.value)
        assert [future.result(WAIT).files for future in futures] == wanted
        assert [len(batch) for batch in spans] == [1, 4]
        assert shared.submit(good[0]).result(WAIT).files == wanted[0]


def test_a_frame_that_cannot_be_decoded(shown, tmp_path):
    """Ends the requests of its batch, and nothing else."""
    write_avatar(tmp_path / "a", shown)
    pipeline = Pipeline(Avatar.load(tmp_path / "a"))
    path = tmp_path / "a" / "frames" / "3.png"
    path.write_bytes(path.read_bytes()[:3000])
    with SharedBatches(pipeline, encode=pixels) as batches:
        for count, start in ((4, 0), (32, 1)):
            with pytest.raises(InputError, match=r"3\.png cannot be read as an image"):
                batches.submit(BatchRequest(count, start, NONE)).result(WAIT)
            faces = np.zeros((2, 6, 320, 320), np.float32)
            with pytest.raises(InputError, match=r"3\.png cannot be read as an image"):
                batches.submit(BatchRequest(2, 3, NONE, faces=faces)).result(WAIT)
            assert len(batches.submit(BatchRequest(3, 4, NONE)).result(WAIT).files) == 3
        assert not batches._waiting and all(free.is_set() for free in batches._maker._free)


def test_an_encoder_that_fails_fails_that_request(on_host):
    def failing(rgb):
        if rgb[0, 0, 0] == first:
            raise RuntimeError("no room")
        return b"file"

    first = frames_of_avatar(on_host)[0, 0, 0, 0]
    others = [k for k, frame in enumerate(frames_of_avatar(on_host)) if frame[0, 0, 0] != first]
    with SharedBatches(on_host, encode=failing) as batches:
        bad = batches.submit(BatchRequest(1, 0, NONE))
        good = batches.submit(BatchRequest(1, others[0], NONE))
        with pytest.raises(RuntimeError, match="no room"):
            bad.result(WAIT)
        assert good.result(WAIT).files == [b"file"]


def frames_of_avatar(pipeline) -> np.ndarray:
    return pipeline.avatar.batch(list(range(len(pipeline.avatar))))[0].numpy()


def test_a_fault_of_ours_does_not_end_the_thread(on_host, monkeypatch):
    with SharedBatches(on_host, encode=pixels) as batches:
        for what in ("_gather", "_encode_audio", "_on_its_way"):
            with monkeypatch.context() as patch:
                patch.setattr(batches._maker, what, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    batches.submit(BatchRequest(1, 0, NONE)).result(WAIT)
            assert len(batches.submit(BatchRequest(9, 0, NONE)).result(WAIT).files) == 9


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_ended(on_host, monkeypatch):
    """As after a GPU's failure."""
    before = viseme_threads()
    batches = SharedBatches(on_host, encode=pixels)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "_choose", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batches.submit(BatchRequest(1, 0, NONE)).result(WAIT)
    batches._thread.join(WAIT)
    assert isinstance(batches.failure, ZeroDivisionError)
    with pytest.raises(InputError, match="ended"):
        batches.submit(BatchRequest(1, 0, NONE))
    batches.close()
    batches.close()
    assert viseme_threads() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_fails_while_it_is_closed(on_host):
    """The encoding threads are given back once, so that others keep theirs."""
    with SharedBatches(on_host, encode=pixels) as other:
        batches = SharedBatches(on_host, encode=pixels)
        with held(batches):
            closing = threading.Thread(target=batches.close)
            closing.start()
            while not batches._closed:
                time.sleep(0.01)
            batches._maker.wait = lambda: 1 / 0
        closing.join(WAIT)
        assert batches.failure is not None
        batches.close()
        assert len(other.submit(BatchRequest(2, 0, NONE)).result(WAIT).files) == 2


def test_a_request_that_fails_while_it_is_chosen(on_host):
    """As when a thread that encodes its first frames fails, which ends no other request."""
    with SharedBatches(on_host, encode=pixels) as batches:
        with held(batches):
            bad, good = (batches.submit(BatchRequest(9, 0, NONE)) for _ in range(2))
            job = batches._waiting[0]
            begin = job.begin

            def late() -> bool:
                if job.taken:
                    job.fail(RuntimeError("no room"))
                return begin()

            job.begin = late
        with pytest.raises(RuntimeError, match="no room"):
            bad.result(WAIT)
        assert len(good.result(WAIT).files) == 9


def ends(batches: SharedBatches) -> bool:
    closing = threading.Thread(target=batches.close, daemon=True)
    closing.start()
    closing.join(WAIT / 4)
    return not closing.is_alive()


def test_threads_that_take_no_frames_any_more(on_host, monkeypatch):
    """As while Python exits: what they did not take fails, and nobody waits for it."""
    batches, taken = SharedBatches(on_host, encode=pixels), []
    submit = batches._pool.submit

    def some(*work):
        taken.append(work)
        if len(taken) > 5:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        return submit(*work)

    with monkeypatch.context() as patch:
        patch.setattr(batches._pool, "submit", some)
        futures = [batches.submit(BatchRequest(2, 0, NONE)) for _ in range(4 * RING)]
        for number, future in enumerate(futures):
            if number < 2:
                assert len(future.result(WAIT).files) == 2
                continue
            with pytest.raises(RuntimeError, match="interpreter shutdown"):
                future.result(WAIT)
    assert ends(batches)


def test_a_count_of_batches_that_fails(on_host):
    """Fails its requests, and keeps no place of a batch."""
    batches = SharedBatches(on_host, encode=pixels, made=lambda frames: 1 / 0)
    for _ in range(RING + 1):
        with pytest.raises(ZeroDivisionError):
            batches.submit(BatchRequest(1, 0, NONE)).result(WAIT)
    assert ends(batches)


def test_a_cancelled_request_is_left_out(on_host, formulas):
    faces = formulas.faces(0, 2)
    kept = weakref.ref(faces)
    with SharedBatches(on_host, encode=pixels) as batches:
        with held(batches):
            futures = [
                batches.submit(BatchRequest(2, 0, NONE)),
                batches.submit(BatchRequest(2, 0, NONE, faces=faces)),
                batches.submit(BatchRequest(3, 0, NONE)),
            ]
            assert futures[1].cancel()
        assert len(futures[2].result(WAIT).files) == 3 and futures[0].result(WAIT)
        with pytest.raises(CancelledError):
            futures[1].result(WAIT)
        assert not futures[0].cancel()
        assert batches.frames == 1 + 2 + 3
        del futures, faces
        gone(kept)


def gone(*references: weakref.ref) -> None:
    """Wait until the threads have let go, which they do after the result is there."""
    end = time.monotonic() + WAIT
    while any(reference() is not None for reference in references):
        gc.collect()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_stays_of_a_request(on_host, fails):
    value = 3e38 if fails else 0.5
    faces = np.full((9, 6, 320, 320), value, np.float32)
    audio = np.zeros((32, 16, 16), np.float32)
    kept = weakref.ref(faces), weakref.ref(audio)
    with SharedBatches(on_host, encode=pixels) as batches:
        future = batches.submit(BatchRequest(9, 0, audio=audio, faces=faces))
        assert (future.exception(WAIT) is None) != fails
        del faces, audio  # the future stays, with its result or its error
        gone(*kept)
        assert future.done()


def test_files_are_encoded_while_the_next_batch_is_made(on_host):
    """As many batches as the ring has places; the next one waits for a place."""
    go = threading.Event()

    def slow(rgb):
        assert go.wait(WAIT)
        return b"file"

    with SharedBatches(on_host, encode=slow) as batches:
        futures = [batches.submit(BatchRequest(8, 0, NONE)) for _ in range(RING + 3)]
        try:
            end = time.monotonic() + WAIT
            while batches.batches < RING:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert not any(future.done() for future in futures)
            go.wait(0.2)  # in which a fourth would come
            assert batches.batches == RING
        finally:
            go.set()
        assert all(len(future.result(WAIT).files) == 8 for future in futures)


@pytest.mark.parametrize("place", ["host", "memory"])
def test_closing(place, on_host, in_memory):
    """What was made comes; what waits fails with a line, also what was begun."""
    batches = SharedBatches(on_host if place == "host" else in_memory, encode=pixels)
    with held(batches):
        waits = [batches.submit(BatchRequest(count, 0, NONE)) for count in (2, 32)]
        cancelled = batches.submit(BatchRequest(2, 0, NONE))
        cancelled.cancel()
        closing = threading.Thread(target=batches.close)
        closing.start()
        while not batches._closed:
            time.sleep(0.01)
    closing.join(WAIT)
    for future in waits:
        with pytest.raises(InputError, match="^the batches of avatar 'person' ended$"):
            future.result(WAIT)
    with pytest.raises(InputError, match="^the batches of avatar 'person' ended$"):
        batches.submit(BatchRequest(1, 0, NONE))
    batches.close()
    assert cancelled.cancelled() and batches.frames == 1


def test_a_request_that_was_begun_fails_too(on_host):
    batches = SharedBatches(on_host, encode=pixels)
    make, began = batches._maker.make, threading.Event()

    def waiting(spans, stopwatch):
        began.set()
        while not batches._closed:
            time.sleep(0.01)
        return make(spans, stopwatch)

    batches._maker.make = waiting
    future = batches.submit(BatchRequest(32, 0, NONE))
    assert began.wait(WAIT)
    batches.close()
    with pytest.raises(InputError, match="ended"):
        future.result(WAIT)
    assert batches.batches == 1


def test_nothing_stays_after_closing(folder):
    before = viseme_threads()
    pipeline = Pipeline(Avatar.load(folder))
    first, second = SharedBatches(pipeline), SharedBatches(pipeline)
    first.submit(BatchRequest(2, 0, NONE)).result(WAIT)
    first.close()
    assert second.submit(BatchRequest(2, 0, NONE)).result(WAIT)  # the encoding threads are shared
    second.close()
    kept = weakref.ref(pipeline), weakref.ref(first)
    del pipeline, first, second
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert viseme_threads() == before


def test_seconds(on_host, speech):
    """Of the stages, without what a request did not need."""
    with SharedBatches(on_host) as batches:
        result = batches.submit(BatchRequest(9, 0, speech[:9000].numpy())).result(WAIT)
        silent = batches.submit(BatchRequest(9, 0, NONE)).result(WAIT)
    assert min(result.audio_seconds, result.inference_seconds, result.composite_seconds) > 0
    assert silent.audio_seconds == 0 and silent.inference_seconds > 0
