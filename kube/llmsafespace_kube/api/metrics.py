"""Prometheus metrics under the names that client-go gives them, so that common dashboards work."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

REQUESTS = Counter(
    "rest_client_requests", "Calls to the API server, by HTTP status code.", ["code", "method", "host"]
)
REQUEST_DURATION = Histogram(
    "rest_client_request_duration_seconds",
    "Duration of calls to the API server, without watches, in seconds.",
    ["verb", "host"],
    buckets=_REQUEST_BUCKETS,
)
DEPTH = Gauge("workqueue_depth", "Number of keys that wait to be reconciled.", ["name"])
ADDS = Counter("workqueue_adds", "Keys added to the queue.", ["name"])
RETRIES = Counter("workqueue_retries", "Keys added again after a failure.", ["name"])
QUEUE_DURATION = Histogram(
    "workqueue_queue_duration_seconds",
    "Time that keys waited in the queue, in seconds.",
    ["name"],
    buckets=_QUEUE_BUCKETS,
)
WORK_DURATION = Histogram(
    "workqueue_work_duration_seconds", "Duration of reconciles, in seconds.", ["name"], buckets=_QUEUE_BUCKETS
)
LEADER = Gauge("leader_election_master_status", "1 while this process leads, otherwise 0.", ["name"])
EVENTS_DROPPED = Counter("kube_events_dropped", "Events that were not written because the queue was full.")
