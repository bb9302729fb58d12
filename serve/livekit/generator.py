"""An avatar's picture and sound, as LiveKit's `AvatarRunner` takes them."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from engine.errors import InputError
from engine.live import Live, Piece, Session

from .segments import SpeechIn, SpeechOut

SAMPLE_RATE = 24000  # Hz, as most services speak
WAITING_SECONDS = 60.0  # of speech in the session; what comes after waits with the sender
LOOK_SECONDS = 0.005  # between two looks for a piece that is late
LATE_FRAMES, MOST_LATE = 3, 25  # a delay after which pieces are taken early, and how many
CUT_SECONDS = 0.25  # in which the runner asks for more after an interruption


class VisemeGenerator(VideoGenerator):
    """A live session as a `VideoGenerator`: speech in, pictures in I420 and the speech out.

    Pictures come without end, in real time, with a closed mouth while nobody speaks. Sound comes
    with speech only, because the runner takes all sound for the agent's. It is given to the runner
    one frame before its picture, so that LiveKit's source of sound does not run dry; and its last
    10 ms a frame later, so that an interruption can fade it out. All sound that was given will be
    heard, so that the runner reports the position that was really played.

    For an event loop; made in it.

    Args:
        live: opens the session.
        sample_rate: of the sound that comes out, Hz. Frames of another one are resampled.
        taken: called with each piece of the session.

    Attributes:
        session: of the engine.
        options: for the runner.

    Raises:
        InputError, DeviceError: as `Live.open`.
    """

    def __init__(
        self,
        live: Live,
        *,
        sample_rate: int = SAMPLE_RATE,
        taken: Callable[[Piece], object] = lambda piece: None,
    ):
        avatar = live.avatar
        self.session: Session = live.open(sample_rate=sample_rate)
        self.options = AvatarOptions(
            video_width=avatar.width,
            video_height=avatar.height,
            video_fps=float(avatar.fps),
            audio_sample_rate=sample_rate,
            audio_channels=1,
        )
        self._in, self._out = SpeechIn(sample_rate), SpeechOut(sample_rate)
        self._taken, self._most = taken, WAITING_SECONDS * sample_rate
        self._frame_seconds = float(1 / avatar.fps)
        self._held: list[np.ndarray | None] | None = []  # until the runner has published its tracks
        self._waiting = 0  # samples that were pushed and not given to the runner
        self._generation = 0  # counts interruptions
        self._ends = 0  # of segments that the runner has not got
        self._cut = self._closed = False
        self._last: rtc.VideoFrame | None = None
        self._changed, self._woken = asyncio.Event(), asyncio.Event()
        self._newest: Piece | None = None
        self._late = deque[Piece]()  # that were taken after a delay, and are not shown yet
        self._keeper = asyncio.create_task(self._keep())

    # --- speech in -------------------------------------------------------------------------------

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Take speech, or the end of a segment, which waits until the runner has got that end: it
        forgets the end of a segment whose sound it takes before the end of the one before.

        Raises:
            InputError: the session has ended.
        """
        generation = self._generation
        if not isinstance(frame, AudioSegmentEnd):
            await self._until(lambda: self._waiting <= self._most or generation != self._generation)
            if generation == self._generation and not self._closed:
                self._push(self._in.push(frame))
        elif self._in.open:
            self._push(self._in.end())
            self._push(None)
            self._ends += 1
            await self._until(lambda: not self._ends or generation != self._generation)

    async def clear_buffer(self) -> None:
        """Drop all speech that the runner has not got. It fades out over 10 ms.

        Returns when the runner has got that, so that its position is the one that will have been
        played.
        """
        self._generation += 1
        self._in.clear()
        self._waiting = self._ends = 0
        if self._held is not None:
            self._held.clear()
        elif not (self._closed or self.session.closed):
            self._late.clear()
            self._out.drop_before(int(self.session.interrupt() * self.session.fps))
            self._cut = True
            self._woken.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(CUT_SECONDS):
                    await self._until(lambda: not self._cut)
            if self._cut:  # too late: the runner would take it for the next segment's
                self._out.cut()
                self._cut = False
        self._changed.set()

    def close(self) -> None:
        """End the session, and the iteration."""
        self._closed = True
        self._keeper.cancel()
        self.session.close()
        self._changed.set()
        self._woken.set()

    def _push(self, samples: np.ndarray | None) -> None:
        """Push samples, or None for the end of an utterance."""
        if samples is not None:
            self._waiting += len(samples)
        if self._held is not None:
            self._held.append(samples)
        elif samples is not None:
            self.session.push(samples)
        else:
            self.session.flush()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not (condition() or self._closed):
            self._changed.clear()
            await self._changed.wait()

    # --- pictures and sound out ------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Iterate over what the runner publishes, until `close`. Only once.

        Raises:
            InputError, DeviceError: the session has ended.
        """
        following: _Shown | None = None
        try:
            while self._newest is None:
                if self._closed:
                    return
                if self._keeper.done():
                    self._keeper.result()  # raises why the session has ended, if it says so
                    self._check_open()
                await self._sleep(LOOK_SECONDS)
            yield await self._picture(self._newest)  # the runner publishes its tracks before it
            self._start()
            out, seconds = self._out, self._frame_seconds
            shown = time.monotonic() + seconds / 2  # when the last picture was due
            speaking = False  # whether the sound of the last picture goes on
            while not self._closed:
                if self._cut:
                    for sound in out.cut():
                        yield sound
                    speaking, self._cut = False, False
                    self._changed.set()
                    continue
                now = time.monotonic()
                if out.ends_at is not None and out.ends_at <= now:
                    out.ends_at = None
                    generation = self._generation
                    yield AudioSegmentEnd()
                    if generation == self._generation:
                        self._ends -= 1
                        self._changed.set()
                    continue
                if following is None:
                    following = self._next(shown)
                    if following is None:
                        await self._sleep(LOOK_SECONDS)
                    elif speaking:
                        for sound in self._hear(following):
                            yield sound
                    continue
                due = max(self.session.due(following.piece.number), following.audible_at)
                if now < due:
                    await self._sleep(min(due, out.ends_at or due) - now)
                    continue
                current, following = following, None
                yield await current.picture
                shown = due if now < due + seconds else now
                for sound in self._hear(current):
                    yield sound
                speaking = current.piece.speaking and not current.piece.end
        finally:
            self.close()
            if following is not None:
                following.picture.cancel()

    def _next(self, shown: float) -> "_Shown | None":
        """Take the next piece. None if there is none yet.

        Args:
            shown: when the picture before it was due. After a delay, pieces in which nobody speaks
                are left out until the others are on time again.
        """
        while (piece := self._take()) is not None:
            due = self.session.due(piece.number)
            if piece.speaking or piece.end or due >= shown + self._frame_seconds / 2:
                return _Shown(piece, asyncio.ensure_future(self._picture(piece)))
        self._check_open()
        return None

    def _take(self) -> Piece | None:
        """Take a piece. After a delay those that wait are taken too, because the session drops the
        pictures of pieces that wait for long."""
        piece = self._late.popleft() if self._late else self._take_one()
        if piece is not None:
            late = time.monotonic() - self.session.due(piece.number)
            while late > LATE_FRAMES * self._frame_seconds and len(self._late) < MOST_LATE:
                other = self._take_one()
                if other is None:
                    break
                self._late.append(other)
        return piece

    def _take_one(self) -> Piece | None:
        piece = self.session.take(0)
        if piece is not None:
            self._taken(piece)
        return piece

    def _check_open(self) -> None:
        if self.session.closed and not self._closed:
            raise InputError("the session was closed, because its avatar was unloaded")

    def _hear(self, shown: "_Shown") -> list[rtc.AudioFrame]:
        """Return the sound of a piece, once."""
        if shown.heard:
            return []
        shown.heard = True
        sounds, shown.audible_at = self._out.hear(shown.piece)
        self._waiting = max(self._waiting - sum(s.samples_per_channel for s in sounds), 0)
        self._changed.set()
        return sounds

    async def _picture(self, piece: Piece) -> rtc.VideoFrame:
        """Return the picture of a piece, or the one before if it was skipped."""
        if len(piece.frames):
            rgb = piece.frames[0].cpu().numpy()
            self._last = await asyncio.to_thread(i420, rgb)
        assert self._last is not None
        return self._last

    async def _keep(self) -> None:
        """Keep the session alive until the runner has published its tracks, which takes until
        somebody subscribes to them. Speech is held meanwhile."""
        while not self.session.closed:
            while (piece := self._take_one()) is not None:
                self._newest = piece if len(piece.frames) else self._newest
            await asyncio.sleep(self._frame_seconds)

    def _start(self) -> None:
        """Let the speech that was held go on."""
        self._keeper.cancel()
        held, self._held = self._held or [], None
        for samples in held:
            if samples is None:
                self.session.flush()
            else:
                self.session.push(samples)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not on after an interruption."""
        self._woken.clear()
        timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()


class _Shown:
    """A piece that is about to be shown.

    Attributes:
        picture: is being converted.
        heard: whether its sound was given.
        audible_at: when that is heard; 0 if it was not given yet.
    """

    def __init__(self, piece: Piece, picture: "asyncio.Future[rtc.VideoFrame]"):
        self.piece, self.picture, self.heard, self.audible_at = piece, picture, False, 0.0


def i420(rgb: np.ndarray) -> rtc.VideoFrame:
    """Return an (H, W, 3) uint8 RGB image as LiveKit's I420, BT.601 in limited range."""
    height, width, _ = rgb.shape
    frame = rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, rgb.tobytes())
    return frame.convert(rtc.VideoBufferType.I420)
