"""The mp4 of frames and sound that come bit by bit, as those of a live session do."""

from fractions import Fraction

import av
import numpy as np
import pytest

from engine import InputError
from engine.media import h264
from engine.media.mp4 import Mp4Writer

FPS, RATE = Fraction(25), 24000


def write(path, pictures, sound=None, *, channels=1) -> None:
    """Write a level of gray a frame, None for a skipped picture, and its part of the sound."""
    step = int(RATE / FPS)
    with Mp4Writer(
        path,
        height=47,
        width=63,
        fps=FPS,
        x264={**h264.LIVE, "crf": "12"},
        threads=1,
        sound=None if sound is None else (channels, RATE),
    ) as writer:
        for number, level in enumerate(pictures):
            writer.write_frame(None if level is None else np.full((47, 63, 3), level, np.uint8))
            if sound is not None:
                writer.write_sound(sound[:, number * step :][:, :step], number * step)


def levels(path) -> dict[int, float]:
    """Number of each frame, by its time -> its mean level; and that it says how it is coded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.width, context.height, context.pix_fmt) == (64, 48, "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1  # limited
        frames = list(container.decode(stream))
        return {
            int(frame.pts * stream.time_base * FPS): float(frame.to_ndarray(format="rgb24").mean())
            for frame in frames
        }


def test_a_skipped_picture_repeats_the_one_before(tmp_path):
    write(tmp_path / "a.mp4", [None, None, 200, None, 50, 51, None, 90])
    found = levels(tmp_path / "a.mp4")
    assert list(found) == [2, 3, 4, 5, 6, 7]  # there is nothing to show before the first picture
    np.testing.assert_allclose(list(found.values()), [200, 200, 50, 51, 51, 90], atol=3)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_keeps_its_place(tmp_path, channels):
    """A click in each second, heard where it was written, beside the frames."""
    sound = np.zeros((channels, 3 * RATE), np.float32)
    for second in range(3):
        sound[:, second * RATE + RATE // 2 :][:, :240] = 0.8 * np.sin(np.arange(240) * 0.3)
    write(tmp_path / "a.mp4", [100] * 75, sound, channels=channels)
    assert len(levels(tmp_path / "a.mp4")) == 75
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(audio=0))
        assert {(frame.rate, frame.layout.nb_channels) for frame in frames} == {(RATE, channels)}
        heard = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[0]
        first = float(frames[0].pts * frames[0].time_base)
    clicks = [
        np.abs(heard[second * RATE : (second + 1) * RATE]).argmax() / RATE + second + first
        for second in range(3)
    ]
    np.testing.assert_allclose(clicks, [0.505, 1.505, 2.505], atol=0.006)


def test_no_frames_at_all(tmp_path):
    """A session that is interrupted before its first piece leaves nothing, and no other error."""
    with pytest.raises(KeyboardInterrupt), Mp4Writer(
        tmp_path / "a.mp4", height=48, width=64, fps=FPS, x264=h264.LIVE, threads=1, sound=(1, RATE)
    ):  # fmt: skip
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(tmp_path):
    options = {"height": 48, "width": 64, "fps": FPS, "x264": h264.LIVE, "threads": 1}
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        Mp4Writer(tmp_path / "no" / "a.mp4", **options)
    with pytest.raises(InputError, match="does not end in .mp4"):
        Mp4Writer(tmp_path / "a.mkv", **options)
    assert list(tmp_path.iterdir()) == []
