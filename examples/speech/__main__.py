"""Write the corpus: python -m examples.speech -o DIR [--held-out] [--minutes M] [--seed N]

Each utterance becomes `000.wav` (16 kHz mono, 16 bit) and `000.json`, which holds its recipe and
its phonemes as [name, start, end] in seconds.
"""

import json
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from engine.command import Parser, program, run

from .corpus import HELD_OUT_MINUTES, MINUTES, SEED, Recipe, corpus, make
from .espeak import write_wav


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m examples.speech", description="Speak the corpus into WAV files."
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    add("--held-out", action="store_true", help="the texts and voices kept for evaluation")
    minutes = f"minimum length (default: {MINUTES:g}, held out {HELD_OUT_MINUTES:g})"
    add("--minutes", type=float, metavar="M", help=minutes)
    add("--seed", type=int, default=SEED, metavar="N", help=f"default: {SEED}")
    options = parser.parse_args(arguments)
    recipes = corpus(options.seed, options.minutes, options.held_out)
    return run(lambda: write(recipes, options.output), interrupted="finished files stay")


def write(recipes: list[Recipe], folder: Path) -> None:
    """Speak recipes into NNN.wav and NNN.json.

    Raises:
        InputError: espeak-ng is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, recipe in enumerate(tqdm(recipes, desc="speech", unit="utterance")):
        utterance = make(recipe)
        write_wav(folder / f"{number:03}.wav", utterance)
        phonemes = [(p.name, round(p.start, 4), round(p.end, 4)) for p in utterance.phonemes]
        text = json.dumps({"recipe": asdict(recipe), "phonemes": phonemes}) + "\n"
        (folder / f"{number:03}.json").write_text(text)


if __name__ == "__main__":
    program(main)
