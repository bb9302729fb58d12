"""What is counted, for Prometheus."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import Metric as Family

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LOAD_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

WINDOW = 10  # samples of `Lateness`
LATE = 0.2  # a share of frames


class Device(Protocol):
    """A device of the registry."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class Avatar(Protocol):
    """An avatar of the registry."""

    @property
    def loaded(self) -> bool: ...


class Avatars(Protocol):
    """What the metrics need of `serve.registry.Registry`."""

    def entries(self) -> Sequence[Avatar]: ...
    def devices(self) -> Sequence[Device]: ...


class Metrics:
    """The metrics of one server, in a collector registry of their own.

    Labels have few values: an avatar is one that is configured, a method one that there is.

    Attributes:
        requests: of gRPC, when they are over: service, method, code.
        request_seconds: of gRPC: method.
        frames: that were made: avatar, kind (live, render or batch).
        late, skipped, underruns: of live sessions: avatar. A skipped frame has no picture.
        sessions: that are open: avatar.
        batch_frames: frames in a batch of the device: avatar.
        loaded: avatars in memory.
        device_bytes: that loaded avatars hold: device, such as "cpu" or "cuda:0".
        load_seconds: that loading an avatar took.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._watched: tuple[Avatars, Callable[[], Mapping[str, int]]] | None = None
        self._talked_to = set[str]()
        counter, histogram = self._counter, self._histogram
        self.requests = counter("requests", "gRPC calls", "service", "method", "code")
        self.request_seconds = histogram(
            "request_seconds", "Seconds of gRPC calls", SECONDS, "method"
        )
        self.frames = counter("frames", "Frames made", "avatar", "kind")
        self.late = counter("late_frames", "Live frames that came late", "avatar")
        self.skipped = counter("skipped_frames", "Live frames without picture", "avatar")
        self.underruns = counter("underruns", "Utterances that ran dry", "avatar")
        self.sessions = Gauge(
            "viseme_sessions", "Live sessions", ["avatar"], registry=self.registry
        )
        self.batch_frames = histogram("batch_frames", "Frames in a batch", BATCH_FRAMES, "avatar")
        self.loaded = Gauge("viseme_loaded_avatars", "Avatars in memory", registry=self.registry)
        self.device_bytes = Gauge(
            "viseme_device_bytes", "Bytes of loaded avatars", ["device"], registry=self.registry
        )
        self.load_seconds = histogram("load_seconds", "Seconds to load an avatar", LOAD_SECONDS)

    def watch(self, avatars: Avatars, sessions: Callable[[], Mapping[str, int]]) -> None:
        """Set the gauges from these whenever the metrics are read, in the event loop."""
        self._watched = (avatars, sessions)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._set_gauges()
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Family]:
        """Return all metrics with their samples."""
        self._set_gauges()
        return self.registry.collect()

    def _set_gauges(self) -> None:
        if self._watched is not None:
            avatars, sessions = self._watched
            self.loaded.set(sum(entry.loaded for entry in avatars.entries()))
            for device in avatars.devices():
                self.device_bytes.labels(device.name).set(device.bytes)
            open_now = sessions()
            self._talked_to |= open_now.keys()
            for avatar in self._talked_to:
                self.sessions.labels(avatar).set(open_now.get(avatar, 0))

    def live_frames(self) -> tuple[int, int]:
        """Return how many live frames were made, and how many of them were late."""
        made = _sum(self.frames, lambda labels: labels["kind"] == "live")
        return made, _sum(self.late, lambda _: True)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"viseme_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"viseme_{name}", text, labels, buckets=buckets, registry=self.registry)


class Sample(NamedTuple):
    made: int
    late: int


class Lateness:
    """Whether live frames are on time: the last `WINDOW` samples, which are taken once a second."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._samples = deque([Sample(*metrics.live_frames())], maxlen=WINDOW + 1)

    def sample(self) -> None:
        self._samples.append(Sample(*self._metrics.live_frames()))

    @property
    def share(self) -> float:
        """The share of late frames among those that were made in the last seconds."""
        first, last = self._samples[0], self._samples[-1]
        return (last.late - first.late) / max(last.made - first.made, 1)

    @property
    def on_time(self) -> bool:
        return self.share <= LATE


def _sum(counter: Counter, chosen: Callable[[dict[str, str]], bool]) -> int:
    return round(
        sum(
            sample.value
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and chosen(sample.labels)
        )
    )
