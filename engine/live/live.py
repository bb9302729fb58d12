"""Live sessions with one avatar."""

import time
import weakref
from collections.abc import Callable

import kernels

from ..avatar import Avatar
from ..errors import DeviceError, InputError
from ..pipeline import Loop, Pipeline, frame_numbers
from .convert import SpeechConverter
from .features import FeatureStream
from .renderer import CpuRenderer
from .scheduler import ABANDONED, Job, Scheduler
from .session import CLOCKS, Session, SessionState
from .stream import SpeechStream

RATES = (8000, 192000)  # Hz, of sound
AHEAD = 3  # frames
PREBUFFER = 0.45  # seconds: a frame's mouth depends on speech up to 0.452 s later


class Live:
    """An avatar that people talk to: any number of sessions, whose frames share batches.

    It is warm when the constructor returns. A context manager.

    Args:
        avatar: decides the device too.
        batch_size: frames made at once; 1 on a CPU unless told.
        runtime: as in `Pipeline`.
        precision: as in `Pipeline`; unless told, bf16 where the CPU and OpenVINO can.
        mode: how the mouth is pasted, see `kernels.composite`.
        abandoned: seconds after which a session of which nobody takes a frame is closed.
        now: the clock, seconds. For tests.
        start: whether a thread makes frames; without one, `scheduler.step` does. For tests.

    Raises:
        InputError, DeviceError: as `Pipeline`.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        batch_size: int = 1,
        runtime: str | None = None,
        precision: str | None = None,
        mode: kernels.CompositeMode = "crop",
        abandoned: float = ABANDONED,
        now: Callable[[], float] = time.monotonic,
        start: bool = True,
    ):
        if avatar.device.type != "cpu":
            raise DeviceError(
                "live sessions run on the CPU so far; load the avatar with device cpu"
            )
        self.avatar = avatar
        if precision is None and runtime in (None, "openvino") and _has_bf16():
            precision = "bf16"
        self.pipeline = Pipeline(
            avatar, batch_size=batch_size, runtime=runtime, precision=precision
        )
        self._renderer = CpuRenderer(self.pipeline, mode=mode)
        self.scheduler = Scheduler(self._renderer, now=now, abandoned=abandoned)
        self._warm_up()
        if start:
            self.scheduler.start()

    def open(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        prebuffer: float = PREBUFFER,
        clock: str = "wall",
        ahead: int = AHEAD,
        loop: Loop = "pingpong",
        start_frame: int | None = None,
    ) -> Session:
        """Open a session.

        Args:
            sample_rate: of the speech, 8000 to 192000 Hz. The sound that comes out has it too.
            channels: 1 or 2.
            prebuffer: seconds of an utterance that must be there before its first frame is made.
                With less than 0.45 s the lips follow worse, and sooner.
            clock: "wall" for frames in real time, "taken" for frames as fast as they are taken.
            ahead: frames that are made early, and that an interruption may cost.
            loop, start_frame: as in `Pipeline.render`.

        Raises:
            InputError: an argument out of range.
            DeviceError: one more session would make the others late.
        """
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise InputError(f"sample rate is {sample_rate}; expected {RATES[0]} to {RATES[1]}")
        if channels not in (1, 2):
            raise InputError(f"channels is {channels}; expected 1 or 2")
        if not 0 <= prebuffer <= 10:
            raise InputError(f"prebuffer is {prebuffer}; expected 0 to 10 seconds")
        if clock not in CLOCKS:
            raise InputError(f"clock is {clock!r}; expected one of: {', '.join(CLOCKS)}")
        if not 0 <= ahead <= 25:
            raise InputError(f"ahead is {ahead}; expected 0 to 25 frames")
        frame_numbers(len(self.avatar), loop, start_frame)  # checks both
        if clock == "wall":
            self._admit()
        fps = self.avatar.fps
        state = SessionState(
            SpeechStream(
                fps,
                sample_rate,
                channels,
                prebuffer=prebuffer,
                converter=lambda: SpeechConverter(sample_rate),
            ),
            FeatureStream(fps, self._renderer.silence),
            _picture_numbers(len(self.avatar), loop, start_frame),
            fps=fps,
            clock=clock,
            begin=self.scheduler.now() + ahead / float(fps),
            ahead=ahead,
            wake=self.scheduler.wake,
        )
        session = Session(state, sample_rate=sample_rate, channels=channels, now=self.scheduler.now)
        weakref.finalize(session, _close, state)
        self.scheduler.add(state)
        return session

    @property
    def description(self) -> str:
        """The runtime of the generator, and how many sessions there can be, for people."""
        return f"generator in {self.pipeline.generator.description}, room for {self.capacity()}"

    def capacity(self) -> int:
        """Return how many sessions the device can serve in real time, by the measured cost."""
        cost = self.scheduler.seconds_per_frame or 0.0
        return max(int(1 / (cost * float(self.avatar.fps))) if cost else 1, 1)

    def close(self) -> None:
        """Close all sessions."""
        self.scheduler.close()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self) -> None:
        there, room = len(self.scheduler), self.capacity()
        if there >= room:
            raise DeviceError(
                f"{there} sessions are open, and {self.avatar.device} has room for {room} "
                f"at {float(self.avatar.fps):g} frames a second"
            )

    def _warm_up(self) -> None:
        silence = FeatureStream(self.avatar.fps, self._renderer.silence).feature_window(0)
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            self._renderer.render([Job(0, silence)])
            took.append(time.perf_counter() - begin)
        self.scheduler.seconds_per_frame = min(took)


def _has_bf16() -> bool:
    try:
        from ..runtime.openvino import has_bf16
    except ImportError:  # OpenVINO is not installed
        return False
    return has_bf16()


def _picture_numbers(length: int, loop: Loop, start: int | None) -> Callable[[int], int]:
    """Return the avatar's frame number as a function of the session's."""
    back = 2 * length - 2 if loop == "pingpong" and length > 1 else length
    cycle = [n for _, n in zip(range(back), frame_numbers(length, loop, start), strict=False)]
    return lambda number: cycle[number % len(cycle)]


def _close(state: SessionState) -> None:
    with state.lock:
        if not state.closed:
            state.close()
