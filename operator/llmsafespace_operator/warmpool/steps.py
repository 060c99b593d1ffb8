"""Decides the next step of a WarmPod: a pure function of the WarmPod, its pod and its pool."""

from __future__ import annotations

from datetime import datetime

import msgspec

from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import WarmPod, WarmPool
from llmsafespace_operator.pods.ends import end_of, is_ready, trouble

START_LIMIT = 180.0  # maximum seconds from a WarmPod's creation until its pod is ready


class Make(msgspec.Struct, frozen=True):
    """Create the Secret and the Pod."""


class Announce(msgspec.Struct, frozen=True):
    """The pod is ready: set the status Ready, so that it can be claimed."""


class Remove(msgspec.Struct, frozen=True):
    """Delete the WarmPod. `failed`: it never became ready, which counts as a failed start of its pool."""

    message: str
    failed: bool = False


class Wait(msgspec.Struct, frozen=True):
    """Do nothing for `seconds` (None: until something changes)."""

    seconds: float | None = None


Step = Make | Announce | Remove | Wait


def next_step(warm_pod: WarmPod, pod: Pod | None, pool: WarmPool | None, now: datetime) -> Step:
    """Return the next step of an unclaimed WarmPod; `pod` is its own pod, or None if it has none."""
    announced = warm_pod.status.phase == "Ready"
    end = end_of(pod) if pod is not None else None
    if end is not None:
        return Remove(end.message, failed=not announced)
    if announced:
        return _announced(pod, pool)
    if pod is not None and is_ready(pod):
        return Announce()
    left = START_LIMIT - age(warm_pod, now)
    if left <= 0:
        return Remove(_too_late(pod, pool), failed=True)
    return Make() if pod is None else Wait(left)


def age(warm_pod: WarmPod, now: datetime) -> float:
    """Return the seconds since the WarmPod's creation."""
    born = warm_pod.metadata.creation_timestamp
    return (now - born).total_seconds() if born is not None else 0.0


def _announced(pod: Pod | None, pool: WarmPool | None) -> Step:
    if pool is None:
        return Remove("its pool is gone")
    if pod is None:
        return Remove("its pod is gone")
    if not is_ready(pod):  # the control plane says so when a node does not report
        return Remove("its pod is not ready any more; its node may be lost")
    return Wait()


def _too_late(pod: Pod | None, pool: WarmPool | None) -> str:
    why = trouble(pod) if pod is not None else "it has no pod"
    if pool is None:
        why = "there is no such pool"
    return f"not ready after {START_LIMIT:g} s" + (f": {why}" if why else "")
