"""The training loop: every step, with a checkpoint every few minutes."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.files import write_whole

from .batches import batches
from .checkpoint import write_checkpoint
from .data import TrainingData
from .progress import HeldOut
from .training import Training

# Fields of the configuration that may change when a training is resumed.
CHANGEABLE = ("steps", "batch", "rate", "crop_fraction", "frozen_norm_fraction")


def run_loop(
    training: Training,
    data: TrainingData,
    output: Path,
    *,
    every: float = 5,
    resume: bool = False,
    progress: bool = True,
) -> str:
    """Do the steps that are left, and return the lines that sum them up.

    Writes a checkpoint after the pretraining, at the end, and at intervals.

    Args:
        training: the training, at any step before its last.
        data: its training data.
        output: the checkpoint, CKPT.pth; the files beside it are CKPT.json and CKPT.png.
        every: minutes between checkpoints.
        resume: continue the log in CKPT.json.
        progress: show a progress bar.

    Raises:
        InputError: the loss is not finite.
        OSError: a file cannot be written; the one before it is unchanged.
    """
    config, writer = training.config, _Writer(training, data, output, resume=resume)
    remaining = batches(data, config, training.step)
    last = time.monotonic()
    with tqdm(
        total=config.total_steps,
        initial=training.step,
        unit=" steps",
        disable=None if progress else True,
        mininterval=1,
    ) as bar:
        for batch in remaining:
            training.train_step(batch)
            bar.update()
            bar.set_postfix_str(f"loss {training.recent_loss:.4f}", refresh=False)
            due = time.monotonic() - last >= 60 * every or training.step == config.audio_steps
            if due and training.step < config.total_steps:
                bar.write(_line(writer.write()), file=sys.stderr)
                last = time.monotonic()
        entry = writer.write()
    return (
        f"{output}: {_line(entry)}, {entry['seconds'] / 60:.1f} min on {training.device} in "
        f"{_precision(training)}\n"
        f"{writer.sheet}: held-out frames: reference, target, output\n"
        f"{writer.log}: the loss of every step, figures of every checkpoint"
    )


class _Writer:
    """Writes the checkpoint, its log and its contact sheet."""

    def __init__(self, training: Training, data: TrainingData, output: Path, *, resume: bool):
        self.output, self.log = output, output.with_suffix(".json")
        self.sheet = output.with_suffix(".png")
        self._training, self._held_out = training, HeldOut(data, training.config.seed)
        self._entries = _read_entries(self.log) if resume else []
        self._seconds_before = self._entries[-1]["seconds"] if self._entries else 0.0
        self._begin = time.monotonic()
        self._header = {
            "data": data.name,
            "config": asdict(training.config),
            "device": str(training.device),
            "precision": _precision(training),
            "torch": torch.__version__,
        }

    def write(self) -> dict[str, Any]:
        """Evaluate, write the three files, and return the new entry of the log."""
        training = self._training
        figures = self._held_out.evaluate_audio(training)
        if not training.audio_phase:
            image_figures, sheet = self._held_out.evaluate_images(training)
            figures |= image_figures
            write_whole(self.sheet, lambda partial: sheet.save(partial, "PNG"))
        self._entries.append(
            {
                "step": training.step,
                "loss": training.recent_loss,
                **figures,
                "seconds": self._seconds_before + time.monotonic() - self._begin,
                "config": {name: getattr(training.config, name) for name in CHANGEABLE},
            }
        )
        write_checkpoint(self.output, training.state_dict())
        losses = [round(loss, 6) for loss in training.losses]
        log = {**self._header, "checkpoints": self._entries, "losses": losses}
        text = json.dumps(log, indent=1) + "\n"
        write_whole(self.log, lambda partial: partial.write_text(text))
        return self._entries[-1]


def _read_entries(log: Path) -> list[dict[str, Any]]:
    """Return the checkpoints of a log; [] if it cannot be read, because only people need it."""
    try:
        entries: list[dict[str, Any]] = json.loads(log.read_text())["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return entries


def _precision(training: Training) -> str:
    return str(training.dtype).removeprefix("torch.")


def _line(entry: dict[str, Any]) -> str:
    line = f"step {entry['step']}, loss {entry['loss']:.4f}"
    if "held_out_shape_error" in entry:
        line += f", held out: shape error {entry['held_out_shape_error']:.4f}"
        line += f", correlation {entry['held_out_shape_correlation']}"
    if "held_out_psnr" in entry:
        line += f", held out: PSNR {entry['held_out_psnr']:.2f} dB"
        line += f", mouth {entry['held_out_mouth_psnr']:.2f} dB"
    return line
