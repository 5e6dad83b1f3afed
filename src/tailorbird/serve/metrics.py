"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's own registry: two servers of a process do not add up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"tailorbird_{name}", what, buckets=buckets, registry=self._registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"tailorbird_{name}", what, labels, registry=self._registry)

        self.queue_s = histogram("queue_seconds", "From arrival to the start of the call", SECONDS)
        self.model_s = histogram("model_seconds", "Of one call of the model", SECONDS)
        self.total_s = histogram("total_seconds", "From arrival to the answer", SECONDS)
        self.batch = histogram("batch_size", "Robots that one call answered", SIZES)
        self.sessions = Gauge("tailorbird_sessions", "Robots connected", registry=self._registry)
        self.requests = counter("requests", "Observations that arrived", "protocol")
        self.dropped = counter("dropped", "Observations without a chunk, by reason", "reason")
        self.refused = counter("refusals", "Connections refused or closed, by reason", "reason")

    def text(self) -> str:
        return generate_latest(self._registry).decode()
