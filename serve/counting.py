"""The metrics of a live session."""

from typing import Any

from engine.live import Counts

EVENTS = "late", "skipped", "underruns"


class SessionCounters:
    """Counts a session's frames, and what happened to them, for its avatar.

    Args:
        metrics: `serve.metrics.Metrics`.
        avatar: its name.
    """

    def __init__(self, metrics: Any, avatar: str):
        self._frames = metrics.frames.labels(avatar=avatar, kind="live")
        self._counters = {name: getattr(metrics, name).labels(avatar=avatar) for name in EVENTS}
        self._told = Counts()

    def frame(self) -> None:
        """Count a frame that was taken."""
        self._frames.inc()

    def events(self, now: Counts) -> list[tuple[str, int]]:
        """Count what happened since the last time. Return what did, of `EVENTS`, and how often it
        has happened in all."""
        new = []
        for name, counter in self._counters.items():
            total = getattr(now, name)
            if more := total - getattr(self._told, name):
                setattr(self._told, name, total)
                counter.inc(more)
                new.append((name, total))
        return new
