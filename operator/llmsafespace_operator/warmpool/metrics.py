"""Prometheus metrics of warm pools."""

from __future__ import annotations

import contextlib

from prometheus_client import Counter, Gauge, Histogram

from llmsafespace_kube.api.objects import Key
from llmsafespace_operator.warmpool.counts import Counts

STATES = ("available", "assigned", "pending")

PODS = Gauge("llmsafespace_warmpool_pods", "Number of WarmPods, by state.", ["pool", "namespace", "state"])
DESIRED = Gauge(
    "llmsafespace_warmpool_desired", "Desired number of unclaimed WarmPods.", ["pool", "namespace"]
)
ARRIVALS = Gauge("llmsafespace_warmpool_arrival_rate", "Claims per second.", ["pool", "namespace"])
FAILURES = Counter("llmsafespace_warmpool_failures", "WarmPods that failed to start.", ["pool", "namespace"])
LEAD = Histogram(
    "llmsafespace_warmpool_lead_seconds",
    "Time from a WarmPod's creation until it is ready, in seconds.",
    ["pool", "namespace"],
    buckets=(0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
)


def report(pool: Key, counts: Counts, desired: int, rate: float) -> None:
    """Set the gauges of a pool."""
    namespace, name = pool
    for state in STATES:
        PODS.labels(name, namespace, state).set(getattr(counts, state))
    DESIRED.labels(name, namespace).set(desired)
    ARRIVALS.labels(name, namespace).set(rate)


def forget(pool: Key) -> None:
    """Remove the metrics of a deleted pool."""
    namespace, name = pool
    for state in STATES:
        _remove(PODS, name, namespace, state)
    for metric in (DESIRED, ARRIVALS, FAILURES, LEAD):
        _remove(metric, name, namespace)


def _remove(metric: Gauge | Counter | Histogram, *labels: str) -> None:
    with contextlib.suppress(KeyError):  # the metric was never set
        metric.remove(*labels)
