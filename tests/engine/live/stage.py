"""Live sessions without networks: a renderer that remembers what it was asked for, and a clock."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

import kernels
from engine.live.convert import SpeechConverter
from engine.live.features import RING_ROWS, FeatureStream, Window
from engine.live.job import Job, Rendered, Renderer
from engine.live.piece import Piece
from engine.live.rings import SILENT_FRAME, SILENT_SLOT, FeatureRings
from engine.live.scheduler import Scheduler
from engine.live.session import Session, SessionState
from engine.live.stream import SpeechStream


def voice(seed: int, count: int) -> np.ndarray:
    """Noise with a changing level: nothing in it repeats."""
    random = np.random.default_rng(seed)
    level = 0.5 + 0.5 * np.sin(np.arange(count) / 1700 + seed)
    return (0.3 * level * random.standard_normal(count)).astype(np.float32)


def encode(windows: np.ndarray) -> np.ndarray:
    """(n, 512) features that depend on every value of a window."""
    rows = windows.reshape(len(windows), -1)
    return np.concatenate([rows[:, ::5] + rows[:, 1::5], rows[:, 2::5] - rows[:, 3::5]], axis=1)


class FakeRenderer:
    """Keeps every job with its audio; a frame is its number among them."""

    def __init__(self, batch_size: int = 8, seconds: float = 0.0, clock: "Clock | None" = None):
        self.batch_size, self.jobs, self.batches = batch_size, list[Job](), list[int]()
        self.audio, self.heard = list[torch.Tensor](), 0
        self._seconds, self._clock = seconds, clock
        self.wait: Callable[[], object] | None = None  # for frames that come later, as a GPU's
        windows = torch.empty(5, 1, kernels.MEL_BANDS, kernels.MEL_WINDOW_ROWS)
        self.rings = FeatureRings(
            torch.full((100, RING_ROWS, kernels.FEATURE_DIM), torch.nan),
            windows,
            lambda n: torch.from_numpy(encode(windows[:n].numpy())),
        )

    def hear(self, windows: list[Window]) -> None:
        self.heard += len(windows)
        self.rings.compute(windows)

    def render(self, jobs: list[Job]) -> Rendered:
        self.batches.append(len(jobs))
        slots = [SILENT_SLOT if job.silent else job.slot for job in jobs]
        numbers = [SILENT_FRAME if job.silent else job.frame for job in jobs]
        places = torch.tensor(numbers), torch.tensor(slots)
        self.audio += list(kernels.ring_feature_windows(self.rings.features, *places))
        first = len(self.jobs)
        self.jobs += jobs
        if self._clock is not None:
            self._clock.time += self._seconds * len(jobs)
        frames = [torch.tensor(first + n).view(1, 1, 1, 1) for n in range(len(jobs))]
        return Rendered(frames, self.wait)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Stage:
    """A scheduler that tests step by hand."""

    def __init__(
        self,
        renderer: Renderer | None = None,
        *,
        batch_size: int = 8,
        seconds: float = 0.0,
        abandoned: float = 10.0,
    ):
        self.clock = Clock()
        self.renderer = renderer or FakeRenderer(batch_size, seconds, self.clock)
        self.scheduler = Scheduler(now=self.clock, abandoned=abandoned)

    def open(
        self,
        *,
        fps: Fraction = Fraction(25),
        sample_rate: int = 16000,
        channels: int = 1,
        prebuffer: float = 0.45,
        clock: str = "taken",
        ahead: int = 3,
        picture: Callable[[int], int] = lambda number: number,
    ) -> Session:
        stream = SpeechStream(
            fps,
            sample_rate,
            channels,
            prebuffer=prebuffer,
            converter=lambda: SpeechConverter(sample_rate),
        )
        slot = self.renderer.rings.open()
        assert slot is not None
        state = SessionState(
            self.renderer,
            stream,
            FeatureStream(fps, slot),
            picture,
            fps=fps,
            clock=clock,
            begin=self.clock() + ahead / float(fps),
            ahead=ahead,
            wake=self.scheduler.wake,
        )
        self.scheduler.add(state)
        return Session(state, sample_rate=sample_rate, channels=channels, now=self.clock)

    def settle(self) -> None:
        """Do all that can be done at this time."""
        for _ in range(10_000):
            delay = self.scheduler.step()
            if delay is None or delay > 0:
                return
        raise AssertionError("the scheduler does not come to rest")

    def advance(self, seconds: float, step: float = 0.005) -> None:
        end = self.clock.time + seconds
        while self.clock.time < end - 1e-9:
            delay = self.scheduler.step()
            if delay is None or delay > 0:
                self.clock.time = min(self.clock.time + step, end)

    def take(self, session: Session, most: int) -> list[Piece]:
        """Take up to `most` pieces as fast as they can be made."""
        state, taken = session._state, []
        state.wanted += 1
        for _ in range(most):
            if not state.queue and state.clock == "taken":
                self.settle()
            piece = state.take(self.clock())
            if piece is None:
                break
            taken.append(piece)
        state.wanted -= 1
        return taken

    def job(self, piece: Piece) -> Job:
        return self.renderer.jobs[int(piece.frames)]

    def audio(self, piece: Piece) -> np.ndarray:
        """(32, 16, 16): what the generator hears for a frame."""
        return self.renderer.audio[int(piece.frames)].numpy()


def until_end(session: Session) -> list[Piece]:
    """Take pieces up to the end of an utterance."""
    pieces = []
    for piece in session:
        pieces.append(piece)
        if piece.end:
            break
    return pieces


def expected_audio(pcm: np.ndarray, count: int, fps: Fraction) -> np.ndarray:
    """(count, 32, 16, 16): what a render of the whole stream gives the generator."""
    pcm = np.concatenate([pcm, np.zeros(16000, np.float32)])
    mel = kernels.log_mel(torch.from_numpy(pcm))
    windows = kernels.mel_windows(mel, fps=float(fps))
    features = torch.from_numpy(encode(windows.numpy()))
    return kernels.feature_windows(features, start=0, count=count).numpy()
