"""Load an avatar for clients: its frames, its networks, its live sessions and its batches."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import Avatar
from engine.avatar.folder import Folder
from engine.avatar.layouts import find_layout
from engine.batches import SharedBatches
from engine.errors import DeviceFull, InputError, one_line
from engine.live import Live, Scheduler

from .config import Config, Model
from .devices import device_name

# Onto a GPU avatars are loaded one after another, so that the memory of each can be told.
_loading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedAvatar:
    """An avatar that clients may use.

    Attributes:
        live: its live sessions, made by its device's scheduler.
        renders: those that renders are made by. The same, but for the precision: where live
            sessions have bfloat16 because nothing else is configured, renders have float32.
        batches: what makes batches of frames for several clients.
        gpu: number of its GPU; 0 on a CPU.
        bytes: memory of the device that it takes: frames, networks and buffers. Networks that
            another avatar had opened before count for that one only.
    """

    name: str
    avatar: Avatar
    live: Live
    renders: Live
    batches: SharedBatches
    gpu: int
    bytes: int

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread of its batches; None if it runs."""
        return self.batches.failure

    def close(self) -> None:
        """End its sessions and its batches. Its memory is free when nothing refers to it."""
        with ExitStack() as closing:
            for live in {self.live, self.renders}:
                closing.callback(live.close)
            closing.callback(self.batches.close)


def load_avatar(
    name: str,
    model: Model,
    config: Config,
    gpu: int,
    scheduler: Scheduler,
    *,
    made: Callable[[int], object] = lambda frames: None,
) -> ServedAvatar:
    """Load an avatar of the configuration. It is warm when this returns.

    The operator names the files, so the networks are trusted: ONNX files and TensorRT plans are
    programs. An avatar that clients upload must be opened with `trusted=False`, which takes
    checkpoints only, and never from files of which they give the paths.

    Args:
        name: its name, for messages.
        gpu: number of the GPU; ignored where the server uses the CPU.
        scheduler: of this device; it runs.
        made: as in `SharedBatches`.

    Raises:
        InputError: a file is missing, damaged or does not fit the others.
        DeviceFull: the device has too little free memory.
    """
    device = torch.device(device_name(config, gpu))
    if device.type == "cpu":
        return _load(name, model, config, gpu, scheduler, device, lambda: 0, made)
    with _loading[str(device)], torch.cuda.device(device):
        torch.cuda.empty_cache()  # what PyTorch keeps of others would hide what this one takes
        before = torch.cuda.mem_get_info(device)[0]
        try:
            return _load(
                name,
                model,
                config,
                gpu,
                scheduler,
                device,
                lambda: before - torch.cuda.mem_get_info(device)[0],
                made,
            )
        except torch.OutOfMemoryError as error:
            raise DeviceFull(f"model {name!r} does not fit {device}: {one_line(error)}") from None


def _load(
    name: str,
    model: Model,
    config: Config,
    gpu: int,
    scheduler: Scheduler,
    device: torch.device,
    taken: Callable[[], int],
    made: Callable[[int], object],
) -> ServedAvatar:
    avatar = _open(name, model, config, device)
    networks = config.networks

    def sessions(precision: str | None) -> Live:
        return Live(
            avatar,
            batch_size=networks.batch_size,
            runtime=networks.runtime,
            precision=precision,
            scheduler=scheduler,
        )

    with ExitStack() as opened:
        live = renders = opened.enter_context(sessions(networks.precision))
        if networks.precision is None and live.precision == "bf16":
            renders = opened.enter_context(sessions("fp32"))
        batches = SharedBatches(renders.pipeline, quality=config.output.jpeg_quality, made=made)
        opened.pop_all()  # they stay open
    size = avatar.frame_bytes + live.buffer_bytes + batches.buffer_bytes
    if device.type == "cpu":
        size += sum(path.stat().st_size for path in _network_files(avatar))
    # What other threads free meanwhile must not count for it.
    return ServedAvatar(name, avatar, live, renders, batches, gpu, max(taken(), size))


def _open(name: str, model: Model, config: Config, device: torch.device) -> Avatar:
    """Open the avatar of a model: a folder in any layout, or the Go server's files."""
    files = {
        key: value
        for key in ("background_dir", "source_video", "crop_rects_path")
        if (value := getattr(model, key)) is not None
    }
    if model.avatar is not None:
        if files:
            raise InputError(
                f"model {name!r} has avatar and {next(iter(files))}; expected one of them"
            )
        encoder = model.audio_encoder
        # The folder's own comes before the one for all.
        if encoder is None and find_layout(Folder(model.avatar)).audio_encoder is None:
            encoder = config.audio_encoder
        return Avatar.load(
            model.avatar,
            device=device,
            generator=model.model_path,
            audio_encoder=encoder,
            parsing=model.parsing,
            count=model.num_frames,
        )
    if model.parsing:
        raise InputError(f"model {name!r} has parsing, but no avatar; expected avatar: DIR with it")
    encoder = model.audio_encoder or config.audio_encoder
    if encoder is None:
        raise InputError(
            f"model {name!r} has no audio encoder; expected audio_encoder in the configuration, or "
            "audio_encoder.onnx beside it"
        )
    return Avatar.from_files(
        name,
        frames=_frames(name, model),
        boxes=_given(name, "crop_rects_path", model.crop_rects_path),
        generator=_given(name, "model_path", model.model_path),
        audio_encoder=encoder,
        device=device,
        count=model.num_frames,
    )


def _frames(name: str, model: Model) -> Path:
    """Return where the full frames are: in the folder, or in the video if there is no folder."""
    folder, video = model.background_dir, model.source_video
    if folder is None:
        return _given(name, "background_dir or source_video", video)
    if video is not None and not folder.is_dir():
        _log.warning("model %r: %s is not a folder; the frames of %s are used", name, folder, video)
        return video
    return folder


def _given(name: str, key: str, path: Path | None) -> Path:
    if path is None:
        raise InputError(f"model {name!r} has no {key}; expected it, or avatar (a folder)")
    return path


def _network_files(avatar: Avatar) -> list[Path]:
    return [path for path in (avatar.generator, avatar.audio_encoder) if path is not None]
