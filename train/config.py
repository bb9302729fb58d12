"""The configuration of a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, how fast, and from which seed.

    Attributes:
        steps: steps that train on images.
        audio_steps: steps before them that pretrain the audio side alone to predict the mouth
            shape. Needs data with known shapes.
        batch: frames a step. A step on crops takes more, for about the same number of pixels.
        audio_clips: audio clips a step of the pretraining.
        rate: highest learning rate of the steps on images.
        audio_rate: highest learning rate of the pretraining.
        crop_fraction: fraction of the steps on images, at the beginning, that train on crops, most
            of them of the mouth. Many small mouths teach more than few whole ROIs.
        frozen_norm_fraction: fraction of the steps on images, at the end, with frozen batch-norm
            statistics, as at inference. Freezing earlier, while weights change fast, makes the
            generator lose the audio.
        freeze_audio_encoder: do not train the audio encoder.
        seed: seed of the weights and the batches.
    """

    steps: int = 20000
    audio_steps: int = 2000
    batch: int = 8
    audio_clips: int = 8
    rate: float = 1e-3
    audio_rate: float = 1e-3
    crop_fraction: float = 0.7
    frozen_norm_fraction: float = 0.7
    freeze_audio_encoder: bool = False
    seed: int = 2026

    @property
    def first_whole_step(self) -> int:
        """The first step that trains on whole ROIs."""
        return self.audio_steps + round(self.crop_fraction * self.steps)

    @property
    def first_frozen_step(self) -> int:
        """The first step with frozen batch norms in both networks."""
        return self.audio_steps + round((1 - self.frozen_norm_fraction) * self.steps)

    @property
    def total_steps(self) -> int:
        """Steps on audio and on images together."""
        return self.audio_steps + self.steps
