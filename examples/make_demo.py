"""Draw the demo avatar: `python -m examples.make_demo [-o examples/demo] [--speech]`.

The folder gets `avatar.json`, `boxes.json` and `frames.mp4`: ten seconds of the person in
`examples.person`, at rest.
With `--speech` it gets `speech.wav` as well, 16 kHz mono, 16 bit, spoken by espeak-ng:

    espeak-ng -v en-us+f4 -s 160 -p 46 --stdout TEXT

where TEXT is

    Welcome to Viseme! Give me a voice and a few seconds of video, and I will speak your words.
"""

import argparse
import io
import json
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from .person import SIZE, draw, face_box, idle, idle_mouth

FPS = 25
FRAMES = 250
TEXT = "Welcome to Viseme! Give me a voice and a few seconds of video, and I will speak your words."
ESPEAK = ("espeak-ng", "-v", "en-us+f4", "-s", "160", "-p", "46", "--stdout", TEXT)
MANIFEST = {
    "name": "demo",
    "fps": FPS,
    "frames": "frames.mp4",
    "boxes": "boxes.json",
    "generator": "generator.onnx",
    "audio_encoder": "audio_encoder.onnx",
}


def write_frames(path: Path) -> None:
    """The idle loop as H.264, limited-range BT.709, a keyframe a second."""
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Avatars are decoded over and over: a stream without CABAC and deblocking takes a third of
        # the time. x264's rate control depends on the number of threads: one gives the same file
        # everywhere.
        options = {"crf": "18", "preset": "slow", "tune": "fastdecode", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size = FPS
        context.max_b_frames = 0
        context.color_range = av.video.reformatter.ColorRange.MPEG
        context.colorspace = av.video.reformatter.Colorspace.ITU709
        context.color_primaries = 1  # BT.709, in ISO 23091-2's numbering
        context.color_trc = 1
        for i in tqdm(range(FRAMES), desc="frames", unit="frame"):
            picture = draw(idle(i / FPS), idle_mouth(i / FPS))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_speech(path: Path) -> None:
    """Speak TEXT with espeak-ng into a 16 kHz mono 16-bit WAV file."""
    spoken = subprocess.run(ESPEAK, check=True, capture_output=True).stdout
    resampler = av.AudioResampler("s16", "mono", 16000)
    with av.open(io.BytesIO(spoken)) as source:
        parts = [out for frame in source.decode(audio=0) for out in resampler.resample(frame)]
    parts += resampler.resample(None)
    pcm = np.concatenate([part.to_ndarray()[0] for part in parts])
    # Loud enough to hear, with headroom: espeak-ng leaves its level to the voice.
    pcm = np.round(pcm * (0.8 * 32767 / np.abs(pcm).max())).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(pcm.tobytes())


def _finished(write, path: Path) -> None:
    """Write under another name first, so that `path` is always whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.make_demo", description="Draw the demo avatar."
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("demo"), metavar="DIR"
    )
    parser.add_argument(
        "--speech", action="store_true", help="make speech.wav too; needs espeak-ng"
    )
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.speech:
        try:
            _finished(write_speech, args.output / "speech.wav")
        except FileNotFoundError:
            print("error: --speech needs espeak-ng, which is not installed", file=sys.stderr)
            return 2
    _finished(write_frames, args.output / "frames.mp4")
    boxes = [list(face_box(idle(i / FPS))) for i in range(FRAMES)]
    lines = ",\n".join(json.dumps(box) for box in boxes)
    _finished(lambda path: path.write_text(f"[\n{lines}\n]\n"), args.output / "boxes.json")
    _finished(
        lambda path: path.write_text(json.dumps(MANIFEST, indent=2) + "\n"),
        args.output / "avatar.json",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
