"""The metrics of a replica among those that Ray exports on each node."""

from ray.serve.metrics import Gauge

from ..metrics import Metrics


class Exported:
    """Sets gauges of Ray to the metrics of this process's replica. Ray adds which replica it is.

    Each series has the name that it has at `/metrics`, behind Ray's "ray_". All are gauges, because
    Ray counts for itself and takes no counts of others; Prometheus reckons with them all the same.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._gauges: dict[str, Gauge] = {}

    def export(self) -> None:
        """Set all gauges, in the event loop."""
        for family in self._metrics.collect():
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                if sample.name not in self._gauges:
                    self._gauges[sample.name] = Gauge(
                        sample.name, family.documentation, tuple(sample.labels)
                    )
                self._gauges[sample.name].set(sample.value, sample.labels)
