"""Many sessions of a device, one batch: which frames are made when."""

import atexit
import heapq
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from weakref import WeakSet

import torch

from ..errors import DeviceError, InputError
from .costs import DeviceCosts
from .hand_out import Batch, HandOut, Work
from .job import Job, Renderer
from .piece import piece_of
from .plan import Entry, Plan
from .session import SessionState, finish

ABANDONED = 10.0  # seconds without a take, unless told
MARGIN = 0.005  # seconds between the end of a frame's making and the time it is due
GATHER = 0.01  # seconds for which a batch that is not full waits for more frames
SWEEP = 1.0  # seconds between two looks for sessions that were abandoned

_running: "WeakSet[Scheduler]" = WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread inside OpenVINO or CUDA while they are unloaded ends the process with a signal.
    for scheduler in list(_running):
        scheduler.close()


class Scheduler:
    """Makes the frames of all sessions of a device, earliest deadline first; those of sessions that
    are not in real time when no other is due.

    One thread makes frames; it never waits for a client. A batch holds frames of any sessions of
    one avatar. Where frames are made while the thread goes on, on a GPU, a second thread hands them
    out. `step` does one round of the first one's work.

    A session is looked at when it has a frame to make, or when something happened to it: so the
    work does not grow with sessions that have nothing to do.

    Args:
        now: the clock, seconds.
        abandoned: seconds without a take after which a session is closed.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic, abandoned: float = ABANDONED):
        self.now, self._abandoned = now, abandoned
        self._nothing = torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        self._sessions: dict[SessionState, None] = {}
        self._stirred: dict[SessionState, None] = {}  # something happened to these
        self._dropped: deque[SessionState] = deque()  # nobody can take their pieces any more
        self.opening = threading.Lock()  # held while a session is admitted and added
        self._alarm = False  # the thread is to look at them now
        self._plan, self.costs = Plan(), DeviceCosts()
        self._next_sweep = -math.inf
        self._device: torch.device | None = None  # known from the first avatar on
        self._leaving: deque[tuple[Renderer, threading.Event]] = deque()  # avatars to be forgotten
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._hand_out = HandOut(self.now, self.costs)
        self._closed = False
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to make frames. What still runs when Python exits is closed."""
        _running.add(self)
        for name, work in (("viseme-live", self._loop), ("viseme-hand-out", self._hand_out_all)):
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
            self._threads[-1].start()

    def check_device(self, device: torch.device) -> None:
        """Check that an avatar is on the same device as those before it.

        Raises:
            InputError: it is on another one.
        """
        with self._changed:
            self._device = self._device or device
            if self._device != device:
                raise InputError(
                    f"the avatars are on {self._device} and {device}; expected one device"
                )

    def wake(self, state: SessionState, now: bool = True) -> None:
        """Look at a session again: now, or when the thread looks at others."""
        with self._changed:
            if state not in self._sessions:  # which is closed, and of which nothing is kept
                return
            self._stirred[state] = None
            if now and not self._alarm:
                self._alarm = True
                self._changed.notify()

    def add(self, state: SessionState) -> None:
        """Take a session.

        Raises:
            InputError: the scheduler is closed.
        """
        with self._changed:
            if self._closed:
                raise InputError("live sessions are closed")
            self._sessions[state] = None
        self.wake(state)

    def drop(self, state: SessionState) -> None:
        """Close a session soon. Takes no lock, because the garbage collector may call it in a
        thread that holds one."""
        if not state.closed:
            self._dropped.append(state)

    def __len__(self) -> int:
        with self._changed:
            return sum(not state.closed for state in self._sessions)

    def count(self, renderer: Renderer | None = None) -> int:
        """Return how many sessions in real time there are of an avatar; with None, of all."""
        return sum(renderer in (None, state.renderer) for state in self._in_real_time())

    def close_sessions(self, renderer: Renderer, failure: InputError | None = None) -> None:
        """Close the sessions of an avatar, because of a failure or because nobody wants them."""
        with self._changed:
            sessions = [state for state in self._sessions if state.renderer is renderer]
        for state in sessions:
            with state.lock:
                if not state.closed:
                    state.close(failure)

    def remove(self, renderer: Renderer) -> None:
        """Close the sessions of an avatar, and keep nothing of it."""
        self.close_sessions(renderer)
        gone = threading.Event()
        with self._changed:
            runs = any(thread.is_alive() for thread in self._threads) and not self._closed
            if runs:
                self._leaving.append((renderer, gone))
                self._alarm = True
                self._changed.notify()
        if runs:
            while not gone.wait(0.5) and not self._closed:  # a failure ends the threads
                pass
        if not gone.is_set():
            self._forget(renderer)
            self._hand_out.take_all()
        self.costs.remove(renderer)  # last, because a batch that was being made has a cost too

    def close(self) -> None:
        """Close all sessions and end the threads."""
        self._end(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # --- what it costs ---------------------------------------------------------------------------

    def room(self, renderer: Renderer, fps: Fraction) -> float:
        """Return how many more sessions in real time the device has time for."""
        load = sum(
            float(state.fps) * self.costs.of(state.renderer).seconds_per_frame
            for state in self._in_real_time()
        )
        cost = float(fps) * self.costs.of(renderer).seconds_per_frame
        return max((1 - load) / cost, 0.0) if cost else math.inf

    def _in_real_time(self) -> list[SessionState]:
        with self._changed:
            return [s for s in self._sessions if not s.closed and s.clock == "wall"]

    # --- the threads -----------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._closed:
                delay = self.step()
                if delay == 0:
                    continue
                with self._changed:
                    if self._sessions:  # whose speech comes without an alarm
                        delay = GATHER if delay is None else min(delay, GATHER)
                    if not self._alarm and not self._closed:
                        self._changed.wait(delay)
        except BaseException as error:
            self._fail(error)

    def _hand_out_all(self) -> None:
        try:
            while self._hand_out.next():
                pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End all sessions, and say why."""
        self.failure = error
        if not isinstance(error, InputError | DeviceError):
            traceback.print_exception(error, file=sys.stderr)
        self._end(error)

    def _end(self, failure: BaseException | None) -> None:
        with self._changed:
            self._closed = True
            sessions = list(self._sessions)
            self._changed.notify()
        for state in sessions:
            with state.lock:
                if not state.closed:
                    state.close(failure)
        self._hand_out.end()

    def step(self) -> float | None:
        """Make the next batch of frames that are due.

        Returns:
            Seconds until there is something to do again: 0 for at once, None if only a call of a
            session can change that.
        """
        now = self.now()
        while self._dropped:
            state = self._dropped.popleft()
            with state.lock:
                if not state.closed:
                    state.close()
        with self._changed:
            stirred, self._stirred, self._alarm = self._stirred, {}, False
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP
                stirred = dict(self._sessions)
        for state in stirred:
            self._look_at(state, now)
        while self._leaving:
            renderer, gone = self._leaving.popleft()
            self._forget(renderer)
            self._hand_out.mark(gone)  # after its last batch
        self._plan.skip()
        delay = self._delay(now) if self._plan.real_time else None
        if delay == 0 or self._plan.asked:
            self._make(now)
            return 0.0
        return delay

    def _look_at(self, state: SessionState, now: float) -> None:
        """Plan a session's next frame; forget a session that is closed."""
        with state.lock:
            if not state.closed and state.queue and now - state.waiting_since > self._abandoned:
                state.close(InputError(f"nobody took a piece for {self._abandoned:g} s"))
            if not state.closed:
                self._plan.put(state, self._when(state))
                return
        self._plan.drop(state)
        with self._changed:
            if state not in self._sessions:
                return
            del self._sessions[state]
        state.renderer.rings.close(state.features.slot)

    def _forget(self, renderer: Renderer) -> None:
        """Keep nothing of an avatar whose sessions are closed."""
        with self._changed:
            sessions = [state for state in self._sessions if state.renderer is renderer]
            for state in sessions:
                del self._sessions[state]
                self._stirred.pop(state, None)
        for state in sessions:
            renderer.rings.close(state.features.slot)
        self._plan.remove(renderer)
        for _ in range(len(self._dropped)):
            state = self._dropped.popleft()
            if state.renderer is not renderer:
                self._dropped.append(state)

    def _delay(self, now: float) -> float:
        """Return how long the next batch in real time may wait, for more frames to be in it."""
        when, _, state = self._plan.real_time[0]
        costs = self.costs.of(state.renderer)
        if len(self._plan) > 1 and state.renderer.batch_size > 1:
            latest = state.due(state.stream.frame) - costs.seconds(len(self._plan)) - MARGIN
            when = max(min(when + GATHER, latest), when)
        return max(when - now, 0.0)

    def _when(self, state: SessionState) -> float | None:
        """Return the time from which a session's next frame should be made, None for not now."""
        stream = state.stream
        if state.clock == "taken":
            if len(state.queue) + state.in_flight > state.ahead or not stream.ready():
                return None
            return -math.inf if state.wanted or stream.waiting else None
        due = state.due(stream.frame)
        # Speech may still come, until the frame has to be begun. Twice the time that it takes,
        # because an encoder or another batch may be at work.
        needed = 2 * self.costs.of(state.renderer).seconds(len(self._plan)) + MARGIN
        return due - (max(state.seconds_ahead, needed) if stream.ready() else needed)

    # --- one batch -------------------------------------------------------------------------------

    def _make(self, now: float) -> None:
        begin = self.now()
        work = self._bind_batch(now)
        if not work:
            return
        renderer, windows, jobs = work[0].state.renderer, [], []
        for state, bound, _, silent in work:
            if not silent:
                with state.lock:  # an interruption may cut the stream
                    windows += state.features.windows(bound.number, state.stream.pcm)
            picture = state.picture(bound.number)
            jobs.append(Job(state.features.slot, bound.number, picture, silent))
        try:
            if windows:
                renderer.hear(windows)
            batch = Batch(renderer, work, renderer.render(jobs), begin)
        except InputError as error:  # NaN, or a frame that cannot be decoded: of this avatar only
            self.close_sessions(renderer, error)
            return
        self._hand_out.put(batch)

    def _bind_batch(self, now: float) -> list[Work]:
        """Bind the frames whose turn it is, first come first, several of a session where there is
        room, of the avatar whose frame is the first. Those in real time come before all others."""
        plan = self._plan
        is_due = plan.real_time and plan.real_time[0][0] <= now
        renderer = (plan.real_time if is_due else plan.asked)[0][2].renderer
        # `_when` counts on a batch of no more than a frame of each session.
        most = min(renderer.batch_size, len(plan)) if plan.real_time else renderer.batch_size
        others: list[Entry] = []
        work: list[Work] = []
        for heap, room in ((plan.real_time, renderer.batch_size), (plan.asked, most)):
            while heap and heap[0][0] <= now and len(work) < room:
                entry = heapq.heappop(heap)
                state = entry[2]
                if not plan.counts(entry):
                    continue
                if state.renderer is not renderer:
                    others.append(entry)
                    continue
                with state.lock:
                    if not state.closed:
                        self._bind(state, work)
                        plan.put(state, self._when(state))
        for entry in others:
            plan.put_back(entry)
        return work

    def _bind(self, state: SessionState, work: list[Work]) -> None:
        """Fix the next frame of a session. One that is much too late has sound only."""
        late = self.now() - state.due(state.stream.frame)
        bound = state.stream.bind()
        if bound.speaking:
            state.speaks_to = bound.number + 1
        changed = state.stream.changed()
        if changed is not None:
            state.features.invalidate(changed)
        if state.clock == "taken" or late <= state.patience:
            state.in_flight += 1
            silent = state.features.is_silent(bound.number, state.stream.last_voiced)
            work.append(Work(state, bound, state.generation, silent))
        else:
            state.counts.skipped += 1
            finish(state.deliver(piece_of(bound, self._nothing, state.fps), self.now()))
