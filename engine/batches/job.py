"""A request on its way."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import kernels

from ..errors import InputError
from ..pipeline import Pipeline
from .audio import FeatureRows, feature_rows
from .mask import check_masked
from .request import BatchRequest, BatchResult


class Job:
    """A request, and what is there of its result.

    The thread of the device takes it up, others deliver its files.

    Args:
        request: checked.
        pipeline: for the checks of the networks' outputs, and of what its generator reads.

    Raises:
        InputError: the client's masked ROIs are not what the generator takes them for.

    Attributes:
        count, start: of the request, as Python's integers.
        future: of the result.
        taken: frames that are in batches so far.
        feature_rows: what its frames read.
        features: (m, 512) on the device, once it has begun.
    """

    def __init__(self, request: BatchRequest, pipeline: Pipeline):
        self.request, self.future = request, Future[BatchResult]()
        self.count, self.start = int(request.count), int(request.start)
        self.taken = 0
        if request.speech is None:
            each = np.arange(1, 1 + kernels.FEATURES_PER_FRAME)
            self.feature_rows = FeatureRows(0, 0, np.tile(each, (self.count, 1)))
        else:
            self.feature_rows = feature_rows(request.speech.size, self.count, int(request.context))
        self.features: Tensor | None = None
        self._references = self._masked = np.empty(0, np.float32)
        self._unchecked: set[bool] = set()  # layouts whose masked ROIs have to be checked: planar?
        if request.faces is not None and pipeline.generator.assumes_mask:
            self._unchecked = {False, True}
            self._check_masks()
        features = self.feature_rows.stop - self.feature_rows.first
        self._encoder_check, self._generator_check = pipeline.checks(self.count, features)
        self._lock = threading.Lock()
        self._over = False
        self._files: list[bytes | None] = [None] * self.count
        self._left = self.count
        self._seconds = [0.0, 0.0, 0.0]
        self._encoding: dict[int, float] = {}  # of each batch

    @property
    def over(self) -> bool:
        """Whether the future has a result or an error."""
        return self._over or self.future.cancelled()

    def begin(self) -> bool:
        """Begin, unless it is over or the client has cancelled it."""
        with self._lock:  # another thread may fail it meanwhile
            return not self._over and self._set_running()

    def lay_out(self, planar: bool) -> None:
        """Note how the client's pictures lie in memory.

        Raises:
            InputError: the masked ROIs are not what the generator takes them for.
        """
        self._references, self._masked = self._parts(planar)
        if planar in self._unchecked:
            check_masked(self._references, self._masked)

    def _parts(self, planar: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the client's ROIs and masked ROIs, (n, 3, 320, 320) each."""
        assert self.request.faces is not None
        blocks = self.request.faces.reshape(2 * self.count, 3, *self.request.faces.shape[2:])
        if planar:
            return blocks[: self.count], blocks[self.count :]
        return blocks[::2], blocks[1::2]

    def _check_masks(self) -> None:
        """Check the masked ROIs in the thread of the client. How they lie may not be known yet:
        then those of one layout must be right, and `lay_out` checks the other one if it is that."""
        layouts = [self.request.layout == "planar"]
        if self.request.layout == "auto" and self.count > 1:
            layouts.append(True)
        errors: list[InputError] = []
        for planar in layouts:
            try:
                check_masked(*self._parts(planar))
            except InputError as error:
                errors.append(error)
            else:
                self._unchecked.remove(planar)
                return
        raise errors[0]

    def copy_faces(self, first: int, out: np.ndarray) -> None:
        """Write the client's pictures of the frames from this one on into (n, 6, 320, 320)."""
        out[:, :3] = self._references[first : first + len(out)]
        out[:, 3:] = self._masked[first : first + len(out)]

    def check_features(self, ranges: Tensor) -> None:
        """Check the ranges of its next features.

        Raises:
            InputError: the audio encoder returned NaN or infinity.
        """
        with self._lock:
            self._encoder_check.add(ranges)

    def check_frames(self, ranges: Tensor) -> None:
        """Check the ranges of its next frames. On a GPU, `check` does when they have arrived.

        Raises:
            InputError: the generator returned NaN or infinity, or the audio encoder did.
        """
        with self._lock:
            self._generator_check.add(ranges)

    def check(self) -> None:
        """Check what has arrived, see `check_frames`."""
        with self._lock:
            self._encoder_check.look()
            self._generator_check.look()

    def add_seconds(self, audio: float, inference: float, composite: float) -> None:
        with self._lock:
            for place, seconds in enumerate((audio, inference, composite)):
                self._seconds[place] += seconds

    def put(self, frame: int, file: bytes, batch: int, seconds: float) -> None:
        """Take the file of a frame; the last one finishes the request.

        Args:
            batch: number of the batch that it was in.
            seconds: since the frames of this batch were made.
        """
        with self._lock:
            self._files[frame] = file
            self._encoding[batch] = max(seconds, self._encoding.get(batch, 0.0))
            self._left -= 1
            if self._left or self._over:
                return
            self._over = True
        audio, inference, composite = self._seconds
        files = [file for file in self._files if file is not None]
        composite += sum(self._encoding.values())
        self.future.set_result(BatchResult(files, audio, inference, composite))

    def fail(self, error: BaseException) -> None:
        """Finish the request with an error, unless it is over."""
        if isinstance(error, InputError):
            # without its traceback, which holds the request's arrays
            error = type(error)(str(error))
        with self._lock:
            over, self._over = self._over, True
        if not over and not self.future.cancelled() and self._set_running():
            self.future.set_exception(error)

    def _set_running(self) -> bool:
        return self.future.running() or self.future.set_running_or_notify_cancel()


@dataclass(frozen=True)
class Span:
    """Frames of a request in a batch: `first` to `stop` (exclusive)."""

    job: Job
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def begins(self) -> bool:
        """Whether they are the request's first ones."""
        return self.first == 0
