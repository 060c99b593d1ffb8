"""Reads a pod's status: whether its sandbox is ready, what keeps it from starting, or how it ended."""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from llmsafespace_kube.resources.kubernetes import ContainerTerminated, Pod, PodCondition
from llmsafespace_protocol.configuration import EXIT_STATUS

_WORDS = {status: word for word, status in EXIT_STATUS.items()}
_MESSAGES = {
    "terminated": "the sandbox was terminated",
    "expired": "the sandbox reached its idle timeout or its maximum lifetime",
    "oom": "the sandbox used more memory than it may",
}
_LONGEST = 500  # characters of text that the sandbox itself may have written
# Reasons of a waiting container that are normal during a start.
_USUAL = {"", "ContainerCreating", "PodInitializing"}
_NO_ROOM = re.compile(r"Insufficient (cpu|memory|ephemeral-storage)\b|Too many pods")  # from the scheduler


class End(msgspec.Struct, frozen=True):
    """How a sandbox ended. `end` is terminated, expired, oom, lost or failed; `message` is for people.

    `reason` is the reason of its condition, one CamelCase word.
    """

    end: str
    message: str
    reason: str = "Ended"


def is_ready(pod: Pod) -> bool:
    """Whether a kernel is parked in the pod, its network is closed, and it is not being deleted."""
    ready = _condition(pod, "Ready")
    return (
        pod.metadata.deletion_timestamp is None
        and pod.status.phase == "Running"
        and pod.status.pod_ip != ""
        and ready is not None
        and ready.status == "True"
    )


def end_of(pod: Pod) -> End | None:
    """Return how the pod's sandbox ended; None while it may still run.

    The agent's exit status counts first: the OOM kill of one kernel marks the whole container as OOMKilled,
    however the agent ended later. A pod that is being deleted is lost, unless its status says more.
    """
    terminated = _terminated(pod)
    if terminated is not None and (word := _WORDS.get(terminated.exit_code)) is not None:
        return End(word, _MESSAGES[word])
    if pod.status.reason == "DeadlineExceeded":
        return End("expired", _MESSAGES["expired"])
    if pod.metadata.deletion_timestamp is not None:
        return End("lost", "its pod was deleted")
    if pod.status.phase == "Failed" and pod.status.reason:  # Evicted, NodeLost, Preempting, OutOfcpu, …
        return End("lost", _worded(f"its pod was lost: {pod.status.reason}", pod.status.message))
    if terminated is not None:
        return _killed(terminated)
    if pod.status.phase in ("Failed", "Unknown"):
        return End("lost", _worded("its pod was lost", pod.status.message))
    return End("terminated", _MESSAGES["terminated"]) if pod.status.phase == "Succeeded" else None


def trouble(pod: Pod) -> str:
    """Return text that says what keeps a pod from starting (image, node, container); "" if nothing does."""
    if pod.status.phase != "Pending":
        return ""
    for container in pod.status.container_statuses:
        waiting = container.state.waiting
        if waiting is not None and waiting.reason not in _USUAL:
            return _worded(waiting.reason, waiting.message)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return _worded("no node takes its pod", scheduled.message)
    return ""


def scheduled_at(pod: Pod) -> datetime | None:
    """Return when the pod was assigned to a node; None if it was not."""
    if not pod.spec.node_name:
        return None
    scheduled = _condition(pod, "PodScheduled")
    since = scheduled.last_transition_time if scheduled is not None else None
    return since or pod.metadata.creation_timestamp


def is_unschedulable(pod: Pod) -> bool:
    """Whether the scheduler has looked for a node and found none."""
    scheduled = _condition(pod, "PodScheduled")
    waits = pod.status.phase == "Pending" and not pod.spec.node_name
    return waits and scheduled is not None and scheduled.status == "False"


def lacks_room(pod: Pod) -> bool:
    """Whether only CPU, memory, storage or pod count is missing: then deleting other pods can make room.

    A taint, a node selector or a device cannot be freed that way.
    """
    scheduled = _condition(pod, "PodScheduled")
    return is_unschedulable(pod) and scheduled is not None and _NO_ROOM.search(scheduled.message) is not None


def _killed(terminated: ContainerTerminated) -> End:
    if terminated.reason == "OOMKilled":
        return End("oom", _MESSAGES["oom"])
    how = f"status {terminated.exit_code}" if not terminated.signal else f"signal {terminated.signal}"
    said = terminated.message.strip().rpartition("\n")[2][:_LONGEST]  # the last line of its log
    return End("failed", _worded(f"the agent ended with {how}", said))


def _terminated(pod: Pod) -> ContainerTerminated | None:
    states = (container.state.terminated for container in pod.status.container_statuses)
    return next((state for state in states if state is not None), None)


def _condition(pod: Pod, type_: str) -> PodCondition | None:
    return next((one for one in pod.status.conditions if one.type == type_), None)


def _worded(what: str, message: str) -> str:
    return f"{what}: {message}" if message else what
