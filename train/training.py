"""A training step, and the state that steps change."""

import math
from contextlib import nullcontext
from dataclasses import asdict

import torch
from torch import Tensor, nn

from engine.errors import InputError
from models import AudioEncoder, Generator

from .aux_heads import AuxHeads
from .batches import CELL, CLIP_STRIDE, AudioBatch, Batch, ImageBatch, crop, feature_windows
from .checkpoint import FORMAT, Checkpoint, NetworkKind
from .config import TrainConfig
from .data import TrainingData, fingerprint
from .frozen_batch_norm import freeze_norms, unfreeze_norms
from .losses import image_loss, image_weights
from .optimizer import build_optimizer, learning_rate

MAX_CONSECUTIVE_OVERFLOWS = 10  # float16 steps in a row that may have no finite loss
AUX_WEIGHT = 1.0  # weight of the auxiliary loss beside the image loss
# Factor on it with frozen batch norms: by then the images alone keep the generator using the audio.
AUX_WEIGHT_FROZEN = 0.1
RECENT = 50  # steps whose mean loss is shown


class Training:
    """Both networks in training.

    Args:
        config: how to train.
        data: the training data, of which only the mouth's place and the number of shapes are used
            here. `train.batches.batches` makes batches of it.
        device: "cpu" or "cuda".
        generator: a pretrained generator; None for new weights.
        audio_encoder: a pretrained audio encoder; None for new weights.

    Attributes:
        step: number of steps done.
        losses: loss of every step done.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        device: torch.device,
        generator: Generator | None = None,
        audio_encoder: AudioEncoder | None = None,
    ):
        self.config, self.device, self.dtype = config, device, mixed_precision(device)
        self.step = 0
        self.losses: list[float] = []
        self._data_fingerprint = fingerprint(data)
        self._pretrained: dict[NetworkKind, bool] = {
            "generator": generator is not None,
            "audio_encoder": audio_encoder is not None,
        }
        torch.manual_seed(config.seed)
        # Both are always initialized, so that a seed gives the same weights with either one loaded.
        new_generator, new_encoder = Generator(), AudioEncoder()
        self.generator = (generator or new_generator).to(device)
        self.audio_encoder = (audio_encoder or new_encoder).to(device)
        for network in (self.generator, self.audio_encoder):
            network.to(memory_format=torch.channels_last)
        self._aux_heads = AuxHeads(data.shapes[0].shape[1] if data.shapes else 0).to(device)
        self._weights = image_weights(data.mouth).to(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._optimizer = self._new_optimizer(audio_phase=self.audio_phase)

    @property
    def audio_phase(self) -> bool:
        """Whether the next step belongs to the pretraining of the audio side."""
        return self.step < self.config.audio_steps

    @property
    def frozen_norms(self) -> bool:
        """Whether the next step has frozen batch norms in both networks."""
        return self.step >= self.config.first_frozen_step

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last steps, of the phase that the last step belongs to."""
        audio_steps = self.config.audio_steps
        first = 0 if self.step <= audio_steps else audio_steps
        recent = self.losses[first:][-RECENT:]
        return sum(recent) / len(recent)

    def train_step(self, batch: Batch) -> float:
        """Do one step and return its loss.

        Raises:
            InputError: the loss is not finite.
        """
        audio_phase = self.audio_phase
        if self.step == self.config.audio_steps:  # the images have gradients of another scale
            self._optimizer = self._new_optimizer(audio_phase=False)
        self._set_norms()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step) * group["scale"]
        loss = self._loss(batch)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.step += 1
        self.losses.append(float(loss.item()))
        self._check_loss(audio_phase=audio_phase)
        return self.losses[-1]

    def forward(
        self, windows: Tensor, valid: Tensor, inputs: Tensor, corners: Tensor | None = None
    ) -> Tensor:
        """Run both networks on the tensors of an `ImageBatch`.

        For crops, the output of the generator's audio part is cropped before it joins that of the
        image part. The result is only close to the same part of a whole ROI: convolutions miss the
        pixels around the crop, and upsampling with aligned corners shifts coarse features by a few
        pixels. The steps on whole ROIs at the end of a training make up for both.

        Returns:
            (n, 3, h, w) in the dtype that convolutions compute in.
        """
        cells = inputs.shape[2] // CELL, inputs.shape[3] // CELL
        cropping = (
            self.generator.audio_model.register_forward_hook(
                lambda _module, _inputs, activation: crop(activation, corners, *cells)
            )
            if corners is not None
            else nullcontext()
        )
        with self._autocast(), cropping:
            audio = feature_windows(self._features(windows), valid.to(self.device))
            images = self._unit(inputs).contiguous(memory_format=torch.channels_last)
            return self.generator(images, audio)

    @torch.no_grad()
    def predict(self, batch: ImageBatch) -> Tensor:
        """Return the generator's output as at inference: float32 in [0, 1], on the CPU."""
        self._freeze_all_norms()
        examples = zip(
            *(t.split(1) for t in (batch.windows, batch.valid, batch.inputs)), strict=True
        )
        return torch.cat([self.forward(*example).float().cpu() for example in examples])

    @torch.no_grad()
    def predict_shapes(self, batch: AudioBatch) -> Tensor:
        """Return the mouth shapes predicted from audio, (n, frames, k) float32 on the CPU."""
        self._freeze_all_norms()
        return self._shapes(batch).float().cpu()

    def state_dict(self) -> Checkpoint:
        """Return the networks and the state, for `train.checkpoint.write_checkpoint`."""
        return {
            "generator": self.generator.state_dict(),
            "audio_encoder": self.audio_encoder.state_dict(),
            "training": {
                "format": FORMAT,
                "config": asdict(self.config),
                "step": self.step,
                "losses": self.losses,
                "pretrained": self._pretrained,
                "data": self._data_fingerprint,
                "aux_heads": self._aux_heads.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
        }

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            InputError: it belongs to other training data.
        """
        state = checkpoint["training"]
        if state["data"] != self._data_fingerprint:
            raise InputError("the training data differ; expected those that it was started with")
        self.generator.load_state_dict(checkpoint["generator"])
        self.audio_encoder.load_state_dict(checkpoint["audio_encoder"])
        self._aux_heads.load_state_dict(state["aux_heads"])
        self.step, self.losses = state["step"], state["losses"]
        self._pretrained = state["pretrained"]
        # The last step's optimizer: `train_step` replaces it where the phase changes.
        audio_phase = self.config.audio_steps > 0 and self.step <= self.config.audio_steps
        self._optimizer = self._new_optimizer(audio_phase=audio_phase)
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if written by a device that needs none
            self._scaler.load_state_dict(state["scaler"])

    # --- losses --------------------------------------------------------------------------------

    def _loss(self, batch: Batch) -> Tensor:
        return self._audio_loss(batch) if isinstance(batch, AudioBatch) else self._image_loss(batch)

    def _audio_loss(self, batch: AudioBatch) -> Tensor:
        return (self._shapes(batch) - batch.shapes.to(self.device)).abs().mean()

    def _image_loss(self, batch: ImageBatch) -> Tensor:
        with self._aux_heads.attached(self.generator) as predictions:
            output = self.forward(batch.windows, batch.valid, batch.inputs, batch.corners).float()
        weights = self._weights
        if batch.corners is not None:
            weights = weights.expand(len(output), -1, -1, -1)
            weights = crop(weights, CELL * batch.corners, *output.shape[2:])
            weights = weights / weights.mean()
        pixels, gradients = image_loss(output, self._unit(batch.target), weights)
        loss = pixels + gradients
        if predictions and batch.shapes is not None:
            shapes = batch.shapes.to(self.device).flatten(0, 1)
            errors = torch.stack([(one - shapes).abs().mean() for one in predictions.values()])
            factor = AUX_WEIGHT_FROZEN if self.frozen_norms else 1
            loss = loss + AUX_WEIGHT * factor * errors.mean()
        return loss

    def _check_loss(self, *, audio_phase: bool) -> None:
        """Raise InputError if the training cannot go on."""
        # float16 overflows now and then, and the scaler skips such a step.
        allowed = MAX_CONSECUTIVE_OVERFLOWS if self._scaler.is_enabled() else 1
        if any(map(math.isfinite, self.losses[-allowed:])):
            return
        remedy = (
            f"start again with --audio-rate below {self.config.audio_rate:g}"
            if audio_phase
            else f"--resume from the last checkpoint with --rate below {self.config.rate:g}"
        )
        raise InputError(f"the loss of step {self.step} is {self.losses[-1]}; {remedy}")

    # --- networks ------------------------------------------------------------------------------

    def _features(self, windows: Tensor) -> Tensor:
        n, k = windows.shape[:2]
        windows = windows.to(self.device).flatten(0, 1)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.config.freeze_audio_encoder
        ):
            return self.audio_encoder(windows).view(n, k, -1)

    def _shapes(self, batch: AudioBatch) -> Tensor:
        """Predict (n, frames, k) from the generator's audio part alone."""
        with self._autocast():
            features = self._features(batch.windows)
            audio = feature_windows(features, batch.valid.to(self.device), CLIP_STRIDE)
            activation = self.generator.audio_model(audio)
        return self._aux_heads.read_out("audio_model", activation).view(batch.shapes.shape)

    def _unit(self, images: Tensor) -> Tensor:
        """Convert uint8 to float32 in [0, 1], as `kernels.face_input` does."""
        return images.to(self.device).float() / 255

    def _set_norms(self) -> None:
        """Freeze the batch norms that this step must not train.

        The audio side is frozen once it was pretrained, because the statistics of the small batches
        of images would harm it.
        """
        pretrained_here = self.config.audio_steps > 0 and not self.audio_phase
        unfreeze_norms(self.generator)
        unfreeze_norms(self.audio_encoder)
        if self.frozen_norms:
            freeze_norms(self.generator)
        if pretrained_here or self._pretrained["generator"]:
            freeze_norms(self.generator.audio_model)
        if (
            self.frozen_norms
            or pretrained_here
            or self._pretrained["audio_encoder"]
            or self.config.freeze_audio_encoder
        ):
            freeze_norms(self.audio_encoder)

    def _freeze_all_norms(self) -> None:
        freeze_norms(self.generator)
        freeze_norms(self.audio_encoder)

    def _new_optimizer(self, *, audio_phase: bool) -> torch.optim.Optimizer:
        return build_optimizer(
            self.config,
            self.generator,
            self.audio_encoder,
            self._aux_heads,
            pretrained=self._pretrained,
            audio_phase=audio_phase,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def mixed_precision(device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions: bfloat16 where the processor has units for it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    has = torch.cpu.get_capabilities()
    fast = has.get("amx_bf16") or has.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32
