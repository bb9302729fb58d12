"""Check a CompositeBatchRequest, and decode it for `engine.batches`."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

import kernels
from engine.batches import AUDIO_SHAPE, FACE_SHAPE, MOST_FRAMES, BatchRequest
from engine.errors import InputError
from engine.live import SAMPLE_RATES
from engine.live.convert import SpeechConverter

from ..config import MOST_CONTEXT, Output
from .protos import monolithic_pb2
from .wire import cut_bytes

FACE_BYTES = 4 * math.prod(FACE_SHAPE)
AUDIO_BYTES = 4 * math.prod(AUDIO_SHAPE)
SMALL = 1 << 16  # bytes that are decoded in well under a millisecond
# What the networks compute with, in float16 too. What is far outside would become infinite or NaN
# in a batch that has frames of other clients. A little outside is usual: filters overshoot.
FACES, SOUND, FEATURES = (-1.0, 2.0), (-32768.0, 32768.0), (-65504.0, 65504.0)


class Refused(InputError):
    """A request that cannot be done; the message is the answer's error."""


class MalformedError(Exception):
    """The message is not a CompositeBatchRequest."""


class Content(NamedTuple):
    """The three fields of bytes, in the message that came."""

    visual_frames: memoryview
    raw_audio: memoryview
    audio_features: memoryview


@dataclass(frozen=True)
class CompositeRequest:
    """A request whose numbers and lengths are right. Its values are checked by `decode`.

    Attributes:
        model_id: not empty.
        count: frames.
        start: any integer.
        context: frames of audio before the first frame; None: as configured.
        rate: of the raw audio, Hz.
        content: bytes of the right length.
    """

    model_id: str
    count: int
    start: int
    context: int | None
    rate: int
    content: Content

    @property
    def is_large(self) -> bool:
        """Whether decoding takes so long that it belongs in a thread."""
        return sum(map(len, self.content)) > SMALL

    def decode(self, output: Output) -> BatchRequest:
        """Decode the bytes, with one copy of each.

        Args:
            output: layout and context where the request does not say. Clients have no sound before
                the first frame of a speech: a batch that starts at frame s has at most s frames of
                configured context.

        Raises:
            Refused: a value is not finite or far outside its range.
        """
        faces = speech = audio = None
        context = self.context
        if context is None:
            context = min(output.audio_context_frames, max(self.start, 0))
        visual, raw, features = self.content
        if visual:
            faces = np.empty((self.count, *FACE_SHAPE), np.float32)
            _copy(visual, faces.reshape(self.count, -1), "visual frames: value", FACES)
        if raw:
            speech = _speech(raw, self.rate, samples_needed(self.count, context))
        else:
            audio = np.empty(AUDIO_SHAPE, np.float32)
            _copy(features, audio.reshape(1, -1), "audio features: value", FEATURES)
        return BatchRequest(
            count=self.count,
            start=self.start,
            speech=speech,
            context=context,
            audio=audio,
            faces=faces,
            layout=output.visual_layout,
        )


def parse(message: bytes) -> tuple[Any, Content]:
    """Parse a message, without copying its large fields.

    Returns:
        The message without the three fields of bytes, and these.

    Raises:
        MalformedError: it cannot be parsed.
    """
    rest, found = cut_bytes(message, (2, 3, 4))
    try:
        request = monolithic_pb2.CompositeBatchRequest.FromString(rest)
    except DecodeError as error:
        raise MalformedError("the message is not a CompositeBatchRequest") from error
    whole = request.visual_frames, request.raw_audio, request.audio_features
    return request, Content(*(found.get(n, memoryview(w)) for n, w in enumerate(whole, 2)))


def check(request: Any, content: Content) -> CompositeRequest:
    """Check the numbers and lengths of a request, in the Go server's order and with its words.

    Args:
        request: a CompositeBatchRequest; its bytes are not read.
        content: its bytes.

    Raises:
        Refused: one is wrong.
    """
    count = request.batch_size
    if not request.model_id:
        raise Refused("model_id is required")
    if not 1 <= count <= MOST_FRAMES:
        raise Refused(f"batch_size must be 1-{MOST_FRAMES}, got {count}")
    visual, raw, features = map(len, content)
    if visual not in (0, count * FACE_BYTES):
        raise Refused(
            f"Invalid visual frames size: got {visual} bytes, expected {count * FACE_BYTES} bytes"
        )
    rate = request.sample_rate or kernels.SAMPLE_RATE
    if raw:
        if raw % 4:
            raise Refused(f"Invalid raw audio size: got {raw} bytes, expected a multiple of 4")
        lowest, highest = SAMPLE_RATES
        if not lowest <= rate <= highest:
            raise Refused(
                f"Invalid sample rate: got {rate} Hz, expected {lowest} to {highest}, "
                f"or 0 for {kernels.SAMPLE_RATE}"
            )
    elif not features:
        raise Refused("Either raw_audio or audio_features must be provided")
    elif features != AUDIO_BYTES:
        raise Refused(
            f"Invalid audio features size: got {features} bytes, expected {AUDIO_BYTES} bytes"
        )
    context = request.audio_context_frames if request.HasField("audio_context_frames") else None
    if context is not None and not 0 <= context <= MOST_CONTEXT:
        raise Refused(f"Invalid audio_context_frames: got {context}, expected 0 to {MOST_CONTEXT}")
    return CompositeRequest(
        request.model_id, count, request.start_frame_idx, context, rate, content
    )


def samples_needed(count: int, context: int) -> int:
    """Return how many samples at 16 kHz, from the first one on, can be heard in a batch.

    A request's features are those of at most context + count + 16 windows. The last of these ends
    before the last mel row of so many samples that none of its rows sees the end. So samples after
    that change nothing, and are neither checked nor resampled.
    """
    windows = context + count + kernels.FEATURES_PER_FRAME
    rows_a_second = kernels.SAMPLE_RATE // kernels.HOP_LENGTH
    rows = kernels.MEL_WINDOW_ROWS + -(-windows * rows_a_second // kernels.FPS)
    return kernels.HOP_LENGTH * rows


def _speech(raw: memoryview, rate: int, most: int) -> np.ndarray:
    """Return (S,) float32 at 16 kHz of which there are at most `most` samples."""
    # the resampler's filter sees samples around each one
    needed = math.ceil((most + kernels.SAMPLE_RATE // 10) * rate / kernels.SAMPLE_RATE)
    samples = np.empty(min(len(raw) // 4, needed), np.float32)
    _copy(raw[: 4 * len(samples)], samples[None], "raw audio: sample", SOUND)
    converter = SpeechConverter(rate)
    parts = [converter(samples[None]), converter.flush()]
    return np.concatenate(parts)[:most]


def _copy(source: memoryview, out: np.ndarray, name: str, allowed: tuple[float, float]) -> None:
    """Copy little-endian float32 values, at any address, into the (N, n) rows of `out`.

    Raises:
        Refused: a value is not within what is allowed.
    """
    lowest, highest = allowed
    rows = np.frombuffer(source, "<f4").reshape(out.shape)
    for number, (row, values) in enumerate(zip(out, rows, strict=True)):
        row[:] = values
        if len(row) and not (row.min() >= lowest and row.max() <= highest):  # nor is it NaN
            place = int(np.argmin((row >= lowest) & (row <= highest)))
            raise Refused(
                f"Invalid {name} {number * len(row) + place} is {row[place]:g}, "
                f"expected {lowest:g} to {highest:g}"
            )
