"""Live sessions with one avatar."""

import math
import operator
import time
import weakref
from collections.abc import Callable

import kernels

from ..avatar import Avatar
from ..errors import DeviceError, InputError
from ..forks import check_fork, note_computing
from ..loop import Loop, frame_numbers
from ..pipeline import Pipeline
from .convert import SpeechConverter
from .features import FeatureStream
from .gpu_renderer import GpuRenderer
from .job import Job
from .renderer import SLOTS, CpuRenderer, LiveRenderer
from .rings import SILENT_FRAME, SILENT_SLOT
from .scheduler import ABANDONED, Scheduler
from .session import CLOCKS, Session, SessionState
from .stream import SpeechStream

SAMPLE_RATES = (8000, 192000)  # Hz, of sound
AHEAD = 3  # frames
GPU_BATCH = 40  # frames
PREBUFFER = 0.45  # seconds: a frame's mouth depends on speech up to 0.452 s later


class Live:
    """An avatar that people talk to: any number of sessions, whose frames share batches.

    It is warm when the constructor returns. A context manager.

    Args:
        avatar: decides the device too.
        batch_size: the most frames made at once; unless told, 1 on a CPU and 40 on a GPU.
        runtime: as in `Pipeline`.
        precision: as in `Pipeline`; unless told, bf16 where the CPU and OpenVINO can.
        mode: how the mouth is pasted, see `kernels.composite`.
        format: of the frames, as in `kernels.composite`; on a CPU "rgb".
        on_host: whether frames of a GPU are copied to pinned memory of the host, for an encoder
            there. Otherwise they stay on the GPU, ready on its default stream.
        scheduler: that of the device, which all avatars there share: it divides the device's time
            between them. Whoever made it starts and closes it. None for one of its own.
        abandoned: seconds after which a session of which nobody takes a frame is closed; of its own
            scheduler, as what follows.
        now: the clock, seconds. For tests.
        start: whether threads make frames; without them, `scheduler.step` does. For tests.

    Attributes:
        precision: of the generator, None for the default one.

    Raises:
        InputError, DeviceError: as `Pipeline`, an argument that does not go with the device, or a
            scheduler of another device.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        batch_size: int | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        mode: kernels.CompositeMode = "crop",
        format: kernels.ByteFormat = "rgb",
        on_host: bool = True,
        scheduler: Scheduler | None = None,
        abandoned: float = ABANDONED,
        now: Callable[[], float] = time.monotonic,
        start: bool = True,
    ):
        on_gpu = avatar.device.type == "cuda"
        if scheduler is not None:
            scheduler.check_device(avatar.boxes.device)
        if not on_gpu and format != "rgb":
            raise InputError(f"format is {format!r}; expected 'rgb' on a CPU")
        self.avatar: Avatar = avatar
        if precision is None and runtime in (None, "openvino") and not on_gpu and _has_bf16():
            precision = "bf16"
        if batch_size is None:
            batch_size = GPU_BATCH if on_gpu else 1
        self.precision: str | None = precision
        self.pipeline = Pipeline(
            avatar, batch_size=batch_size, runtime=runtime, precision=precision
        )
        note_computing()
        self._renderer: LiveRenderer
        if on_gpu:
            self._renderer = GpuRenderer(self.pipeline, mode=mode, format=format, on_host=on_host)
        else:
            self._renderer = CpuRenderer(self.pipeline, mode=mode)
        self._renderer.warm_up()
        self._shares, self._closed = scheduler is not None, False
        self.scheduler: Scheduler = (
            Scheduler(now=now, abandoned=abandoned) if scheduler is None else scheduler
        )
        self.scheduler.costs.measure(
            self._renderer, Job(SILENT_SLOT, SILENT_FRAME, 0, silent=False)
        )
        if start and not self._shares:
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
        check_fork()
        sample_rate, channels, ahead = (
            _integer(name, value)
            for name, value in (
                ("sample rate", sample_rate), ("channels", channels), ("ahead", ahead)
            )
        )  # fmt: skip
        lowest, highest = SAMPLE_RATES
        if not lowest <= sample_rate <= highest:
            raise InputError(f"sample rate is {sample_rate}; expected {lowest} to {highest}")
        if channels not in (1, 2):
            raise InputError(f"channels is {channels}; expected 1 or 2")
        if not 0 <= prebuffer <= 10:
            raise InputError(f"prebuffer is {prebuffer}; expected 0 to 10 seconds")
        if clock not in CLOCKS:
            raise InputError(f"clock is {clock!r}; expected one of: {', '.join(CLOCKS)}")
        if not 0 <= ahead <= 25:
            raise InputError(f"ahead is {ahead}; expected 0 to 25 frames")
        pictures = _picture_numbers(len(self.avatar), loop, start_frame)
        fps = self.avatar.fps
        stream = SpeechStream(
            fps,
            sample_rate,
            channels,
            prebuffer=prebuffer,
            converter=lambda: SpeechConverter(sample_rate),
        )
        with self.scheduler.opening:
            if self._closed:
                raise InputError("live sessions are closed")
            if clock == "wall":
                self._admit()
            slot = self._renderer.rings.open()
            if slot is None:
                raise DeviceError(f"{len(self.scheduler)} sessions are open; expected fewer")
            state = SessionState(
                self._renderer,
                stream,
                FeatureStream(fps, slot),
                pictures,
                fps=fps,
                clock=clock,
                begin=self.scheduler.now() + ahead / float(fps),
                ahead=ahead,
                wake=self.scheduler.wake,
            )
            self.scheduler.add(state)
        session = Session(state, sample_rate=sample_rate, channels=channels, now=self.scheduler.now)
        weakref.finalize(session, self.scheduler.drop, state)
        return session

    @property
    def description(self) -> str:
        """The runtime of the generator, and how many sessions there can be, for people."""
        return f"generator in {self.pipeline.generator.description}, room for {self.capacity()}"

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the device that the buffers take at most, besides the avatar's frames and the
        networks."""
        return self.pipeline.buffer_bytes + self._renderer.buffer_bytes

    def capacity(self) -> int:
        """Return how many sessions in real time the device has time for at most, by the measured
        cost of a frame; beside those of other avatars. At least one on a device without any."""
        room = self.scheduler.room(self._renderer, self.avatar.fps)
        there = self.scheduler.count(self._renderer)
        least = 0 if self.scheduler.count() else 1
        return min(max(there + math.floor(room + 1e-6), least), SLOTS - 1)

    def close(self) -> None:
        """Close all sessions, and the scheduler unless it was given. That one keeps nothing of this
        avatar."""
        with self.scheduler.opening:
            self._closed = True
        if self._shares:
            self.scheduler.remove(self._renderer)
        else:
            self.scheduler.close()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self) -> None:
        there, capacity = self.scheduler.count(self._renderer), self.capacity()
        if there >= capacity:
            raise DeviceError(
                f"{there} sessions of this avatar are open, and {self.avatar.device} has time for "
                f"{capacity} at {float(self.avatar.fps):g} frames a second"
            )


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


def _integer(name: str, value: object) -> int:
    """Return an integer of any type as Python's, which has no largest one."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} is {value!r}; expected an integer") from None
