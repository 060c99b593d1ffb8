"""Prometheus metrics in a registry of our own. They hold no tenant's data: no names, no ids."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What this gateway process counts; `settings["metrics"]`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmsafespace_http_requests",
            "Requests answered, by method, route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "llmsafespace_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.sandboxes = Gauge(
            "llmsafespace_sandboxes", "Living sandboxes that somebody owns.", registry=self.registry
        )
        self.starts = Counter(
            "llmsafespace_sandbox_starts",
            "Sandboxes created, warm or cold.",
            ("kind",),
            registry=self.registry,
        )
        self.pool = Gauge(
            "llmsafespace_warm_pool_pods",
            "Sandboxes of the warm pools: available, assigned, pending; summed by runtime.",
            ("runtime", "state"),
            registry=self.registry,
        )
        self.executions = Counter(
            "llmsafespace_executions",
            "Executions over REST and its websocket that ended, by end.",
            ("end",),
            registry=self.registry,
        )
        self.asked = Counter(
            "llmsafespace_execution_requests",
            "Executions that were asked for, by door (rest, stream, jupyter, durable), accepted or refused.",
            ("door", "outcome"),
            registry=self.registry,
        )
        self.acts = Counter(
            "llmsafespace_acts",
            "Acts that the audit log has, by action, door (rest, jupyter) and outcome.",
            ("action", "door", "outcome"),
            registry=self.registry,
        )
        self.websockets = Gauge(
            "llmsafespace_websocket_connections",
            "Open websockets: stream, channels.",
            ("kind",),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
