"""Make films for `engine.prepare`, and a tracker that finds the drawn head in their pictures.

A head is a square of magenta whose mouth, a green bar, opens with the sound. So boxes, flashes and
lips can be found in the finished avatar without any network.
"""

import json
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from engine.faces import Landmarks, Tracked
from engine.media.speech import read_samples
from engine.media.video import Video
from engine.preparing.measures import (
    CHIN,
    LEFT,
    LEFT_EYE,
    LOWER_LIP,
    NOSE,
    RIGHT,
    RIGHT_EYE,
    UPPER_LIP,
)
from tests.engine.media.sound_files import heard_at

HEIGHT, WIDTH, HEAD = 200, 240, 168
X264 = {"preset": "ultrafast", "crf": "12"}
MAGENTA, GREEN = (190, 40, 190), (40, 190, 40)
TEXTURE = np.kron(np.random.default_rng(5).integers(0, 80, (8, 30)), np.ones((4, 8)))
RATE = 48000
TICKS = 60000  # a second, in the films

Scene = Callable[[float], np.ndarray]
Sound = Callable[[np.ndarray], np.ndarray]


def envelope(t: np.ndarray | float) -> np.ndarray:
    """Return how loud the voice is, and how open the mouth, 0 to 1: syllables with pauses."""
    rhythm = np.sin(2 * np.pi * (2.3 * np.asarray(t) + 1.1 * np.sin(0.9 * np.asarray(t))))
    return np.clip(rhythm, 0, 1)


def voice(t: np.ndarray) -> np.ndarray:
    return 0.3 * envelope(t) * np.sin(2 * np.pi * 220 * t + 3 * np.sin(2 * np.pi * 37 * t))


def head(
    t: float,
    *,
    size: int = HEAD,
    center: tuple[float, float] = (WIDTH / 2, 100),
    shape: tuple[int, int] = (HEIGHT, WIDTH),
    light: int = 90,
    wide: float = 1,
) -> np.ndarray:
    """Draw a frame: a head that sways a little. A pixel is `wide` times as wide as high."""
    height, width = shape
    frame = np.full((height, width, 3), light, np.uint8)
    frame[:: height // 10] //= 2
    columns = round(size / wide)
    face = np.empty((size, columns, 3), np.uint8)
    face[:] = MAGENTA
    # something that changes from frame to frame, as faces do
    strip = np.roll(TEXTURE, round(100 * t), axis=1)
    face[size // 12 : size // 4, 2:-2, 1] = strip[: size // 4 - size // 12, : columns - 4]
    middle, half = round(0.7 * size), round(float(envelope(t)) * size / 10)
    face[middle - half : middle + half, columns // 3 : columns - columns // 3] = GREEN
    x0 = round((center[0] + 4 * np.sin(2 * np.pi * t / 3)) / wide - columns / 2)
    y0 = round(center[1] - size / 2)
    seen = face[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
    y0, x0 = max(y0, 0), max(x0, 0)
    frame[y0 : y0 + seen.shape[0], x0 : x0 + seen.shape[1]] = seen
    return frame


def flash(times: Collection[float], scene: Scene = head) -> Scene:
    """Brighten what is around the head for 0.1 s from each of the times on."""

    def frame(t: float) -> np.ndarray:
        picture = scene(t).copy()
        if any(time - 1e-6 <= t < time + 0.1 - 1e-6 for time in times):
            background = picture.max(axis=2) - picture.min(axis=2) < 30
            picture[background] = 235
        return picture

    return frame


def beeps(times: Collection[float]) -> Sound:
    """Return a tone of 0.1 s at each of the times."""

    def sound(t: np.ndarray) -> np.ndarray:
        on = sum(((t >= time) & (t < time + 0.1)) for time in times)
        return 0.5 * np.sin(2 * np.pi * 880 * t) * on + 0.01 * np.sin(2 * np.pi * 150 * t)

    return sound


def write_film(
    path: Path,
    *,
    seconds: float = 4,
    rate: Fraction | int = 25,
    times: Iterable[float] | None = None,
    scene: Scene = head,
    sound: Sound | None = voice,
    sound_at: float = 0,
    gain: float = 1,
    gains: Sequence[float] = (1,),
    codec: str = "libx264",
    voice_codec: str = "aac",
    pix_fmt: str = "yuv420p",
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a film whose frames show `scene(t)` at their times, and its sound.

    Args:
        times: of the frames in seconds; by default those of a constant `rate`.
        sound_at: when the sound begins. What it says there is what `sound` says at that time.
        gains: of one or two channels.
    """
    if times is None:
        times = [float(i / Fraction(rate)) for i in range(round(seconds * rate))]
    with av.open(str(path), "w") as output:
        video = output.add_stream(
            codec, rate=rate, options={**(X264 if codec == "libx264" else {}), **(options or {})}
        )
        frames = [(time, scene(time)) for time in times]
        first = frames[0][1]
        drawn = isinstance(first, np.ndarray)
        video.height, video.width = first.shape[:2] if drawn else (first.height, first.width)
        video.pix_fmt = pix_fmt
        context = video.codec_context
        context.time_base = video.time_base = Fraction(1, TICKS)
        context.gop_size = 25
        context.colorspace = context.color_primaries = context.color_trc = 1
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        audio = None
        if sound is not None:
            audio = output.add_stream(voice_codec, rate=RATE)
            audio.layout = layout = ("mono", "stereo")[len(gains) - 1]
        for time, rgb in frames:
            frame = (
                rgb
                if isinstance(rgb, av.VideoFrame)
                else av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
                    format=pix_fmt, dst_colorspace=1
                )
            )
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if audio is not None:
            t = np.arange(round(sound_at * RATE), round(seconds * RATE)) / RATE
            samples = np.clip(np.outer(gains, gain * sound(t)), -1, 1).astype(np.float32)
            for first in range(0, samples.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples[:, first : first + 1024]), "fltp", layout
                )
                block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
                block.pts = first + round(sound_at * RATE)
                output.mux(audio.encode(block))
            output.mux(audio.encode(None))
    return path


class HeadTracker:
    """Finds the head of a picture by its color, as `faces.Tracker` finds a person.

    Args:
        hidden: numbers of the pictures, in the order of the calls, in which it finds no face.
        others: number of other faces.
        nose: where the nose is, as of `nose_place`.
        turns: what it says of pictures without a face.
        chin: pixels that the chin is below the head.
        interrupted_at: number of the picture at which Ctrl-C is pressed.
    """

    def __init__(
        self,
        hidden: Collection[int] = (),
        others: int = 0,
        nose: float = 0.5,
        turns: int = 0,
        chin: float = 0,
        interrupted_at: int = -1,
    ):
        self._hidden, self._others, self._nose, self._turns = hidden, others, nose, turns
        self._chin, self._interrupted_at = chin, interrupted_at
        self.calls = 0

    def follow(self, rgb: np.ndarray) -> Tracked:
        number, self.calls = self.calls, self.calls + 1
        if number == self._interrupted_at:
            signal.raise_signal(signal.SIGINT)
        red, green, blue = np.moveaxis(rgb.astype(np.int16), 2, 0)
        skin = 5 * np.minimum(red, blue) > 8 * green + 25
        columns, rows = np.flatnonzero(skin.any(axis=0)), np.flatnonzero(skin.any(axis=1))
        if number in self._hidden or not len(rows):
            return Tracked(None, 0, False, self._turns)
        x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        middle = (x0 + x1) / 2
        mouth = 5 * green > 8 * np.maximum(red, blue) + 25
        opened = mouth[y0:y1, x0:x1].any(axis=1).sum()
        points = np.zeros((468, 3), np.float32)
        spread = np.linspace(0, 1, 468)
        points[:, 0], points[:, 1] = x0 + spread * (x1 - x0), y0 + spread[::-1] * (y1 - y0)
        points[[93, LEFT], 0], points[[323, RIGHT], 0], points[195, 1] = x0, x1, y0
        points[NOSE, :2] = x0 + self._nose * (x1 - x0), (y0 + y1) / 2
        points[LEFT_EYE, :2], points[RIGHT_EYE, :2] = (x0, y0), (x1, y0)
        points[UPPER_LIP, :2], points[LOWER_LIP, :2] = (middle, y0), (middle, y0 + opened)
        points[CHIN, :2] = middle, y1 + self._chin
        return Tracked(Landmarks(points, 0.99), self._others, False, 0)


def sees(monkeypatch, **options) -> None:
    """Let `engine.prepare` use a `HeadTracker`."""
    import engine.prepare

    monkeypatch.setattr(
        engine.prepare, "open_tracker", lambda models, person: (lambda: HeadTracker(**options), {})
    )


# --- what is in a finished avatar -----------------------------------------------------------------


def frames_of(folder: Path) -> list[np.ndarray]:
    """Return the frames of a prepared avatar, (H, W, 3) uint8 each."""
    video = Video(folder / json.loads((folder / "avatar.json").read_text())["frames"])
    return [video.pixels(frame).copy() for _, frame in video.frames()]


def boxes_of(folder: Path) -> np.ndarray:
    return np.array(json.loads((folder / "boxes.json").read_text()))


def record_of(folder: Path) -> dict:
    return json.loads((folder / "prepare.json").read_text())


def flashes_in(folder: Path) -> np.ndarray:
    """Return the times at which flashes begin, by counting frames, in seconds."""
    fps = float(Fraction(record_of(folder)["frames"]["fps"]))
    light = np.array(
        [np.percentile(frame[::4, ::4].mean(axis=2), 98) for frame in frames_of(folder)]
    )
    bright = light > (light.max() + light.min()) / 2
    return np.flatnonzero(bright & ~np.r_[False, bright[:-1]]) / fps


def beeps_in(folder: Path) -> np.ndarray:
    """Return the times at which beeps begin, by counting samples, in seconds."""
    pcm = read_samples(folder / "aud.wav")
    loud = heard_at(pcm)
    return loud[np.diff(loud, prepend=-1) > 0.15]
