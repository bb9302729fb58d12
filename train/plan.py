"""What a training is to do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and from which random numbers.

    Attributes:
        steps: that see pictures.
        listen: steps before them, in which the audio side alone learns to tell the mouth's shape,
            where the recording knows it: those cost less than the others.
        batch: frames a step; of close-ups, as many more as make the same number of pixels.
        stretches: of speech, in a step that listens.
        rate, listen_rate: the highest learning rates.
        close_ups: the part of the steps that see, from the first on, with close-ups instead of
            whole pictures, most of them of the mouth: many mouths teach more than few pictures.
        settle: the part of them, up to the last, with the norms' statistics at rest: the networks
            are trained as they will be used. While weights still change fast, norms at rest let
            what is heard fade.
        freeze_audio_encoder: leave the audio encoder as it is.
        seed: of the weights and the batches.
    """

    steps: int = 20000
    listen: int = 2000
    batch: int = 8
    stretches: int = 8
    rate: float = 1e-3
    listen_rate: float = 1e-3
    close_ups: float = 0.7
    settle: float = 0.7
    freeze_audio_encoder: bool = False
    seed: int = 2026

    @property
    def whole_from(self) -> int:
        """The first step that sees whole pictures."""
        return self.listen + round(self.close_ups * self.steps)

    @property
    def settled_from(self) -> int:
        return self.listen + round((1 - self.settle) * self.steps)

    @property
    def end(self) -> int:
        return self.listen + self.steps
