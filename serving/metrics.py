"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Metrics:
    """The server's counters; a registry of its own, so that a process may have several."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """`gauges` are read when they are asked for: name to help text and function."""
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter(
            "bintally_requests", "Requests by route and status.", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "bintally_request_seconds",
            "Time from a request's last byte to its answer.",
            buckets=SECONDS,
            registry=own,
        )
        self.photos = Counter(
            "bintally_photos", "Photos by what became of them.", ["outcome"], registry=own
        )
        self.counts = Counter(
            "bintally_counts",
            "Photos by the count answered; a drift shows here.",
            ["count"],
            registry=own,
        )
        self.confidence = Histogram(
            "bintally_confidence",
            "The model's confidence in its counts.",
            buckets=SHARES,
            registry=own,
        )
        self.verdicts = Counter(
            "bintally_verdicts", "Verdicts on expected quantities.", ["verdict"], registry=own
        )
        self.batches = Histogram(
            "bintally_batch_photos",
            "Photos of a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=own,
        )
        self.model = Gauge(
            "bintally_model", "The checkpoint served, by its sha256.", ["sha256"], registry=own
        )
        self.releases = Counter(
            "bintally_releases",
            "New checkpoints, by whether they were taken.",
            ["outcome"],
            registry=own,
        )
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=own).set_function(read)

    def serve(self, sha256: str) -> None:
        """From now on this checkpoint is served."""
        self.model.clear()
        self.model.labels(sha256).set(1)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
