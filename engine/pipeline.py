"""The data flow, once."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from itertools import cycle, islice

import torch
from torch import Tensor

import kernels

from .avatar import Avatar
from .device.arena import rung
from .device.lane import ENCODER_RUNGS, RING, Lane, Lanes, Part, Stage, lane_shapes
from .device.stopwatch import Stopwatch
from .errors import InputError
from .runtime import Network, open_network
from .runtime.output_check import OutputCheck, write_ranges
from .runtime.signature import AUDIO_ENCODER, GENERATOR

LOOPS = ("pingpong", "wrap")
ENCODER_BATCH = ENCODER_RUNGS[-1]  # more than frames: the encoder's weights outweigh its windows
LOOK_AHEAD = 7  # how far the features go that a video frame sees beyond its own number


class Pipeline:
    """Renders speech with one avatar. Any number of threads may render at once.

    On a GPU all memory but the speech's own is taken once: buffers for `batch_size` frames, and a
    ring of finished ones. Batches are CUDA graphs, recorded when a batch of that size first comes
    or by `warm_up`; once they are, a batch allocates nothing and the host waits for nothing.
    Every render that runs at the same time as others has buffers of its own.

    Args:
        avatar: decides the device too.
        batch_size: frames generated at once, 25 on a GPU and 8 on a CPU unless told. The frames do
            not depend on it, but for rounding in networks that PyTorch or a GPU runs.
        runtime: "tensorrt", "onnxruntime", "openvino" or "torch"; by default what suits the
            avatar's networks.
        precision: of the generator on a CPU: "fp32" (the default), or "bf16", which needs OpenVINO
            and a CPU with AVX512_BF16 or AMX.

    Raises:
        InputError: a network cannot be opened.
        DeviceError: the buffers do not fit the GPU.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        batch_size: int | None = None,
        runtime: str | None = None,
        precision: str | None = None,
    ):
        on_gpu = avatar.device.type == "cuda"
        self.batch_size = batch_size if batch_size is not None else 25 if on_gpu else 8
        if self.batch_size < 1:
            raise InputError(f"batch size is {batch_size}, it must be at least 1")
        self.avatar, self.device = avatar, avatar.boxes.device
        network = {"device": self.device, "runtime": runtime}
        self.audio_encoder = open_network(AUDIO_ENCODER, avatar.audio_encoder, **network)
        self.generator = open_network(GENERATOR, avatar.generator, **network, precision=precision)
        self._lanes = None
        if avatar.resident:
            picture = avatar.height, avatar.width, self.generator.dtype
            shapes = lane_shapes(self.batch_size, *picture, self.audio_encoder.dtype)
            self._lanes = Lanes(shapes, self.device)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the GPU that the buffers take, besides the avatar's frames and the networks; 0
        on a CPU, where a render has its own."""
        return self._lanes.bytes if self._lanes else 0

    def frame_count(self, speech: Tensor) -> int:
        """Video frames in the render of (S,) samples."""
        rows = kernels.mel_rows(speech.numel())
        return kernels.frame_count(kernels.mel_window_count(rows, float(self.avatar.fps)))

    def render(
        self,
        speech: str | os.PathLike | Tensor,
        *,
        loop: str = "pingpong",
        start_frame: int | None = None,
        mode: str = "crop",
        stopwatch: Stopwatch | None = None,
    ) -> Iterator[Tensor]:
        """Finished frames of the speech, a batch at a time.

        Args:
            speech: an audio or video file, or (S,) float32 PCM at 16 kHz, at least 3000 samples.
            loop: how the avatar's frames repeat, "pingpong" (forth and back) or "wrap".
            start_frame: which of them comes first; by default 1 for "pingpong", 0 for "wrap".
            mode: how the mouth is pasted, see `kernels.composite`.
            stopwatch: adds up the times of the stages.

        Returns:
            An iterator over (n, H, W, 3) uint8 RGB tensors on the avatar's device, n at most the
            batch size. On a CPU they are the caller's to keep. On a GPU they are a ring's: a batch
            is valid while two more are taken, of this render and of one begun after it, and the
            third overwrites it. They are ready for work on the stream that was current when they
            were taken, the same for all batches of a render; who reads them on another stream
            makes that one wait for this first, and this one for that before the third is taken.

        Raises:
            InputError: the speech cannot be used, or an argument is out of range. While frames are
                taken: a network returns NaN, infinity or a constant; on a GPU this comes a batch
                or more later, at the latest after the last batch.
        """
        numbers = frame_numbers(len(self.avatar), loop, start_frame)
        if mode not in kernels.COMPOSITE_MODES:
            allowed = ", ".join(kernels.COMPOSITE_MODES)
            raise InputError(f"mode is {mode!r}, it must be one of {allowed}")
        stages = self._on_cpu if self._lanes is None else self._on_gpu
        return stages(load_pcm(speech), numbers, mode, stopwatch)

    def warm_up(self, *, mode: str = "crop", renders: int = 1) -> None:
        """Record all graphs now, so that no batch waits for one later. On a CPU, nothing.

        Before the first render: what a ring still holds is overwritten.

        Args:
            mode: of the renders to come.
            renders: how many there will be at the same time. Each needs buffers and graphs of its
                own, and all renders wait while one records.

        Raises:
            InputError: no renders.
            DeviceError: the buffers or the networks' own memory do not fit the GPU.
        """
        if renders < 1:
            raise InputError(f"renders is {renders}, it must be at least 1")
        if self._lanes is None:
            return
        with ExitStack() as taken:
            for lane in [taken.enter_context(self._lanes.take()) for _ in range(renders)]:
                taken.enter_context(lane.turn())
                for size in reversed(ENCODER_RUNGS):
                    self._encode(lane, size, None)
                for size in reversed(lane.sizes):  # the largest first: the others fit its memory
                    for _ in range(RING):
                        self._finish(lane, size, mode, None)

    def stats(self, *, seconds: float = 4.0) -> dict[str, float]:
        """Seconds that each stage takes, of the device, for one video frame of a long render.

        "windows" is all between the networks and log_mel: mel windows, feature windows, copies.
        Measured now, by rendering that many seconds of noise twice: no render pays for it.
        """
        noise = torch.randn(int(seconds * kernels.SAMPLE_RATE)).clamp_(-1, 1) / 4
        for stopwatch in (Stopwatch(self.device), Stopwatch(self.device)):  # the second one counts
            frames = sum(map(len, self.render(noise, stopwatch=stopwatch)))
        return {name: spent / frames for name, spent in stopwatch.seconds().items()}

    def _on_gpu(
        self, pcm: Tensor, numbers: Iterator[int], mode: str, stopwatch: Stopwatch | None
    ) -> Iterator[Tensor]:
        total, fps, most = self.frame_count(pcm), float(self.avatar.fps), self.batch_size
        stage = stopwatch.stage if stopwatch else None
        schedule = torch.tensor(list(islice(numbers, total)))
        schedule = torch.cat([schedule, schedule[-1:].expand(most - 1)])  # fills the last batch up
        encoded = 0
        encoder_check, generator_check = self._checks(total)
        with self._lanes.take() as lane:
            with lane.turn():
                pcm, schedule = lane.upload(pcm, schedule)
                precision = {"dtype": self.generator.dtype, "device": self.device}
                features = torch.empty(total - 2, kernels.FEATURE_DIM, **precision)
                with lane.measured("log_mel", stage):
                    mel = kernels.log_mel(pcm)
            for first in range(0, total, most):
                n = min(most, total - first)
                with lane.turn():
                    needed = min(first + n + LOOK_AHEAD, len(features))
                    while encoded < needed:
                        # the first frames wait for no more windows than they need
                        m = ENCODER_BATCH if encoded else min(needed, ENCODER_BATCH)
                        m = min(rung(ENCODER_RUNGS, m), len(features) - encoded)
                        with lane.measured("windows", stage):
                            windows = lane.windows[:m]
                            kernels.mel_windows(mel, fps=fps, start=encoded, count=m, out=windows)
                        made = self._encode(lane, m, stage)
                        encoder_check.add(*(bound[:m] for bound in lane.encoded_range))
                        with lane.measured("windows", stage):
                            features[encoded : encoded + m] = made
                        encoded += m
                    with lane.measured("windows", stage):
                        kernels.feature_windows(features, start=first, count=n, out=lane.audio[:n])
                        lane.index.copy_(schedule[first : first + most])
                    finished = self._finish(lane, n, mode, stage)
                    generator_check.add(*(bound[:n] for bound in lane.generated_range))
                yield finished
            generator_check.look(wait=True)

    def _checks(self, total: int) -> tuple[OutputCheck, OutputCheck]:
        """For the features and the frames of a render of that many frames."""
        files = self.avatar.audio_encoder, self.avatar.generator
        first = OutputCheck(AUDIO_ENCODER, self.audio_encoder, files[0], total - 2, self.device)
        second = OutputCheck(GENERATOR, self.generator, files[1], total, self.device, before=first)
        return first, second

    def _encode(self, lane: Lane, m: int, stage: Stage | None) -> Tensor:
        """The audio encoder, on the lane's first m windows: (m, 512)."""
        size = rung(ENCODER_RUNGS, m)
        part = _network(
            "audio encoder",
            self.audio_encoder,
            [lane.windows[:size]],
            lane.encoded[:size],
            [bound[:size] for bound in lane.encoded_range],
        )
        lane.run((size,), [part], stage)
        return lane.encoded[:m]

    def _finish(self, lane: Lane, n: int, mode: str, stage: Stage | None) -> Tensor:
        """From the lane's first n indices and feature windows to finished frames."""
        size = rung(lane.sizes, n)
        slot, ring = lane.next_slot()
        frames, boxes = self.avatar.frames, self.avatar.boxes
        index, audio, finished = lane.index[:size], lane.audio[:size], ring[:size]
        inputs, crops, generated = lane.inputs[:size], lane.crops[:size], lane.generated[:size]
        ranges = [bound[:size] for bound in lane.generated_range]
        parts = [
            Part(
                "face_input",
                lambda: kernels.face_input(frames, boxes, index, out=(inputs, crops)),
            ),
            _network("generator", self.generator, [inputs, audio], generated, ranges),
            Part(
                "composite",
                lambda: kernels.composite(
                    frames, boxes, index, crops, generated, mode=mode, out=finished
                ),
            ),
        ]
        lane.run((size, slot, mode), parts, stage)
        return ring[:n]

    def _on_cpu(
        self, pcm: Tensor, numbers: Iterator[int], mode: str, stopwatch: Stopwatch | None
    ) -> Iterator[Tensor]:
        total, fps = self.frame_count(pcm), float(self.avatar.fps)
        stage = stopwatch.stage if stopwatch else lambda *_, **__: nullcontext()
        most = min(self.batch_size, total)
        roi = kernels.ROI_SIZE, kernels.ROI_SIZE
        picture = {"dtype": self.generator.dtype, "device": self.device}
        inputs = torch.empty(most, 6, *roi, **picture)
        generated = torch.empty(most, 3, *roi, **picture)
        crops = torch.empty(most, kernels.CROP_SIZE, kernels.CROP_SIZE, 3, dtype=torch.uint8).to(
            self.device
        )
        features = torch.empty(total - 2, kernels.FEATURE_DIM, device=self.device)
        encoded = 0
        encoder_check, generator_check = self._checks(total)

        with stage("log_mel"):
            mel = kernels.log_mel(pcm.to(self.device))
        numbers = islice(numbers, total)
        with ThreadPoolExecutor(1, "viseme-frames") as reader:
            ahead = reader.submit(self.avatar.batch, list(islice(numbers, most)))
            for first in range(0, total, most):
                n = min(most, total - first)

                with stage("audio encoder"):
                    while encoded < min(first + n + LOOK_AHEAD, len(features)):
                        m = min(ENCODER_BATCH, len(features) - encoded)
                        windows = kernels.mel_windows(mel, fps=fps, start=encoded, count=m)
                        made = features[encoded : encoded + m]
                        self.audio_encoder(windows, out=made)
                        encoder_check.measure(made)
                        encoded += m
                    audio = kernels.feature_windows(features, start=first, count=n)
                with stage("frames", host=True):
                    frames, boxes, index = ahead.result()
                with stage("face_input"):
                    kernels.face_input(frames, boxes, index, out=(inputs[:n], crops[:n]))
                # the next frames are read while the generator runs, which is long enough
                ahead = reader.submit(self.avatar.batch, list(islice(numbers, most)))
                with stage("generator"):
                    self.generator(inputs[:n], audio, out=generated[:n])
                    generator_check.measure(generated[:n])
                with stage("composite"):
                    finished = kernels.composite(
                        frames, boxes, index, crops[:n], generated[:n],
                        mode=mode, out=frames,
                    )  # fmt: skip
                yield finished


def _network(
    name: str, network: Network, inputs: list[Tensor], out: Tensor, ranges: list[Tensor]
) -> Part:
    """A network's call, and the ranges of what it returns."""

    def work() -> None:
        network(*inputs, out=out)
        write_ranges(out, *ranges)

    return Part(name, work, record=network.recordable, stream=network.stream)


def load_pcm(speech: str | os.PathLike | Tensor, *, track: int | None = None) -> Tensor:
    """Speech that can be rendered, out of a file or given as PCM: (S,) float32 at 16 kHz.

    Args:
        track: which audio track of a file, as in `read_speech`.

    Raises:
        InputError: it cannot be read, is shorter than one mel window (3000 samples), or has a
            sample that is not finite.
    """
    name = "speech" if isinstance(speech, Tensor) else speech
    if isinstance(speech, Tensor):
        pcm = speech
    else:
        from .media.speech import read_speech  # here: who brings PCM needs no FFmpeg

        pcm = read_speech(speech, track=track)
    if pcm.ndim != 1 or pcm.dtype != torch.float32:
        raise InputError(f"{name} is {tuple(pcm.shape)} {pcm.dtype}, it must be (S,) torch.float32")
    if pcm.numel() < kernels.MIN_SAMPLES:
        raise InputError(
            f"{name} is too short: {pcm.numel()} samples at 16 kHz "
            f"({pcm.numel() / kernels.SAMPLE_RATE:.3f} s), at least {kernels.MIN_SAMPLES} "
            f"({kernels.MIN_SAMPLES / kernels.SAMPLE_RATE:.2f} s) are needed"
        )
    finite = torch.isfinite(pcm)
    if not finite.all():
        sample = int((~finite).nonzero()[0])
        raise InputError(f"{name}: sample {sample} is {pcm[sample]}, samples must be finite")
    return pcm


def frame_numbers(count: int, loop: str = "pingpong", start: int | None = None) -> Iterator[int]:
    """Which of an avatar's `count` frames goes with each video frame, without end.

    Args:
        loop: "pingpong": start, start + 1, ..., F-1, F-2, ..., 0, 1, ...; "wrap": start,
            start + 1, ... modulo F.
        start: by default 1 for "pingpong" (0 where there is but one frame), 0 for "wrap".

    Raises:
        InputError: another loop, or a start that is not one of the frames.
    """
    if loop not in LOOPS:
        raise InputError(f"loop is {loop!r}, it must be one of {', '.join(LOOPS)}")
    if start is None:
        start = min(1, count - 1) if loop == "pingpong" else 0
    if not 0 <= start < count:
        raise InputError(f"start frame is {start}, it must be 0 to {count - 1}")
    back = range(count - 2, 0, -1) if loop == "pingpong" else ()
    return islice(cycle([*range(count), *back]), start, None)
