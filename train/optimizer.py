"""The optimizer and its learning rate, in the two phases of a training."""

import math
from collections.abc import Mapping

import torch

from models import AudioEncoder, Generator

from .aux_heads import AuxHeads
from .checkpoint import NetworkKind
from .config import TrainConfig

WARM_UP = 100  # steps in which the learning rate rises
PRETRAINED_LR_FACTOR = 0.03  # learning-rate factor for parts that were pretrained


def build_optimizer(
    config: TrainConfig,
    generator: Generator,
    audio_encoder: AudioEncoder,
    aux_heads: AuxHeads,
    *,
    pretrained: Mapping[NetworkKind, bool],
    audio_phase: bool,
) -> torch.optim.Optimizer:
    """Return AdamW over the parameters of a phase, each group with its factor as "scale".

    Args:
        config: says whether the audio encoder is trained, and whether there is an audio phase.
        generator: trained by its audio part alone in the audio phase.
        audio_encoder: the audio encoder.
        aux_heads: the auxiliary heads.
        pretrained: whether each network was loaded from a checkpoint.
        audio_phase: whether the steps to come are those of the audio phase.
    """

    def factor(kind: NetworkKind) -> float:
        slow = not audio_phase and (pretrained[kind] or config.audio_steps > 0)
        return PRETRAINED_LR_FACTOR if slow else 1.0

    audio_part = list(generator.audio_model.parameters())
    in_audio_part = {id(p) for p in audio_part}
    groups = [(audio_part, factor("generator"))]
    if aux_heads:
        groups.append((list(aux_heads.parameters()), 1.0))
    if not audio_phase:
        groups.append(([p for p in generator.parameters() if id(p) not in in_audio_part], 1.0))
    if not config.freeze_audio_encoder:
        groups.append((list(audio_encoder.parameters()), factor("audio_encoder")))
    return torch.optim.AdamW(
        [{"params": parameters, "scale": scale} for parameters, scale in groups],
        weight_decay=0.01,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step.

    In each phase it rises linearly, then falls along half a cosine to a hundredth.
    """
    first, steps, highest = 0, config.audio_steps, config.audio_rate
    if step >= config.audio_steps:
        first, steps, highest = config.audio_steps, config.steps, config.rate
    done = step - first
    rise = min((done + 1) / min(WARM_UP, max(steps // 10, 1)), 1.0)
    return highest * rise * (0.505 + 0.495 * math.cos(math.pi * done / steps))
