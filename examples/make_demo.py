"""Draw the demo avatar: `python -m examples.make_demo [-o examples/demo] [--speech]`.

The folder gets `avatar.json`, `boxes.json` and `frames.mp4`: ten seconds of the person in
`examples.person`, at rest.
With `--speech` it gets `speech.wav` as well, 16 kHz mono, 16 bit, spoken by espeak-ng, and
`phonemes.json`, which says what is heard when.
"""

import argparse
import json
import sys
import wave
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from engine.command import program
from engine.errors import InputError
from engine.files import write_whole

from .person import SIZE, draw, face_box, idle, idle_mouth
from .speech import Recipe, Utterance, make

FPS = 25
FRAMES = 250
TEXT = "Welcome to Viseme! Give me a voice and a few seconds of video, and I will speak your words."
SPOKEN = Recipe((TEXT,), pauses=(0.14, 0.14), voice="en-us", variant="f4", rate=160, pitch=46)
MANIFEST = {
    "name": "demo",
    "fps": FPS,
    "frames": "frames.mp4",
    "boxes": "boxes.json",
    "generator": "generator.safetensors",
    "audio_encoder": "audio_encoder.safetensors",
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


def write_speech(path: Path, utterance: Utterance) -> None:
    """A 16 kHz mono 16-bit WAV file."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(np.round(utterance.pcm * 32767).astype("<i2").tobytes())


def write_phonemes(path: Path, utterance: Utterance) -> None:
    """[[name, start, end], ...], in seconds."""
    lines = ",\n".join(json.dumps([p.name, p.start, p.end]) for p in utterance.phonemes)
    path.write_text(f"[\n{lines}\n]\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.make_demo", description="Draw the demo avatar."
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("demo"), metavar="DIR"
    )
    parser.add_argument(
        "--speech", action="store_true", help="make speech.wav and phonemes.json too"
    )
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.speech:
        try:
            utterance = make(SPOKEN)
        except InputError as error:  # espeak-ng is not there
            print(f"error: {error}", file=sys.stderr)
            return 2
        for name, write in (("speech.wav", write_speech), ("phonemes.json", write_phonemes)):
            write_whole(args.output / name, partial(write, utterance=utterance))
    write_whole(args.output / "frames.mp4", write_frames)
    boxes = [list(face_box(idle(i / FPS))) for i in range(FRAMES)]
    lines = ",\n".join(json.dumps(box) for box in boxes)
    write_whole(args.output / "boxes.json", lambda path: path.write_text(f"[\n{lines}\n]\n"))
    write_whole(
        args.output / "avatar.json",
        lambda path: path.write_text(json.dumps(MANIFEST, indent=2) + "\n"),
    )
    return 0


if __name__ == "__main__":
    program(main)
