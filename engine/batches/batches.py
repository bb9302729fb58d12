"""Requests of a few frames each, whose frames share batches on the device."""

import atexit
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from weakref import WeakSet

import numpy as np
import torch

from ..device.stopwatch import Stopwatch
from ..errors import InputError, shortened
from ..forks import check_fork, note_computing
from ..media.jpeg import GpuJpegEncoder, encode_jpeg, on_gpu
from ..pipeline import Pipeline
from .encoding import EncodingThreads
from .job import Job, Span
from .maker import AUDIO_STAGES, COMPOSITE_STAGES, INFERENCE_STAGES, BatchMaker, Made
from .request import BatchRequest, BatchResult, check_request

_running: "WeakSet[SharedBatches]" = WeakSet()
_threads = EncodingThreads()


@atexit.register
def _close_all() -> None:
    # A thread inside OpenVINO or CUDA while they are unloaded ends the process with a signal.
    for batches in list(_running):
        batches.close()


class SharedBatches:
    """Makes frames for requests that know nothing of each other, as JPEG files.

    Their frames share batches: one takes frames of the oldest request, and of those after it that
    bring faces too, or bring none too. One thread runs the device. The files are encoded meanwhile,
    by threads of the host or by the GPU. A frame does not depend on the others in its batch, except
    for rounding in networks that PyTorch or a GPU runs.

    It is warm when the constructor returns. Close it, but not in a callback of a future.

    Args:
        pipeline: of the avatar. Its batch size is the most frames in a batch.
        quality: of the JPEG files, 1 to 100. They are baseline, with chroma 4:2:0.
        made: called with the number of frames of each batch, in the thread that makes them.
        encode: makes a file of an (H, W, 3) uint8 RGB frame, in several threads; by default JPEG.

    Attributes:
        sizes: how many batches of each number of frames were made.
        failure: what ended the thread, which is a bug or a device that fails; None if it runs.

    Raises:
        InputError: `quality` is out of range.
        DeviceError: the buffers do not fit the GPU.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        quality: int = 75,
        made: Callable[[int], object] = lambda frames: None,
        encode: Callable[[np.ndarray], bytes] | None = None,
    ):
        if not 1 <= quality <= 100:
            raise InputError(f"quality is {quality}; expected 1 to 100")
        note_computing()
        self._pipeline, device = pipeline, pipeline.device
        self._on_made = made
        self._encode = encode or (lambda rgb: encode_jpeg(rgb, quality, "4:2:0"))
        self._gpu_encoder: GpuJpegEncoder | None = None
        if encode is None and device.type == "cuda" and on_gpu(device):
            self._gpu_encoder = GpuJpegEncoder(quality, device, "4:2:0")
            self._gpu_lock, self._gpu_stream = threading.Lock(), torch.cuda.Stream(device)
        self._maker = BatchMaker(pipeline, on_host=self._gpu_encoder is None)
        self.sizes: Counter[int] = Counter()
        self._waiting: deque[Job] = deque()  # some frames of these are in no batch yet
        self._changed = threading.Condition()
        self._closed = False
        self.failure: BaseException | None = None
        self._pool, self._has_pool = _threads.open(), True
        self._thread = threading.Thread(target=self._loop, name="viseme-batches", daemon=True)
        _running.add(self)
        self._thread.start()

    @property
    def batches(self) -> int:
        """How many batches were made."""
        return sum(self.sizes.copy().values())

    @property
    def frames(self) -> int:
        """How many frames were made."""
        return sum(frames * batches for frames, batches in self.sizes.copy().items())

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the GPU that the buffers take; 0 on a CPU."""
        return self._maker.buffer_bytes

    def submit(self, request: BatchRequest) -> Future[BatchResult]:
        """Queue a request.

        A request whose future is cancelled before its turn is left out. The values of the arrays
        are checked here, in about half a millisecond for each frame with faces.

        Raises:
            InputError: the request cannot be used, this is closed, or the generator's runtime does
                not read such masked ROIs. The future has an InputError if a network returns NaN or
                infinity, an avatar's frame cannot be decoded, or this was closed before.
        """
        check_fork()
        check_request(request)
        job = Job(request, self._pipeline)
        with self._changed:
            if self._closed:
                raise self._ended()
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """End the thread. What waits fails; what was made is delivered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._maker.wait_for_all()
        with self._changed:
            waiting, has_pool = list(self._waiting), self._has_pool
            self._waiting.clear()
            self._has_pool = False
        for job in waiting:
            job.fail(self._ended())
        if has_pool:
            _threads.close()

    def __enter__(self) -> "SharedBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self) -> InputError:
        return InputError(f"the batches of avatar {shortened(self._pipeline.avatar.name)} ended")

    # --- the thread of the device ----------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # a fault of ours, or a device that fails
            with self._changed:
                self._closed, self.failure = True, error
            while self._waiting:
                self._waiting.popleft().fail(error)
            raise

    def _step(self) -> bool:
        """Wait for requests and make a batch; return False at the end."""
        self._maker.wait()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return False
            spans = self._choose()
        try:
            self._make(spans)
        except BaseException as error:  # of these requests, which know of no others
            for span in spans:
                span.job.fail(error)
        return True

    def _choose(self) -> list[Span]:
        """Take the next frames: those of the oldest request and of others of its kind."""
        spans: list[Span] = []
        room, given = self._maker.batch_size, None
        for job in list(self._waiting):
            kind = job.request.faces is not None
            if job.over:
                self._waiting.remove(job)
            elif room and given in (None, kind):
                if not job.begin():
                    self._waiting.remove(job)
                    continue
                span = Span(job, job.taken, min(job.taken + room, job.count))
                given, room, job.taken = kind, room - len(span), span.stop
                spans.append(span)
                if job.taken == job.count:
                    self._waiting.remove(job)
        return spans

    def _make(self, spans: list[Span]) -> None:
        stopwatch = Stopwatch(self._pipeline.device)
        self._maker.begin([span.job for span in spans if span.begins], stopwatch)
        spans = [span for span in spans if not span.job.over]
        if not spans:
            return
        made = self._maker.make(spans, stopwatch)
        try:
            self.sizes[len(made.frames)] += 1
            self._on_made(len(made.frames))
            if made.wait is None:
                self._deliver(made)
            else:
                self._pool.submit(self._deliver, made)
        except BaseException:  # such as of a pool that takes nothing more, because Python exits
            made.release()
            raise

    # --- the threads that encode -----------------------------------------------------------------

    def _deliver(self, made: Made) -> None:
        """Encode the frames of a batch, once they are there."""
        try:
            if made.wait is not None:
                made.wait()
            seconds = made.stopwatch.seconds()
            audio, inference, composite = (
                sum(seconds.get(stage, 0.0) for stage in stages)
                for stages in (AUDIO_STAGES, INFERENCE_STAGES, COMPOSITE_STAGES)
            )
            for span in made.spans:
                span.job.add_seconds(audio if span.begins else 0.0, inference, composite)
                try:
                    span.job.check()
                except InputError as error:
                    span.job.fail(error)
            begin = time.perf_counter()
            if self._gpu_encoder is not None:
                self._encode_on_gpu(made, begin)
                made.release()
                return
        except BaseException as error:
            made.release()
            for span in made.spans:
                span.job.fail(error)
            return
        left = _Countdown(len(made.frames), made.release)
        for (job, frame), pixels in zip(_frames_of(made), made.frames.numpy(), strict=True):
            try:
                self._pool.submit(self._encode_one, job, frame, pixels, made.number, begin, left)
            except RuntimeError as error:  # Python exits: its pools take nothing more
                job.fail(error)
                left.count()

    def _encode_one(
        self,
        job: Job,
        frame: int,
        pixels: np.ndarray,
        batch: int,
        begin: float,
        left: "_Countdown",
    ) -> None:
        try:
            if not job.over:
                job.put(frame, self._encode(pixels), batch, time.perf_counter() - begin)
        except BaseException as error:
            job.fail(error)
        finally:
            left.count()

    def _encode_on_gpu(self, made: Made, begin: float) -> None:
        assert self._gpu_encoder is not None
        with self._gpu_lock, torch.cuda.stream(self._gpu_stream):
            files = self._gpu_encoder(made.frames)
        seconds = time.perf_counter() - begin
        for (job, frame), file in zip(_frames_of(made), files, strict=True):
            job.put(frame, file, made.number, seconds)


def _frames_of(made: Made) -> Iterator[tuple[Job, int]]:
    """Yield the request and its number of each frame of a batch."""
    for span in made.spans:
        for frame in range(span.first, span.stop):
            yield span.job, frame


class _Countdown:
    """Calls `done` when `count` has been called n times."""

    def __init__(self, n: int, done: Callable[[], object]):
        self._left, self._done, self._lock = n, done, threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._done()
