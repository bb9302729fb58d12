"""What a server serves, and how: the Go server's config.yaml, and ours."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.errors import InputError, shortened

from .config_file import ConfigFile, check_name, validated
from .tokens import tokens_of_environment, tokens_of_file
from .yaml_file import Keys

DEMO = Path(__file__).parents[1] / "examples" / "demo"

MOST_CONTEXT = 100  # frames of audio before a batch's first frame
Seconds = Annotated[float, Field(gt=0, le=1e7)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tls(Section):
    """Files in PEM format."""

    certificate: Path
    key: Path


class Server(Section):
    """Where it listens.

    Attributes:
        host: address of both ports.
        port: of gRPC; 0 for a free one. The Go server's ":50053" is read too.
        http_port: of the page, WebRTC's and WebSockets' addresses, /metrics, /healthz and
            /readyz; 0 for a free one.
        max_message_size_mb: larger gRPC messages are refused.
        drain_seconds: how long running calls may go on after SIGTERM.
        tls: for both ports.
        tokens: a call must bring one of them, as "authorization: Bearer TOKEN". Empty: none.
    """

    host: str = "127.0.0.1"
    port: int = Field(50053, ge=0, le=65535)
    http_port: int = Field(8010, ge=0, le=65535)
    max_message_size_mb: int = Field(50, ge=1, le=2000)
    drain_seconds: float = Field(10, ge=0, le=1e5)
    tls: Tls | None = None
    tokens: tuple[str, ...] = Field((), repr=False)


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
    audio_context_frames: frames of raw_audio before the first frame of a batch, unless a request
        says how many; at most as many as the number of that frame.
    """

    jpeg_quality: int = Field(75, ge=1, le=100)
    visual_layout: Literal["auto", "interleaved", "planar"] = "auto"
    audio_context_frames: int = Field(0, ge=0, le=MOST_CONTEXT)


class IceServer(Section):
    """A STUN or TURN server, as browsers' RTCIceServer.

    Attributes:
        urls: such as "stun:stun.example.org:3478" or "turn:turn.example.org:3478?transport=udp".
        username, credential: of a TURN server. Browsers that open the page are told both.
    """

    urls: tuple[str, ...] = Field(min_length=1, max_length=10)
    username: str | None = None
    credential: str | None = Field(None, repr=False)


class Voice(Section):
    """Text to speech: espeak-ng of this machine, or a service with the interface of OpenAI's
    /v1/audio/speech.

    Attributes:
        url: of the service, such as "http://127.0.0.1:8880/v1/audio/speech". None: espeak-ng.
        model: as the service calls it.
        voice: as the service or espeak-ng calls it; None for its usual one.
        key_variable: the environment variable that has the service's key. None: it needs none.
        max_characters: of one text.
    """

    url: str | None = None
    model: str = "tts-1"
    voice: str | None = None
    key_variable: str | None = None
    max_characters: int = Field(2000, ge=1, le=100_000)


class Web(Section):
    """What browsers and players use.

    Attributes:
        voice: "espeak", the URL of a service, or a section. None: no text is spoken.
        ice_servers: for the server's and the browsers' side of WebRTC.
        origins: web pages of these origins may use the server, such as "https://example.org", or
            "*" for all; the server's own page may anyway.
        livekit_urls: LiveKit servers whose rooms avatars may join, such as
            "wss://livekit.example.org"; unless given, one on this machine, at its usual port.
        recordings: folder for recordings of sessions. None: nothing is recorded.
        max_recording_mb: a recording ends when it is as large.
        bitrate_kbps: of a picture at most; it falls with what the network carries.
    """

    voice: Voice | None = None
    ice_servers: tuple[IceServer, ...] = Field((), max_length=10)
    origins: tuple[str, ...] = Field((), max_length=100)
    livekit_urls: tuple[str, ...] = Field(
        ("ws://localhost:7880", "ws://127.0.0.1:7880"), max_length=100
    )
    recordings: Path | None = None
    max_recording_mb: float = Field(1000, gt=0)
    bitrate_kbps: int = Field(4000, ge=100, le=100_000)

    @field_validator("voice", mode="before")
    @classmethod
    def _short_voice(cls, value: object) -> object:
        """Read "espeak", "none" and a URL as the section that they stand for."""
        if value in ("espeak", "none"):
            return Voice() if value == "espeak" else None
        return {"url": value} if isinstance(value, str) else value


class Networks(Section):
    """Attributes:
    runtime: as in `engine.Pipeline`.
    precision: of the generator on a CPU. Unless told, bf16 for live sessions where the CPU can, and
        fp32 for renders and batches.
    batch_size: the most frames at once; None for the device's usual one.
    """

    runtime: str | None = None
    precision: str | None = None
    batch_size: int | None = Field(None, ge=1, le=256)


class Cluster(Section):
    """Replicas of the server, one a GPU, which `python -m serve.cluster` starts through Ray Serve.

    Attributes:
        address: of a Ray cluster that runs, such as "auto" or "ray://HOST:10001"; None starts one
            on this machine.
        replicas: at least; None for one for each GPU of the cluster, or 1 on a CPU.
        max_replicas: at most, as sessions come and go; None for as many as `replicas`.
        target_sessions: of a replica, above which there should be more replicas.
        max_queued: calls that wait at each proxy while all replicas are full; more are refused.
        cpus: cores of a node that a replica takes.
        surge_percent: replicas that an update may start, in percent of all, before it stops old
            ones; they need GPUs that are free. 0: old ones stop first.
        metrics_port: where Ray exports the metrics of all replicas of this machine, for a cluster
            that is started here; None for any. Of another cluster, `ray start` says it.
    """

    address: str | None = None
    replicas: int | None = Field(None, ge=1, le=10_000)
    max_replicas: int | None = Field(None, ge=1, le=10_000)
    target_sessions: float = Field(100, gt=0)
    max_queued: int = Field(64, ge=1)
    cpus: float = Field(1, ge=0)
    surge_percent: int = Field(100, ge=0, le=100)
    metrics_port: int | None = Field(None, ge=1, le=65_535)


class Model(Section):
    """An avatar: a folder in any of the four layouts (`avatar`), or the Go server's files.

    Attributes:
        parsing: use the masks in the folder's `parsing/`.
        preload: load it before the server is ready.
        preferred_gpu: -1 for the strategy's choice.
    """

    avatar: Path | None = None
    model_path: Path | None = None
    background_dir: Path | None = None
    source_video: Path | None = None
    crop_rects_path: Path | None = None
    num_frames: int | None = Field(None, ge=1)
    audio_encoder: Path | None = None
    parsing: bool = False
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
    web: Web = Web()
    cluster: Cluster = Cluster()
    log_level: str = "info"
    audio_encoder: Path | None = None
    models: dict[str, Model] = {}


def load(
    path: Path | None,
    *,
    avatars: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    http_port: int | None = None,
    device: str | None = None,
    gpus: int | None = None,
) -> Config:
    """Read a configuration, and apply a command's options.

    Keys of the Go server's file that mean nothing here are logged, in one line.

    Args:
        path: a YAML file. None serves the avatars that are named, or else the demo of a checkout.
        avatars: more to serve, NAME=DIR each. They are loaded before the server is ready.
        host, port, http_port: instead of the file's.
        device: "cpu", or "cuda" for the GPUs that the file names, or all. None: as in the file, or
            the GPUs that there are, or the CPU.
        gpus: GPUs that there are at most; None for those of this machine.

    Returns:
        The configuration, with the number of GPUs and absolute paths of files that exist.

    Raises:
        InputError: a mistake in the file, with its place, or in an option.
    """
    if path is None:
        # espeak-ng is there to try things out, where it is installed
        voice = Voice() if find_spec("espeakng_loader") else None
        file, config = None, Config(web=Web(voice=voice))
    else:
        file = ConfigFile(path)
        config = file.config(Config, Model)
    models = {**config.models}
    for option in avatars:
        name, model = _avatar(option)
        if name in models:
            raise InputError(f"--avatar {shortened(option)}: {name} is there already")
        models[name] = model
    if path is None and not models and DEMO.is_dir():
        models["demo"] = Model(avatar=DEMO, preload=True)
    if not models:
        raise InputError("there is no avatar to serve; expected --avatar NAME=DIR, or CONFIG.yaml")
    there = torch.cuda.device_count() if gpus is None else gpus
    used = config.gpus.model_copy(update={"count": _gpus(config.gpus.count, device, file, there)})
    options = {"host": host, "port": port, "http_port": http_port}
    given = {key: value for key, value in options.items() if value is not None}
    server = validated(Server, {**config.server.model_dump(), **given}, _option_error)
    server = server.model_copy(update={"tokens": _tokens(server, file)})
    return config.model_copy(update={"server": server, "gpus": used, "models": models})


def _avatar(option: str) -> tuple[str, Model]:
    """Return the name and the model of --avatar NAME=DIR."""
    name, equals, folder = option.partition("=")
    if not equals or not folder:
        raise InputError(f"--avatar is {shortened(option)}; expected NAME=DIR")
    check_name(name, lambda message: InputError(f"--avatar {shortened(option)}: {message}"))
    path = Path(os.path.abspath(folder))
    if not path.is_dir():
        raise InputError(f"--avatar {shortened(option)}: {path} is no folder")
    return name, Model(avatar=path, preload=True)


def _gpus(configured: int | None, device: str | None, file: ConfigFile | None, there: int) -> int:
    """Return how many GPUs to use; 0 for the CPU."""
    if device == "cpu":
        return 0
    if device == "cuda":
        if not there:
            raise InputError("--device is cuda, but PyTorch finds no GPU; expected --device cpu")
        configured = configured or there
    count = there if configured is None else configured
    if count > there:
        message = (
            f"gpus.count is {count}, but PyTorch finds {there}; expected at most that, "
            "0 or --device cpu for the CPU"
        )
        raise InputError(message) if file is None else file.error(("gpus", "count"), message)
    return count


def _tokens(server: Server, file: ConfigFile | None) -> tuple[str, ...]:
    more = tokens_of_file(file.tokens_file) if file and file.tokens_file else []
    return tuple(dict.fromkeys([*server.tokens, *more, *tokens_of_environment()]))


def _option_error(keys: Keys, message: str) -> InputError:
    return InputError(f"--{str(keys[0]).replace('_', '-')}: {message}")
