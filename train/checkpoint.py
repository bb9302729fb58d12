"""The checkpoint file of a training: both networks, and the state that `--resume` needs."""

from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor

from engine.errors import InputError
from engine.files import write_whole

from .config import TrainConfig

FORMAT = 2  # raised whenever a key of the state changes

NetworkKind: TypeAlias = Literal["generator", "audio_encoder"]


class TrainingState(TypedDict):
    """The state of a training beside its networks."""

    format: int
    config: dict[str, Any]  # the fields of `TrainConfig`
    step: int  # steps done
    losses: list[float]  # one a step
    pretrained: dict[NetworkKind, bool]  # whether each network was loaded from a checkpoint
    data: str  # fingerprint of the training data
    aux_heads: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # empty where the precision needs none


class Checkpoint(TypedDict):
    """The content of a checkpoint file."""

    generator: dict[str, Tensor]
    audio_encoder: dict[str, Tensor]
    training: TrainingState


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file, whole or not at all.

    `models.checkpoint` reads either network out of it, and so does every command.
    """
    write_whole(path, lambda partial: torch.save(checkpoint, partial))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `write_checkpoint` wrote.

    Raises:
        InputError: there is no such file, or it is another file, or of another format.
    """
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Any] = {**checkpoint["training"]}
        found = 1 if "plan" in state else state["format"]  # the first format had no number
        if found == FORMAT:
            TrainConfig(**state["config"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; there is no training to resume") from None
    except Exception as error:  # torch.load does not say which ones it raises
        raise InputError(f"{path} is not a checkpoint of python -m train") from error
    if found != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {found}; expected {FORMAT}. A new training can start "
            f"from its weights: --generator {path} --audio-encoder {path}"
        )
    return checkpoint
