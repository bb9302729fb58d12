"""The flow of the data, from speech to finished frames: the same on a CPU and on a GPU."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

import kernels
from kernels import CompositeMode

from .admission import Admission, renders_that_fit
from .avatar import Avatar
from .device.batch_sizes import ENCODER_BATCH_SIZES, round_up_to
from .device.buffers import (
    RING,
    BufferPool,
    Buffers,
    Frames,
    ReadAheadBuffers,
    SpeechBuffers,
    buffer_shapes,
    ring_shapes,
    speech_shapes,
)
from .device.check import check_kernels
from .device.executor import Part
from .device.memory import Shapes
from .device.stopwatch import Stopwatch
from .errors import InputError, shortened
from .feature_ring import FeatureRing
from .forks import check_fork
from .loop import Loop, frame_numbers
from .mel import Mel
from .pcm import Speech, open_speech
from .runtime import Network, open_network
from .runtime.output_check import OutputCheck, write_ranges
from .runtime.signature import AUDIO_ENCODER, GENERATOR
from .warm_up import warm_up_speech

# Mel windows per encoder call. Larger than the frame batch, because the cost of a call is reading
# the weights.
ENCODER_BATCH = ENCODER_BATCH_SIZES[-1]
# Frame i reads features i - 9 to i + 6 (see `kernels.feature_windows`).
HISTORY = kernels.FEATURES_PER_FRAME // 2 + 1
LOOK_AHEAD = kernels.FEATURES_PER_FRAME // 2 - 2


class Pipeline:
    """Renders speech with one avatar. Any number of threads may render at once.

    On a GPU all memory but the speech's own is allocated once: buffers for `batch_size` frames, and
    a ring of three finished batches. Batches are CUDA graphs, captured when a batch of that size
    first comes, or by `warm_up`. After that a batch allocates nothing and the host waits for
    nothing. Renders that run at the same time have separate buffers.

    Args:
        avatar: also decides the device.
        batch_size: frames generated at once; by default 25 on a GPU and 8 on a CPU. The frames do
            not depend on it, except for rounding in networks that PyTorch or a GPU runs.
        runtime: "fused", "tensorrt", "onnxruntime", "openvino" or "torch"; by default the one that
            suits the avatar's networks.
        precision: of the generator on a CPU: "fp32" (the default), or "bf16", which needs OpenVINO
            and a CPU with AVX512_BF16 or AMX.
        max_renders: renders that run at a time; one more is refused when its first batch is taken.
            By default, on a CPU, as many as fit half of the available memory; on a GPU, as many as
            fit its memory.

    Raises:
        InputError: the avatar has no networks, or one cannot be opened.
        DeviceError: the GPU cannot run kernels, for example because there is no C compiler, or the
            buffers do not fit it.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        batch_size: int | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        max_renders: int | None = None,
    ):
        on_gpu = avatar.device.type == "cuda"
        self.batch_size = batch_size if batch_size is not None else 25 if on_gpu else 8
        if self.batch_size < 1:
            raise InputError(f"batch size is {batch_size}; expected at least 1")
        self.avatar, self.device = avatar, avatar.boxes.device
        if avatar.audio_encoder is None or avatar.generator is None:
            raise InputError(f"avatar {shortened(avatar.name)} was loaded without its networks")
        self._files = avatar.audio_encoder, avatar.generator
        check_kernels(self.device)  # before networks are exported and opened, which takes long
        opened = partial(open_network, device=self.device, runtime=runtime, trusted=avatar.trusted)
        self.audio_encoder = opened(AUDIO_ENCODER, avatar.audio_encoder)
        self.generator = opened(GENERATOR, avatar.generator, precision=precision)
        if max_renders is None and not on_gpu:
            max_renders = renders_that_fit(self._render_shapes(), self.batch_size, avatar)
        self._admission = Admission(max_renders)
        self._pool: BufferPool | None = None
        if avatar.frames_on_device:
            shapes = ring_shapes(self.batch_size, avatar.height, avatar.width)
            self._pool = BufferPool(
                self._render_shapes() | shapes,
                avatar.frames,
                avatar.boxes,
                avatar.masks,
                graph_bytes=self.graph_bytes,
            )

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the GPU that the buffers and the CUDA graphs captured so far take, besides the
        avatar's frames and the networks; 0 on a CPU, where each render allocates its own."""
        return self._pool.bytes if self._pool else 0

    @property
    def graph_bytes(self) -> int:
        """Bytes of the GPU that the CUDA graphs of one render take at most, once all are
        captured."""
        networks = (self.generator, self.batch_size), (self.audio_encoder, ENCODER_BATCH)
        return sum(network.graph_bytes * rows for network, rows in networks)

    def buffer_shapes(self, batch_size: int | None = None) -> Shapes:
        """Return the buffers for batches of up to this size, the pipeline's unless told."""
        return buffer_shapes(
            batch_size or self.batch_size,
            generator=self.generator.dtype,
            audio_encoder=torch.float32 if self.device.type == "cpu" else self.audio_encoder.dtype,
        )

    def _render_shapes(self, batch_size: int | None = None) -> Shapes:
        most = batch_size or self.batch_size
        return self.buffer_shapes(most) | speech_shapes(most, self.generator.dtype)

    def frame_count(self, speech: Tensor | np.ndarray | Speech) -> int:
        """Return the number of video frames in the render of (S,) samples."""
        rows = kernels.mel_rows(speech.count if isinstance(speech, Speech) else len(speech))
        return kernels.frame_count(kernels.mel_window_count(rows, float(self.avatar.fps)))

    def render(
        self,
        speech: str | os.PathLike[str] | Tensor | np.ndarray | Speech,
        *,
        loop: Loop = "pingpong",
        start_frame: int | None = None,
        mode: CompositeMode = "crop",
        skip: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Iterator[Tensor]:
        """Render the speech, a batch of frames at a time.

        Args:
            speech: an audio or video file, or a tensor or NumPy array of (S,) float32 PCM at 16
                kHz, at least 3000 samples; or what `engine.pcm.open_speech` made. A file of more
                than ten minutes is read twice, so that its memory does not grow with its length.
            loop: how the avatar's frames repeat, "pingpong" (forth and back) or "wrap".
            start_frame: number of the avatar's frame for the first video frame; by default 1 for
                "pingpong", 0 for "wrap".
            mode: how the mouth is pasted, see `kernels.composite`.
            skip: leave out that many frames at the beginning; the others are the same.
            stopwatch: adds up the times of the stages.

        Returns:
            An iterator over (n, H, W, 3) uint8 RGB tensors on the avatar's device, n at most the
            batch size. On a CPU the caller may keep and change them. On a GPU they are views into a
            ring of three batches: a batch is overwritten when the third one after it is taken, of
            this render or of one begun after it. They are ready for work on the stream that was
            current when they were taken, which must be the same for all batches of a render.
            Another stream that reads them must wait for that stream first. Before the third batch
            after them is taken, that stream must wait for the other one.

        Raises:
            InputError: the speech cannot be used, or an argument is out of range. While frames are
                taken: a network returns NaN, infinity or a constant; on a GPU this comes a batch
                or more later, at the latest after the last batch. Or `max_renders` others run: each
                from its first batch until it ends, is closed or is deleted. Or the process was
                forked after its parent had rendered, so that it lacks the parent's threads.
        """
        check_fork()
        numbers = frame_numbers(len(self.avatar), loop, start_frame)
        if mode not in kernels.COMPOSITE_MODES:
            allowed = ", ".join(kernels.COMPOSITE_MODES)
            raise InputError(f"mode is {mode!r}; expected one of: {allowed}")
        opened = open_speech(speech)
        schedule = list(islice(numbers, self.frame_count(opened)))
        if not 0 <= skip < len(schedule):
            raise InputError(f"skip is {skip}; expected 0 to {len(schedule) - 1}")
        return self._batches(opened, schedule, mode, skip, stopwatch or Stopwatch.off(self.device))

    def warm_up(self, *, mode: CompositeMode = "crop", renders: int = 1) -> None:
        """Capture all CUDA graphs and compile all kernels now, so that no batch waits for them
        later. On a CPU, do nothing.

        Call it before the first render, because it overwrites the ring. Call it before other
        threads use the GPU, because a capture fails if one of them waits for the whole GPU during
        it, for example in `torch.cuda.synchronize`. It is repeated then, but such a thread gets an
        error from CUDA.

        Args:
            mode: that of the renders to come.
            renders: how many there will be at the same time. Each needs buffers and graphs of its
                own, and all renders wait during a capture.

        Raises:
            InputError: `renders` is less than 1.
            DeviceError: the buffers or the networks' own memory do not fit the GPU.
        """
        if renders < 1:
            raise InputError(f"renders is {renders}; expected at least 1")
        if self._pool is None:
            return
        stopwatch = Stopwatch.off(self.device)
        with ExitStack() as taken:
            for buffers in [taken.enter_context(self._pool.take()) for _ in range(renders)]:
                taken.enter_context(buffers.executor.on_current_stream())
                for size in reversed(ENCODER_BATCH_SIZES):
                    self.encode(buffers, size, stopwatch)
                for size in reversed(buffers.batch_sizes):  # the smaller ones fit its memory
                    for _ in range(RING):
                        frames = buffers.next_slot(size)
                        self.finish(buffers, frames, size, mode, stopwatch)
                # After the captures, which free pinned memory that is not in use.
                warm_up_speech(buffers, float(self.avatar.fps))

    def stats(self, *, seconds: float = 4.0) -> dict[str, float]:
        """Return the device seconds that each stage takes for one video frame of a long render.

        "windows" is everything between `log_mel` and the networks: mel windows, feature windows,
        copies of features and of places. The measurement renders that many seconds of noise
        twice, because the first render compiles and captures.
        """
        noise = torch.randn(int(seconds * kernels.SAMPLE_RATE)).clamp_(-1, 1) / 4
        for stopwatch in (Stopwatch(self.device), Stopwatch(self.device)):
            frames = sum(map(len, self.render(noise, stopwatch=stopwatch)))
        return {name: spent / frames for name, spent in stopwatch.seconds().items()}

    def _batches(
        self,
        speech: Speech,
        numbers: list[int],
        mode: CompositeMode,
        skip: int,
        stopwatch: Stopwatch,
    ) -> Iterator[Tensor]:
        """Yield finished frames: PCM -> mel -> features -> generated mouths -> frames."""
        total, fps = len(numbers), float(self.avatar.fps)
        feature_count = total - 2  # the first and the last one count twice
        start = _first_feature(skip)
        encoder_check, generator_check = self.checks(total, skip=skip)
        with (
            self._admission.admit(),
            self._take_buffers(total) as buffers,
            Mel.open(
                speech, fps, self.device, upload=buffers.executor.upload, start=start,
                most=ENCODER_BATCH, stopwatch=stopwatch,
            ) as mel,
        ):  # fmt: skip
            tensors, executor = buffers.tensors, buffers.executor
            with executor.on_current_stream():
                buffers.start(numbers[skip:], skip)
                features = FeatureRing(tensors["features"][0], first=start, count=feature_count)
            for first in range(skip, total, self.batch_size):
                check_fork()  # the batches before may have been taken in the parent process
                n = min(self.batch_size, total - first)
                with executor.on_current_stream():
                    needed = min(first + n + LOOK_AHEAD, feature_count)
                    while features.stop < needed:
                        # The first call takes only the windows that the first frames need, rounded
                        # up to a size that the buffers run. Later calls take as many as they can.
                        wanted = ENCODER_BATCH
                        if features.stop == start:
                            wanted = min(needed - start, ENCODER_BATCH)
                        call = round_up_to(buffers.encoder_batch_sizes, wanted)
                        m = min(call, feature_count - features.stop)
                        mel.windows(features.stop, m, out=tensors["windows"][:m])
                        new, ranges = self.encode(buffers, m, stopwatch)
                        encoder_check.add(ranges)
                        with stopwatch.stage("windows"):
                            features.append(new)
                    frames = buffers.next_frames(n, stopwatch)
                    finished, ranges = self.finish(buffers, frames, n, mode, stopwatch)
                    generator_check.add(ranges)
                yield finished
            generator_check.look(wait=True)  # and at the encoder's, which it was given

    def encode(self, buffers: Buffers, m: int, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Run the audio encoder on the first `m` windows in the buffers.

        Returns:
            (m, 512) features, and the smallest and the largest value of each, (m, 2).
        """
        size = buffers.padded(m)
        windows, encoded, ranges = (
            buffers.tensors[name][:size] for name in ("windows", "encoded", "encoded ranges")
        )
        part = _network("audio encoder", self.audio_encoder, [windows], encoded, ranges)
        buffers.executor.run((size,), [part], stopwatch)
        return encoded[:m], ranges[:m]

    def finish(
        self,
        buffers: Buffers,
        batch: Frames,
        n: int,
        mode: CompositeMode,
        stopwatch: Stopwatch,
        *,
        windows: bool = True,
        face_input: bool = True,
        generate: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate mouths for the first `n` places in the buffers, and paste them into the batch's
        frames.

        Args:
            windows: False if the feature windows are in the buffer "audio" already.
            face_input: False if the generator's pictures are in the buffer "inputs" already. Only
                with mode "direct", because the face crops are not made either.
            generate: writes mouths into the buffer "generated" in place of the generator, which
                needs no feature windows.

        Returns:
            n finished frames, (n, H, W, 3) for RGB, and the smallest and the largest value that was
            generated for each channel of each, (n, 2, 3).
        """
        size = len(batch.index)
        audio, inputs, crops, generated, ranges = (
            buffers.tensors[name][:size]
            for name in ("audio", "inputs", "crops", "generated", "generated ranges")
        )
        frames, boxes, index, finished = batch.frames, batch.boxes, batch.index, batch.finished
        parts = []
        if windows and generate is None:
            features, places = buffers.tensors["features"], buffers.tensors["places"][1:, :size]
            gather = partial(kernels.ring_feature_windows, features, *places, out=audio)
            parts.append(Part("windows", gather))
        if face_input:
            cut = partial(kernels.face_input, frames, boxes, index, out=(inputs, crops))
            parts.append(Part("face_input", cut))
        if generate is None:
            generate = _network("generator", self.generator, [inputs, audio], generated, ranges)
        paste = partial(
            kernels.composite, frames, boxes, index, crops, generated,
            mode=mode, format=batch.format, masks=batch.masks, out=finished,
        )  # fmt: skip
        parts += [generate, Part("composite", paste, key=(batch.slot, mode))]
        buffers.executor.run((size,), parts, stopwatch)
        return finished[:n], ranges[:n]

    def _take_buffers(self, total: int) -> AbstractContextManager[SpeechBuffers]:
        """Return the context in which a render of `total` frames has buffers."""
        if self._pool is not None:
            return self._pool.take()
        shapes = self._render_shapes(min(self.batch_size, total))
        return ReadAheadBuffers.open(shapes, self.avatar.masked_batch)

    def checks(
        self, total: int | None, features: int | None = None, *, skip: int = 0
    ) -> tuple[OutputCheck, OutputCheck]:
        """Return the checks of both networks' outputs in a render of `total` frames without the
        first `skip`, or in live sessions without end (None). Unless `features` says how many there
        are, they are those that such a render needs."""
        encoder, generator = self._files
        frames = None
        if total is not None:
            frames = total - skip
            if features is None:
                features = total - 2 - _first_feature(skip)
        first = OutputCheck(AUDIO_ENCODER, self.audio_encoder, encoder, features, self.device)
        second = OutputCheck(
            GENERATOR, self.generator, generator, frames, self.device, before=first
        )
        return first, second


def _first_feature(skip: int) -> int:
    """Return the first feature that frames from `skip` on read."""
    return max(skip - HISTORY, 0)


def _network(
    name: str, network: Network, inputs: list[Tensor], out: Tensor, ranges: Tensor
) -> Part:
    """Return the part that calls a network and measures what it returns, see `write_ranges`."""

    def work() -> None:
        network(*inputs, out=out)
        write_ranges(out, ranges)

    return Part(name, work, capturable=network.capturable, stream=network.stream)
