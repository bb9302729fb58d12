"""Counts what happens in a live session."""

from typing import Any

from engine.live import Counts


class Tally:
    """Adds what happened in a session to the metrics of its avatar.

    Args:
        metrics: `serve.metrics.Metrics`.
    """

    def __init__(self, metrics: Any, avatar: str):
        self._told = Counts()
        self._frames = metrics.frames.labels(avatar=avatar, kind="live")
        self._counters = {
            "late": metrics.late.labels(avatar=avatar),
            "skipped": metrics.skipped.labels(avatar=avatar),
            "underruns": metrics.underruns.labels(avatar=avatar),
        }

    def count(self, now: Counts) -> None:
        """Count a piece that was taken, and what happened since the one before."""
        self._frames.inc()
        for name, counter in self._counters.items():
            total = getattr(now, name)
            if more := total - getattr(self._told, name):
                setattr(self._told, name, total)
                counter.inc(more)
