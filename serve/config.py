"""What a server serves, and how: the Go server's config.yaml, and ours."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Section):
    """Files in PEM format."""

    certificate: Path
    key: Path


class Server(Section):
    """Where it listens.

    Attributes:
        host: address of both ports.
        port: of gRPC; 0 for a free one. The Go server's ":50053" is read too.
        http_port: of /metrics, /healthz and /readyz; 0 for a free one.
        max_message_size_mb: larger gRPC messages are refused.
        drain_seconds: how long running calls may go on after SIGTERM.
        tls: for both ports.
        tokens: a call must bring one of them, as "authorization: Bearer TOKEN". Empty: none.
    """

    host: str = "127.0.0.1"
    port: int = Field(50053, ge=0, le=65535)
    http_port: int = Field(8010, ge=0, le=65535)
    max_message_size_mb: int = Field(50, ge=1, le=2000)
    drain_seconds: float = Field(10, ge=0)
    tls: Tls | None = None
    tokens: tuple[str, ...] = ()


class Gpus(Section):
    """Devices, and which avatar goes to which.

    Attributes:
        count: GPUs to use; None for all that there are. 0 for the CPU.
        assignment_strategy: the next one in turn, or the one with the least memory in use.
    """

    count: int | None = Field(None, ge=0)
    assignment_strategy: Literal["round-robin", "least-loaded"] = "round-robin"


class Capacity(Section):
    """How many avatars are loaded.

    Attributes:
        max_models: at most.
        max_memory_gb: on a device, of frames, networks and buffers. None: what the device has.
        eviction_policy: which one has to go for another: the least often or least recently used.
        idle_timeout_minutes: one that is not used for so long goes. None or 0: never.
    """

    max_models: int = Field(100, ge=1)
    max_memory_gb: float | None = Field(None, gt=0)
    eviction_policy: Literal["lfu", "lru"] = "lfu"
    idle_timeout_minutes: float | None = Field(None, ge=0)


class Limits(Section):
    """What clients may use at most.

    Attributes:
        max_sessions: live sessions, of all avatars. The device may have time for fewer.
        max_session_seconds: length of a live session.
        idle_seconds: a live session without a message of its client for so long ends.
        max_renders: calls of Render at a time.
        max_requests: calls of InferBatchComposite that wait for a device at a time.
        max_speech_seconds: of a Render.
        max_upload_mb: of a media file in a Render.
        load_seconds: how long a call waits for an avatar that is being loaded.
    """

    max_sessions: int = Field(200, ge=0)
    max_session_seconds: Seconds = 3600
    idle_seconds: Seconds = 60
    max_renders: int = Field(4, ge=0)
    max_requests: int = Field(64, ge=1)
    max_speech_seconds: Seconds = 600
    max_upload_mb: float = Field(32, gt=0)
    load_seconds: Seconds = 120


class Output(Section):
    """Attributes:
    jpeg_quality: 1 to 100.
    visual_layout: order of visual_frames: reference and masked ROI of each frame (interleaved),
        or all references, then all masked ones (planar).
    audio_context_frames: frames of raw_audio before the first frame of a batch.
    """

    jpeg_quality: int = Field(75, ge=1, le=100)
    visual_layout: Literal["auto", "interleaved", "planar"] = "auto"
    audio_context_frames: int = Field(0, ge=0, le=100)


class Networks(Section):
    """Attributes:
    runtime, precision: as in `engine.Pipeline`.
    batch_size: the most frames at once; None for the device's usual one.
    """

    runtime: str | None = None
    precision: str | None = None
    batch_size: int | None = Field(None, ge=1, le=256)


class Model(Section):
    """An avatar: a folder in any of the four layouts (`avatar`), or the Go server's files.

    Attributes:
        preload: load it before the server is ready.
        preferred_gpu: -1 for the strategy's choice.
    """

    avatar: Path | None = None
    model_path: Path | None = None
    background_dir: Path | None = None
    source_video: Path | None = None
    crop_rects_path: Path | None = None
    num_frames: int | None = None
    audio_encoder: Path | None = None
    preload: bool = False
    preferred_gpu: int = Field(-1, ge=-1)


class Config(Section):
    """The whole configuration. Paths are absolute.

    Attributes:
        audio_encoder: for models that have none of their own.
    """

    server: Server = Server()
    gpus: Gpus = Gpus()
    capacity: Capacity = Capacity()
    limits: Limits = Limits()
    output: Output = Output()
    networks: Networks = Networks()
    log_level: str = "info"
    audio_encoder: Path | None = None
    models: dict[str, Model] = {}
