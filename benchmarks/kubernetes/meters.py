"""What is read off: processor time and memory of processes, and counters of /metrics, before and after."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import psutil

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
_OURS = "llmsafespace.dev"


class Sample(msgspec.Struct, frozen=True):
    """One line of /metrics."""

    name: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str:
        """'' where there is no such label."""
        return dict(self.labels).get(name, "")


Samples = Counter[Sample]


def samples(text: str) -> Samples:
    """Every value of a Prometheus text."""
    found: Samples = Counter()
    for line in text.splitlines():
        if matched := _SAMPLE.match(line):
            labels = tuple(sorted(_LABEL.findall(matched["labels"] or "")))
            found[Sample(matched["name"], labels)] += float(matched["value"])  # type: ignore[assignment]
    return found


def grown(before: Samples, after: Samples) -> Samples:
    """How far every counter went on."""
    return Counter({sample: value - before[sample] for sample, value in after.items()})


def server_writes(growth: Samples) -> dict[str, int]:
    """Writes of operator and gateway by verb and resource, out of the API server's own count.

    It does not tell who wrote. All of ours is in our own group, or is a Secret or Pod made, or a Pod's
    own part changed: the scheduler binds, the kubelet (or KWOK) changes the status, and the garbage
    collector deletes what belongs to a deleted object. Events are nobody's.
    """
    found: Counter[str] = Counter()
    for sample, value in growth.items():
        if sample.name != "apiserver_request_total" or value <= 0:
            continue
        verb, group = sample.label("verb"), sample.label("group")
        resource, part = sample.label("resource"), sample.label("subresource")
        core = {("POST", "secrets"), ("POST", "pods"), ("PATCH", "pods")}
        ours = verb in _WRITES and group == _OURS
        if ours or (not group and not part and (verb, resource) in core):
            found[f"{verb} {resource}{'/' if part else ''}{part}"] += int(value)
    return dict(sorted(found.items()))


def client_writes(growth: Samples) -> int:
    """Writes that a process counted itself, its events included."""
    wanted = (value for sample, value in growth.items() if _is_write(sample))
    return int(sum(wanted))


def _is_write(sample: Sample) -> bool:
    return sample.name == "rest_client_requests_total" and sample.label("method") in _WRITES


def reconciles(growth: Samples) -> dict[str, dict[str, float]]:
    """By queue: how many reconciles, and the milliseconds that one waited and worked on average."""
    found: dict[str, dict[str, float]] = {}
    for sample, value in growth.items():
        if sample.name != "workqueue_work_duration_seconds_count" or not value:
            continue
        queue = sample.label("name")
        waited = _of_queue(growth, "workqueue_queue_duration_seconds_sum", queue)
        worked = _of_queue(growth, "workqueue_work_duration_seconds_sum", queue)
        found[queue] = {"count": value, "waited": 1000 * waited / value, "worked": 1000 * worked / value}
    return found


def _of_queue(growth: Samples, name: str, queue: str) -> float:
    return sum(v for sample, v in growth.items() if sample.name == name and sample.label("name") == queue)


class Use(msgspec.Struct, frozen=True):
    """Processor seconds used so far, and resident bytes now."""

    cpu: float
    rss: int


def use(process: psutil.Process) -> Use:
    """Of a process and those that it started."""
    family = [process, *process.children(recursive=True)]
    times = [each.cpu_times() for each in family]
    return Use(
        cpu=sum(each.user + each.system for each in times),
        rss=sum(each.memory_info().rss for each in family),
    )


def percentiles(milliseconds: Iterable[float]) -> dict[str, float]:
    """p50, p90 and p99."""
    ordered = sorted(milliseconds)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{share}": ordered[min(last, len(ordered) * share // 100)] for share in (50, 90, 99)}


def flat(value: Any) -> str:
    """Any result as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {flat(part)}" for name, part in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
