"""An avatar in a Pipecat pipeline."""

import asyncio
import io
from collections import deque
from typing import Any

import grpc
import numpy as np
from loguru import logger
from PIL import Image
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.ai_service import AIService

from . import viseme_pb2 as pb
from .session import Session, Silent, channel, opening

PICTURES = ("jpeg", "rgb")
KEEP_SECONDS = 15.0  # after which the server hears that the agent is still there
AGAIN_SECONDS = (0.2, 1.0, 2.0, 5.0)  # before a session that has ended is opened anew
NONE = (0, 0)  # width and height before a session is open
# how sessions end that may be opened anew: their time is over, or the server is replaced
USUAL = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}
FINAL = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}


class VisemeVideoService(AIService):
    """Shows an avatar that says what a TTS service makes.

    It stands behind the TTS service. `TTSAudioRawFrame`s go to the server, and are not pushed on:
    instead, for each video frame come a `SpeechOutputAudioRawFrame`, if the avatar speaks, and an
    `OutputImageRawFrame` whose `sync_with_audio` is set. In silence there are pictures only, in
    real time. `TTSStoppedFrame` is pushed on when the last of its sound was. An `InterruptionFrame`
    drops all speech that was not shown. At an `EndFrame`, all speech is shown first.

    A session that the server ends, or from which nothing comes for 10 s, is opened anew. The reason
    is an `ErrorFrame` if speech is lost with it, and so is speech that comes while there is no
    session: one frame until a session is open. What no new session mends, such as an unknown
    avatar, is the last one. While a session opens, up to 300 s of speech wait for it; more is lost,
    which is an `ErrorFrame`, too.

    All other frames are pushed on at once: a `TTSTextFrame` comes before its sound. If it has a
    time (`pts`), the output transport waits for that.

    Args:
        address: host and port of the server's gRPC.
        avatar: its name on the server.
        token: that the server wants.
        tls: whether the server speaks TLS.
        certificates: of the authorities that are trusted, in PEM format; the system's unless given.
        picture: how pictures travel, "jpeg" or "rgb", which a local network carries only.
        prebuffer: seconds of speech before an utterance begins; the server's unless given.
        options: of `AIService`.

    Raises:
        ValueError: `picture` is neither.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1:50053",
        avatar: str,
        token: str | None = None,
        tls: bool = False,
        certificates: bytes | None = None,
        picture: str = "jpeg",
        prebuffer: float | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        opening(avatar, 16000, picture, prebuffer, PICTURES)  # raises what is wrong
        self._address, self._avatar, self._token = address, avatar, token
        self._tls, self._certificates = tls, certificates
        self._picture, self._prebuffer = picture, prebuffer
        self._rate = 0
        self._size = NONE
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._resampler = _resampler()
        self._source = (0, 0)  # rate and channels of the utterance's sound
        self._cut = b""  # the begin of a sample whose end has not come yet
        self._open = False  # whether an utterance has begun that has not ended
        self._unanswered = 0  # interruptions that the server has not answered yet
        self._stopped: deque[TTSStoppedFrame] = deque()  # of utterances that are being shown
        self._ending = False
        self._told = False  # whether it is known why there is no session
        self._full: Session | None = None  # the one of which it is known that it was full

    # --- the pipeline ----------------------------------------------------------------------------

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Learn the rate of the pipeline's sound."""
        await super().setup(setup)
        self._rate = setup.audio_out_sample_rate

    async def start(self, frame: StartFrame) -> None:
        """Open the session: the avatar is there before it speaks."""
        await super().start(frame)
        self._task = self.create_task(self._run(), "viseme session")
        self._keeper = self.create_task(self._keep(), "viseme keeper")

    async def stop(self, frame: EndFrame) -> None:
        """Wait until all speech is shown."""
        await super().stop(frame)
        self._ending = True
        if self._session is not None and self._task is not None:
            self._session.finish()
            await asyncio.wait([self._task])
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        """End at once."""
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        """End what still runs."""
        await super().cleanup()
        await self._close()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take the TTS service's sound, and push all else on; see the class."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame) and direction is FrameDirection.DOWNSTREAM:
            await self._speak(frame)
            return
        if isinstance(frame, TTSStoppedFrame) and direction is FrameDirection.DOWNSTREAM:
            if self._session is not None and await self._end_utterance(self._session):
                self._stopped.append(frame)
                return
        elif isinstance(frame, InterruptionFrame):
            self._interrupt()
        await self.push_frame(frame, direction)

    # --- speech ----------------------------------------------------------------------------------

    async def _speak(self, frame: TTSAudioRawFrame) -> None:
        if self._session is None:
            await self._say("there is no session, and what is spoken is lost", None)
            return
        if self._source != (frame.sample_rate, frame.num_channels):
            self._forget_sound()
            self._source = frame.sample_rate, frame.num_channels
        sound = self._cut + frame.audio
        whole = len(sound) - len(sound) % (2 * frame.num_channels)
        samples, self._cut = sound[:whole], sound[whole:]
        if frame.num_channels > 1:
            samples = _mono(samples, frame.num_channels)
        samples = await self._resampler.resample(samples, frame.sample_rate, self._rate)
        session = self._session  # it may be another one by now
        if samples and session is not None:
            if (why := session.full) is not None:
                if session is not self._full:
                    self._full = session
                    await self.push_error(error_msg=self._line(why))
                return
            self._open = True
            session.push(samples)

    async def _end_utterance(self, session: Session) -> bool:
        """End the utterance, with what the resampler still has. Return whether there was one."""
        rest = await self._resampler.flush()
        self._forget_sound()
        if rest:
            session.push(rest)
        elif not self._open:
            return False
        self._open = False
        session.flush()
        return True

    def _forget_sound(self) -> None:
        """Forget what is left of the sound that came."""
        self._resampler, self._source, self._cut = _resampler(), (0, 0), b""

    def _interrupt(self) -> None:
        self._open = False
        self._stopped.clear()
        self._forget_sound()
        if self._session is None:
            return
        if self._ending:  # the server hears nothing more
            self._session.cancel()
            return
        self._unanswered += 1
        self._session.interrupt()

    # --- the session -----------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep a session open, until the pipeline ends or nothing mends it."""
        failures = 0
        async with channel(self._address, tls=self._tls, certificates=self._certificates) as server:
            while not self._ending:
                request = opening(
                    self._avatar, self._rate, self._picture, self._prebuffer, PICTURES
                )
                final = False
                try:
                    self._session = Session(server, request, self._token)
                    async for response in self._session.responses():
                        if response.HasField("opened"):
                            failures = 0
                        await self._take(response)
                except Exception as error:  # what cannot be sent or shown ends no pipeline
                    final = await self._failed(error)
                finally:
                    if self._session is not None:
                        self._session.cancel()
                    await self._forget()
                if final:
                    break
                if not self._ending:
                    await asyncio.sleep(AGAIN_SECONDS[min(failures, len(AGAIN_SECONDS) - 1)])
                    failures += 1

    async def _failed(self, error: Exception) -> bool:
        """Say why a session has ended. Return whether that is for good."""
        if isinstance(error, grpc.aio.AioRpcError):
            code, line = error.code(), f"{error.code().name}: {error.details()}"
        else:
            code, line = None, f"{type(error).__name__}: {error}"
        usual = isinstance(error, Silent) or code in USUAL
        if usual and self._size != NONE and not self._open and not self._stopped:
            logger.info(f"{self.name}: {self._line(line)}; another session is opened")
        elif self._ending:
            logger.warning(f"{self.name}: {self._line(line)}; what was not shown is lost")
        else:
            await self._say(line, error)
        return code in FINAL or not (code or usual)

    async def _say(self, line: str, error: Exception | None) -> None:
        """Push an error, the first one since a session was open."""
        if not self._told:
            self._told = True
            await self.push_error(error_msg=self._line(line), exception=error)

    def _line(self, line: str) -> str:
        return f"Viseme at {self._address}: {line}"

    async def _forget(self) -> None:
        """Give up what was to be shown."""
        self._session, self._size, self._open, self._unanswered = None, NONE, False, 0
        self._full = None
        self._forget_sound()
        while self._stopped:
            frame = self._stopped.popleft()
            if not self._ending:
                await self.push_frame(frame)

    async def _take(self, response: pb.LiveResponse) -> None:
        if response.HasField("opened"):
            self._size = response.opened.width, response.opened.height
            self._told = False
        elif response.HasField("event"):
            if response.event.HasField("interrupted"):
                self._unanswered = max(self._unanswered - 1, 0)
        elif response.HasField("piece"):
            await self._show(response.piece)

    async def _show(self, piece: pb.Piece) -> None:
        if self._unanswered and piece.speaking:
            return  # of speech that was interrupted
        if piece.speaking:
            await self.push_frame(
                SpeechOutputAudioRawFrame(audio=piece.sound, sample_rate=self._rate, num_channels=1)
            )
        if piece.picture:
            image = piece.picture if self._picture == "rgb" else await _decoded(piece.picture)
            if self._unanswered and piece.speaking:
                return  # interrupted meanwhile
            frame = OutputImageRawFrame(image=image, size=self._size, format="RGB")
            frame.sync_with_audio = True
            await self.push_frame(frame)
        if piece.utterance_end and self._stopped and not self._unanswered:
            await self.push_frame(self._stopped.popleft())

    async def _keep(self) -> None:
        """Tell the server now and then that the agent is there, while it says nothing."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            if self._session is not None and not self._open:
                self._session.flush()

    async def _close(self) -> None:
        self._ending = True
        for task in (self._task, self._keeper):
            if task is not None:
                await self.cancel_task(task)
        self._task = self._keeper = None


async def _decoded(jpeg: bytes) -> bytes:
    """Decode a JPEG into RGB, in a thread."""

    def decode() -> bytes:
        with Image.open(io.BytesIO(jpeg)) as image:
            return image.convert("RGB").tobytes()

    return await asyncio.to_thread(decode)


def _mono(samples: bytes, channels: int) -> bytes:
    """Average channels of int16."""
    values = np.frombuffer(samples, "<i2").reshape(-1, channels).astype(np.int32)
    means: np.ndarray = values.sum(1) // channels
    return means.astype("<i2").tobytes()


def _resampler() -> Any:
    """Return a resampler that keeps what it was given over pauses of the TTS service."""
    return create_stream_resampler(clear_after_secs=None)
