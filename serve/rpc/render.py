"""The call `Render`: one speech in, its frames or an mp4 out."""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import kernels
from engine.live.convert import SpeechConverter
from engine.loop import frame_numbers
from engine.media.encode import EncoderPool, JpegEncoder
from engine.media.video import VideoWriter
from engine.pcm import check_pcm

from .. import config
from ..decoding import decode, write_wav
from .calls import Code, Metrics, Refused, Served, Stream, failing_with, invalid
from .live import quality
from .protos import viseme_pb2 as pb
from .sound import SoundFormat, as_float, sound_format

# A render ends with its speech; a session goes on with silence, which the last 10 frames of a
# speech hear already (11 at 120 frames a second).
TAIL = kernels.FEATURES_PER_FRAME
AHEAD = 20.0  # seconds of speech that a session gets before its frames are made
CHUNK = 1 << 18  # bytes of an mp4 in a message
PROGRESS_SECONDS = 1.0

T = TypeVar("T")


class Order(NamedTuple):
    """A request that was checked, as far as that goes without the avatar.

    Attributes:
        sound: format of the request's PCM; None for a file.
        format: of the enum `RenderFormat`.
    """

    request: pb.RenderRequest
    sound: SoundFormat | None
    format: int
    loop: Any
    start_frame: int | None
    quality: int


def order(request: pb.RenderRequest, limits: config.Limits, output: config.Output) -> Order:
    """Check a request.

    Raises:
        Refused: something is missing, out of range or too large.
    """
    kind, sound = request.WhichOneof("speech"), None
    if kind is None or not (request.pcm.samples or request.file):
        raise invalid("the request has no speech; expected pcm or file")
    if kind == "pcm":
        sound = sound_format(request.pcm)
        sound.check(request.pcm.samples, limits.max_speech_seconds)
    elif len(request.file) > limits.max_upload_mb * 1e6:
        raise invalid(
            f"file has {len(request.file) / 1e6:.1f} MB; expected at most {limits.max_upload_mb:g}"
        )
    format = request.format or pb.RENDER_FORMAT_MP4
    if format not in pb.RenderFormat.values():
        raise invalid(f"format is {format}; expected 1 (MP4), 2 (JPEG) or 3 (RGB)")
    return Order(
        request,
        sound,
        format,
        request.loop or "pingpong",
        request.start_frame if request.HasField("start_frame") else None,
        quality(request.jpeg_quality, output),
    )


class RenderCall:
    """Renders one speech, and sends what comes out.

    Frames are made by a live session in the time that sessions in real time leave; the last few,
    which differ in a session, by the session's pipeline. All equal those of `Pipeline.render`.

    Args:
        stream: of the call.
        threads: for what takes long and is not a frame's making.
        pool: encodes pictures.
    """

    def __init__(
        self,
        stream: Stream,
        made: Order,
        served: Served,
        *,
        threads: ThreadPoolExecutor,
        pool: EncoderPool,
        limits: config.Limits,
        metrics: Metrics,
    ):
        self._stream, self._order, self._served = stream, made, served
        self._threads, self._pool, self._limits = threads, pool, limits
        self._frames = metrics.frames.labels(avatar=served.name, kind="render")

    async def run(self) -> None:
        """Return when everything was sent.

        Raises:
            Refused, InputError: the speech or an argument cannot be used, or the render failed.
        """
        avatar, made = self._served.avatar, self._order
        frame_numbers(len(avatar), made.loop, made.start_frame)
        async with self._private_folder() as folder:
            sound = folder / "speech.wav" if made.format == pb.RENDER_FORMAT_MP4 else None
            pcm = await self._speech(sound)
            count = self._served.renders.pipeline.frame_count(pcm)
            fps = avatar.fps
            opened = pb.RenderOpened(
                width=avatar.width,
                height=avatar.height,
                fps_numerator=fps.numerator,
                fps_denominator=fps.denominator,
                frames=count,
            )
            await self._write(pb.RenderResponse(opened=opened))
            async with aclosing(self._make(pcm, count)) as frames:
                if sound is not None:
                    await self._send_mp4(frames, sound, folder / "video.mp4")
                else:
                    await self._send_frames(frames)

    async def _speech(self, sound: Path | None) -> Tensor:
        """Return the speech at 16 kHz, and write its own sound to a WAV file."""
        request, format = self._order.request, self._order.sound
        most = self._limits.max_speech_seconds
        if format is None:
            pcm = (await decode(request.file, max_seconds=most, sound=sound)).pcm
        else:

            def convert() -> np.ndarray:
                samples = as_float(format.samples(request.pcm.samples))
                if sound is not None:
                    write_wav(sound, samples, format.rate)
                converter = SpeechConverter(format.rate)
                return np.concatenate([converter(samples), converter.flush()])

            pcm = await self._in_thread(convert)
        return check_pcm(torch.from_numpy(pcm))

    async def _make(self, pcm: Tensor, count: int) -> AsyncGenerator[np.ndarray]:
        """Yield frames, (H, W, 3) uint8 RGB each."""
        live, made = self._served.renders, self._order
        skip = max(count - TAIL, 0)
        if skip:
            async with aclosing(self._from_session(pcm, skip)) as frames:
                async for frame in frames:
                    self._frames.inc()
                    yield frame
        with failing_with(Code.ABORTED):
            batches = live.pipeline.render(
                pcm, loop=made.loop, start_frame=made.start_frame, skip=skip
            )
            try:
                while (batch := await self._in_thread(lambda: _on_host(batches))) is not None:
                    for frame in batch.numpy():
                        self._frames.inc()
                        yield frame
            finally:
                batches.close()  # type: ignore[attr-defined]  # a generator

    async def _from_session(self, pcm: Tensor, count: int) -> AsyncGenerator[np.ndarray]:
        live, made = self._served.renders, self._order
        rate, pushed, samples = kernels.SAMPLE_RATE, 0, pcm.numpy()
        ahead = 3 if live.avatar.device.type == "cpu" else 25
        with live.open(
            clock="taken", ahead=ahead, loop=made.loop, start_frame=made.start_frame
        ) as session:
            pieces = aiter(session)
            for number in range(count):
                needed = min(int((number / session.fps + AHEAD) * rate), len(samples))
                with failing_with(Code.ABORTED):
                    while pushed < needed:
                        part = samples[pushed : pushed + int(AHEAD * rate)]
                        await self._in_thread(partial(session.push, part))
                        pushed += len(part)
                        if pushed == len(samples):
                            session.flush()
                    piece = await anext(pieces, None)
                if piece is None:
                    raise Refused(Code.UNAVAILABLE, "the avatar was unloaded; try again")
                yield piece.frames[0].numpy()

    async def _send_frames(self, frames: AsyncIterator[np.ndarray]) -> None:
        encoder = None
        if self._order.format == pb.RENDER_FORMAT_JPEG:
            encoder = self._pool.queue(JpegEncoder(quality=self._order.quality))
        number = 0
        async for rgb in frames:
            if encoder is None:
                data = rgb.tobytes()
            else:
                data = (await asyncio.wrap_future(encoder.submit(rgb))).data
            await self._write(pb.RenderResponse(frames=pb.Frames(first=number, frames=[data])))
            number += 1

    async def _send_mp4(self, frames: AsyncIterator[np.ndarray], sound: Path, path: Path) -> None:
        avatar, number, told = self._served.avatar, 0, time.monotonic()
        open_writer = partial(
            VideoWriter,
            path,
            height=avatar.height,
            width=avatar.width,
            fps=avatar.fps,
            pixel_aspect=avatar.pixel_aspect,
            speech=sound,
        )
        async with AsyncExitStack() as stack:
            writer = await self._in_thread(open_writer)

            async def finish(*raised: Any) -> None:
                await self._in_thread(lambda: writer.__exit__(*raised))

            stack.push_async_exit(finish)
            async for rgb in frames:
                await self._in_thread(partial(writer.write, rgb[None]))
                number += 1
                if time.monotonic() - told >= PROGRESS_SECONDS:
                    told = time.monotonic()
                    progress = pb.RenderProgress(frames=number)
                    await self._write(pb.RenderResponse(progress=progress))
        with path.open("rb") as file:
            while chunk := await self._in_thread(lambda: file.read(CHUNK)):
                await self._write(pb.RenderResponse(mp4=chunk))

    async def _write(self, response: pb.RenderResponse) -> None:
        await self._stream.write(response)

    @asynccontextmanager
    async def _private_folder(self) -> AsyncIterator[Path]:
        # The name is known before the folder is made, so that who cancels this leaves nothing.
        folder = Path(tempfile.gettempdir(), f"viseme-render-{secrets.token_hex(8)}")
        try:
            await self._in_thread(lambda: folder.mkdir(mode=0o700))
            yield folder
        finally:
            await self._in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run a function in a thread. Who cancels this waits for its end, so that nothing works on
        what is being closed."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
            raise


def _on_host(batches: Iterator[Tensor]) -> Tensor | None:
    batch = next(batches, None)
    return None if batch is None else batch.cpu()
