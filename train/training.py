"""The two networks in training: what a step does, and what is kept of it."""

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import InputError
from engine.files import write_whole
from models import AudioEncoder, Generator

from .batches import CELL, STRIDE, Batch, cut, feature_windows
from .losses import picture_loss, picture_weights
from .norms import rest, wake
from .plan import Plan
from .recording import Recording, fingerprint

OVERFLOWS = 10  # steps in a row, of a training in float16, that may have no loss
WARM_UP = 100  # steps in which the learning rate rises
LISTENING = 1.0  # what the mouth's shapes count beside the pictures
SETTLED = 0.1  # of that once norms are at rest: the pictures themselves need the shapes by then
CARE = 0.03  # of the learning rate: what learned before has little to learn, and much to forget
# Parts of the generator that have to hold the shape of the mouth, and their channels. The first
# thing that a generator learns is the mean mouth, for which what is heard is only noise: without
# this, it shuts its ears, and takes long to open them again.
HOLDS_SHAPE = {
    "audio_model": 512,
    **{"fuse_conv": 256, "up1": 128, "up2": 64, "up3": 32, "up4": 32, "up5": 16},
}


class Training:
    """Both networks, and what their training has come to.

    Args:
        plan: what to do.
        recording: says where the mouth is, and whether its shapes are known.
        device: "cpu" or "cuda".

    Attributes:
        step: how many are done.
        losses: of every step done.
    """

    def __init__(
        self,
        plan: Plan,
        recording: Recording,
        device: torch.device,
        generator: Generator | None = None,
        audio_encoder: AudioEncoder | None = None,
    ):
        torch.manual_seed(plan.seed)
        # both are drawn whether or not they are given: the seed means the same
        drawn = Generator(), AudioEncoder()
        self.plan, self.step, self.losses = plan, 0, []
        self.device, self.dtype = device, mixed_precision(device)
        self.generator = (generator or drawn[0]).to(device, memory_format=torch.channels_last)
        self.audio_encoder = (audio_encoder or drawn[1]).to(
            device, memory_format=torch.channels_last
        )
        shapes = recording.shapes[0].shape[1] if recording.shapes else 0
        self._readouts = nn.ModuleDict(
            {part: nn.Linear(channels, shapes) for part, channels in HOLDS_SHAPE.items() if shapes}
        ).to(device)
        self._given = {"generator": generator is not None, "encoder": audio_encoder is not None}
        self._recording = fingerprint(recording)
        self._weights = picture_weights(recording.mouth).to(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._optimizer = self._new_optimizer(self.listening)

    def learn(self, batch: Batch) -> float:
        """One step: the loss."""
        listening, listen_rate, rate = self.listening, self.plan.listen_rate, self.plan.rate
        if self.step == self.plan.listen:  # what the other phase knew of gradients is of no use
            self._optimizer = self._new_optimizer(listening=False)
        self._modes()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate() * group["scale"]
        loss = self._listen(batch) if listening else self._see(batch)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.step += 1
        self.losses.append(loss.item())
        # float16 overflows now and then, and the scaler leaves such a step out
        lately = self.losses[-OVERFLOWS if self._scaler.is_enabled() else -1 :]
        if not any(map(math.isfinite, lately)):
            remedy = (
                f"a training begun anew with --listen-rate below {listen_rate:g} may do better"
                if listening
                else f"--resume with --rate below {rate:g} goes on from the last checkpoint"
            )
            raise InputError(f"the loss of step {self.step} is {self.losses[-1]}: {remedy}")
        return self.losses[-1]

    @property
    def listening(self) -> bool:
        return self.step < self.plan.listen

    @property
    def settled(self) -> bool:
        """Whether the norms are at rest."""
        return self.step >= self.plan.settled_from

    def make(
        self, windows: Tensor, inside: Tensor, inputs: Tensor, corners: Tensor | None = None
    ) -> Tensor:
        """The generator's output, (n, 3, 320, 320) or close-ups, for batches as `Batch` has them.

        For a close-up, what is heard is cut alike where it joins. The generator makes nearly of it
        what it makes there of the whole picture: near a close-up's edges there is no more to see,
        and its upsampling, which aligns corners, puts coarse features a few pixels elsewhere. The
        whole pictures that come last make up for both.
        """
        places = inputs.shape[2] // CELL, inputs.shape[3] // CELL
        cutting = (
            self.generator.audio_model.register_forward_hook(
                lambda _, inputs, heard: cut(heard, corners, *places)
            )
            if corners is not None
            else nullcontext()
        )
        with self._mixed(), cutting:
            heard = feature_windows(self._features(windows), inside.to(self.device))
            picture = self._unit(inputs).contiguous(memory_format=torch.channels_last)
            return self.generator(picture, heard)

    def _unit(self, pictures: Tensor) -> Tensor:
        """uint8 -> float32 in [0, 1], as `kernels.face_input` has it."""
        return pictures.to(self.device).float() / 255

    @torch.no_grad()
    def show(self, batch: Batch) -> Tensor:
        """What the networks, used as after the training, make of a batch: float32 on the CPU."""
        rest(self.generator)
        rest(self.audio_encoder)
        one_by_one = zip(
            *(t.split(1) for t in (batch.windows, batch.inside, batch.inputs)), strict=True
        )
        return torch.cat([self.make(*one).float().cpu() for one in one_by_one])

    @torch.no_grad()
    def guess(self, batch: Batch) -> Tensor:
        """The mouth's shapes that the audio side reads out of a batch that listens."""
        rest(self.generator)
        rest(self.audio_encoder)
        return self._shapes(batch).float().cpu()

    # --- a step --------------------------------------------------------------------------------

    def _features(self, windows: Tensor) -> Tensor:
        n, k = windows.shape[:2]
        windows = windows.to(self.device).flatten(0, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.plan.freeze_audio_encoder):
            return self.audio_encoder(windows).view(n, k, -1)

    def _shapes(self, batch: Batch) -> Tensor:
        """(n, frames, k), as they are read out of the generator's audio side alone."""
        with self._mixed():
            features = self._features(batch.windows)
            heard = feature_windows(features, batch.inside.to(self.device), STRIDE)
            held = self.generator.audio_model(heard)
        return self._read("audio_model", held).view(batch.shapes.shape)

    def _read(self, part: str, held: Tensor) -> Tensor:
        """Linearly, out of a part's output as it is on average over the picture: (n, k)."""
        return self._readouts[part](held.mean(dim=(2, 3)).float())

    def _listen(self, batch: Batch) -> Tensor:
        return (self._shapes(batch) - batch.shapes.to(self.device)).abs().mean()

    def _see(self, batch: Batch) -> Tensor:
        read: dict[str, Tensor] = {}
        hooks = [
            getattr(self.generator, part).register_forward_hook(
                lambda _, inputs, held, part=part: read.update({part: self._read(part, held)})
            )
            for part in self._readouts
        ]
        try:
            made = self.make(batch.windows, batch.inside, batch.inputs, batch.corners).float()
        finally:
            for hook in hooks:
                hook.remove()
        weights = self._weights
        if batch.corners is not None:
            weights = weights.expand(len(made), -1, -1, -1)
            weights = cut(weights, CELL * batch.corners, *made.shape[2:])
            weights = weights / weights.mean()
        pixels, edges = picture_loss(made, self._unit(batch.target), weights)
        loss = pixels + edges
        if read:
            shapes = batch.shapes.to(self.device).flatten(0, 1)
            off = torch.stack([(one - shapes).abs().mean() for one in read.values()])
            loss = loss + LISTENING * (SETTLED if self.settled else 1) * off.mean()
        return loss

    def _modes(self) -> None:
        """Which norms measure, and which are at rest: in batches of few frames, the statistics of
        an audio side that has learned before would do harm."""
        heard = self.plan.listen > 0 and not self.listening
        wake(self.generator)
        wake(self.audio_encoder)
        if self.settled:
            rest(self.generator)
        if heard or self._given["generator"]:
            rest(self.generator.audio_model)
        if self.settled or heard or self._given["encoder"] or self.plan.freeze_audio_encoder:
            rest(self.audio_encoder)

    def _rate(self) -> float:
        """A rise, then half a cosine down to a hundredth, in each phase."""
        plan, start, steps = self.plan, 0, self.plan.listen
        highest = plan.listen_rate
        if not self.listening:
            start, steps, highest = plan.listen, plan.steps, plan.rate
        done = self.step - start
        rise = min((done + 1) / min(WARM_UP, max(steps // 10, 1)), 1.0)
        return highest * rise * (0.505 + 0.495 * math.cos(math.pi * done / steps))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _new_optimizer(self, listening: bool) -> torch.optim.Optimizer:
        audio_model = list(self.generator.audio_model.parameters())
        ears = {id(p) for p in audio_model}
        groups = [(audio_model, 1.0 if listening else self._care("generator"))]
        if self._readouts:
            groups.append((list(self._readouts.parameters()), 1.0))
        if not listening:
            groups.append(([p for p in self.generator.parameters() if id(p) not in ears], 1.0))
        if not self.plan.freeze_audio_encoder:
            encoder = list(self.audio_encoder.parameters())
            groups.append((encoder, 1.0 if listening else self._care("encoder")))
        return torch.optim.AdamW(
            [{"params": parameters, "scale": scale} for parameters, scale in groups],
            weight_decay=0.01,
            fused=True,
        )

    def _care(self, given: str) -> float:
        return CARE if self._given[given] or self.plan.listen else 1.0

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- checkpoints ---------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write both networks and what a resumed training needs; `models.checkpoint` and so every
        command reads either network out of it."""
        content = {
            "generator": self.generator.state_dict(),
            "audio_encoder": self.audio_encoder.state_dict(),
            "training": {
                "plan": asdict(self.plan),
                "step": self.step,
                "losses": self.losses,
                "given": self._given,
                "recording": self._recording,
                "readouts": self._readouts.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
        }
        write_whole(path, lambda partial: torch.save(content, partial))

    def restore(self, content: dict) -> None:
        """Go on from what `save` wrote, as `read` has read it.

        Raises:
            InputError: it was trained on another recording.
        """
        kept = content["training"]
        if kept["recording"] != self._recording:
            raise InputError("another recording than the one that the training was begun with")
        self.generator.load_state_dict(content["generator"])
        self.audio_encoder.load_state_dict(content["audio_encoder"])
        self._readouts.load_state_dict(kept["readouts"])
        self.step, self.losses, self._given = kept["step"], kept["losses"], kept["given"]
        listened_last = self.plan.listen > 0 and self.step <= self.plan.listen
        self._optimizer = self._new_optimizer(listened_last)
        self._optimizer.load_state_dict(kept["optimizer"])
        if kept["scaler"]:  # none where another device needed it
            self._scaler.load_state_dict(kept["scaler"])


def read(path: Path) -> dict:
    """The content of a checkpoint that `Training.save` wrote.

    Raises:
        InputError: there is none, or it is another file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        Plan(**content["training"]["plan"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: there is nothing to resume") from None
    except Exception as error:  # torch.load has no documented ones
        raise InputError(f"{path} is not a checkpoint that python -m train wrote") from error
    return content


def mixed_precision(device: torch.device) -> torch.dtype:
    """What convolutions compute in: bfloat16 where the processor has units for it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
