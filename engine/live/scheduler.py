"""Many sessions of a device, one batch: which frames are made when."""

import heapq
import math
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import kernels

from .features import CONTEXT
from .session import SessionState, piece_of
from .stream import BoundFrame

ABANDONED = 10.0  # seconds without a take, unless told
MARGIN = 0.005  # seconds between the end of a frame's making and the time it is due


class Job(NamedTuple):
    """A frame to make.

    Attributes:
        picture: number of the avatar's frame.
        audio: (32, 16, 16) the generator's audio input; None where nobody speaks.
    """

    picture: int
    audio: np.ndarray | None


class Renderer(Protocol):
    """Makes features and frames of one avatar.

    Attributes:
        batch_size: the most frames at once.
    """

    batch_size: int

    def encode(self, windows: np.ndarray) -> np.ndarray:
        """Encode (n, 1, 80, 16) mel windows to (n, 512) features."""
        ...

    def render(self, jobs: list[Job]) -> list[Tensor]:
        """Make frames, (1, H, W, 3) uint8 RGB each, which are the caller's to keep."""
        ...


class _Work(NamedTuple):
    """A frame of a session that is bound and waits for its picture."""

    state: SessionState
    bound: BoundFrame
    generation: int


class Scheduler:
    """Makes the frames of all sessions of one avatar, earliest deadline first.

    One thread makes frames; it never waits for a client. `step` does one round of its work.

    Args:
        renderer: makes features and frames.
        now: the clock, seconds.
        abandoned: seconds without a take after which a session is closed.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        now: Callable[[], float] = time.monotonic,
        abandoned: float = ABANDONED,
    ):
        self._renderer, self.now, self._abandoned = renderer, now, abandoned
        self._nothing = torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        self._sessions: list[SessionState] = []
        self._changed = threading.Condition()
        self._stirred = False  # something happened since the last step began
        self._thread: threading.Thread | None = None
        self._closed = False
        self.seconds_per_frame: float | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="viseme-live", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        with self._changed:
            self._stirred = True
            self._changed.notify()

    def add(self, state: SessionState) -> None:
        with self._changed:
            self._sessions.append(state)
        self.wake()

    def __len__(self) -> int:
        with self._changed:
            return sum(not state.closed for state in self._sessions)

    def close(self) -> None:
        """Close all sessions and end the thread."""
        with self._changed:
            self._closed = True
            sessions = list(self._sessions)
        for state in sessions:
            with state.lock:
                state.close()
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        try:
            while True:
                with self._changed:
                    self._stirred = False
                if self._closed:
                    return
                delay = self.step()
                with self._changed:
                    if not self._stirred and not self._closed and delay != 0:
                        self._changed.wait(delay)
        except BaseException as error:  # the sessions end, and say why
            self.failure = error
            traceback.print_exc(file=sys.stderr)
            self._closed = True
            with self._changed:
                sessions = list(self._sessions)
            for state in sessions:
                with state.lock:
                    state.close()

    def step(self) -> float | None:
        """Make the next batch of frames that are due.

        Returns:
            Seconds until there is something to do again: 0 for at once, None if only a call of a
            session can change that.
        """
        now = self.now()
        due: list[tuple[float, int, SessionState]] = []
        later: float | None = None
        with self._changed:
            self._sessions = [state for state in self._sessions if not state.closed]
            sessions = self._sessions
        for order, state in enumerate(sessions):
            with state.lock:
                if state.closed:
                    continue
                if now - state.last_taken > self._abandoned and state.queue:
                    state.close()
                    continue
                when = self._when(state)
            if when is None:
                continue
            if when <= now:
                due.append((when, order, state))
            else:
                later = when if later is None else min(later, when)
        if not due:
            return None if later is None else later - now
        self._make(due, now)
        return 0.0

    def _when(self, state: SessionState) -> float | None:
        """Return the time from which a session's next frame should be made, None for not now."""
        stream = state.stream
        if state.clock == "taken":
            if len(state.queue) + state.in_flight > state.ahead or not stream.ready():
                return None
            return -math.inf if state.wanted or stream.waiting else None
        due = state.due(stream.frame)
        if stream.ready():
            return due - state.ahead / float(state.fps)
        # Speech may still come, until the frame has to be begun.
        return due - (self.seconds_per_frame or 0.0) - MARGIN

    # --- one batch -------------------------------------------------------------------------------

    def _make(self, due: list[tuple[float, int, SessionState]], now: float) -> None:
        begin = time.perf_counter()
        work = self._bind_batch(due, now)
        self._hear(work)
        jobs = [self._job(item) for item in work]
        frames = self._renderer.render(jobs) if jobs else []
        now = self.now()
        for item, frame in zip(work, frames, strict=True):
            state = item.state
            with state.lock:
                state.in_flight -= 1
                if item.generation == state.generation and not state.closed:
                    state.deliver(piece_of(item.bound, frame, state.fps), now)
                    state.forget()
        speaking = sum(job.audio is not None for job in jobs)
        if speaking:
            took = (time.perf_counter() - begin) / speaking
            before = self.seconds_per_frame
            self.seconds_per_frame = took if before is None else 0.9 * before + 0.1 * took

    def _bind_batch(self, due: list[tuple[float, int, SessionState]], now: float) -> list[_Work]:
        """Bind the frames that are due first, several of a session where there is room."""
        heapq.heapify(due)
        work: list[_Work] = []
        while due and len(work) < self._renderer.batch_size:
            _, order, state = heapq.heappop(due)
            with state.lock:
                if state.closed or not self._bind(state, work):
                    continue
                when = self._when(state)
            if when is not None and when <= now:
                heapq.heappush(due, (when, order, state))
        return work

    def _bind(self, state: SessionState, work: list[_Work]) -> bool:
        """Fix the next frame of a session. One that is much too late has sound only."""
        late = self.now() - state.due(state.stream.frame)
        bound = state.stream.bind()
        changed = state.stream.changed()
        if changed is not None:
            state.features.invalidate(changed)
        if state.clock == "taken" or late <= state.ahead / float(state.fps):
            state.in_flight += 1
            work.append(_Work(state, bound, state.generation))
        else:
            state.counts.skipped += 1
            state.deliver(piece_of(bound, self._nothing, state.fps), self.now())
        return True

    def _hear(self, work: list[_Work]) -> None:
        """Compute the mel rows and the features that the frames need, of all sessions at once."""
        last = {id(item.state): item for item in work}.values()  # of several frames of a session
        slices = defaultdict(list)
        for item in last:
            with item.state.lock:
                part = item.state.features.mel_slice(item.bound.number, item.state.stream.pcm)
            if part is not None:
                slices[part.rows].append((item.state, part))
        for count, parts in slices.items():
            pcm = torch.from_numpy(np.stack([part.samples for _, part in parts]))
            mel = kernels.log_mel(pcm)[:, CONTEXT : CONTEXT + count].numpy()
            for (state, part), rows in zip(parts, mel, strict=True):
                state.features.set_mel(part.first, rows)
        needed = [(item.state, *item.state.features.windows(item.bound.number)) for item in last]
        needed = [entry for entry in needed if len(entry[2])]
        if not needed:
            return
        features = self._renderer.encode(np.concatenate([windows for _, _, windows in needed]))
        taken = 0
        for state, first, windows in needed:
            state.features.set_features(first, features[taken : taken + len(windows)])
            taken += len(windows)

    def _job(self, item: _Work) -> Job:
        number, features = item.bound.number, item.state.features
        silent = features.is_silent(number)
        audio = None if silent else features.feature_window(number)
        return Job(item.state.picture(number), audio)
