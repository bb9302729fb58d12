"""Write the corpus: `python -m examples.speech -o DIR [--held-out] [--minutes M] [--seed N]`.

Each utterance becomes `000.wav` (16 kHz mono, 16 bit) and `000.json`: its recipe, and its phonemes
as [name, start, end] in seconds.
"""

import argparse
import json
import sys
import wave
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.command import program
from engine.errors import InputError

from .corpus import corpus, make
from .espeak import SAMPLE_RATE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.speech", description="Speak the corpus into WAV files."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--held-out", action="store_true", help="the texts and voices to judge by")
    parser.add_argument("--minutes", type=float, metavar="M", help="24, or 1.6 held out")
    parser.add_argument("--seed", type=int, default=2026, metavar="N")
    args = parser.parse_args(arguments)
    recipes = corpus(args.seed, args.minutes, args.held_out)
    args.output.mkdir(parents=True, exist_ok=True)
    for i, recipe in enumerate(tqdm(recipes, desc="speech", unit="utterance")):
        try:
            said = make(recipe)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        with wave.open(str(args.output / f"{i:03}.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(np.round(said.pcm * 32767).astype("<i2").tobytes())
        phonemes = [(p.name, round(p.start, 4), round(p.end, 4)) for p in said.phonemes]
        text = json.dumps({"recipe": asdict(recipe), "phonemes": phonemes}) + "\n"
        (args.output / f"{i:03}.json").write_text(text)
    return 0


if __name__ == "__main__":
    program(main)
