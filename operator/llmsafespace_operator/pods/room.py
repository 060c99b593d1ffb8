"""Makes room on nodes: deletes unclaimed warm pods so that the pod of a waiting sandbox can be scheduled.

The scheduler's preemption cannot do this. A pod keeps the priority with which it was created, so preemption
would end a claimed warm pod, which somebody uses, as readily as an unclaimed one. Priorities therefore only
order the scheduler's queue: cold starts before warm pods. The operator deletes WarmPods with their resource
version as a precondition, so that a WarmPod claimed in the meantime stays.

A sandbox that never fits must not empty the pools. Each waiting sandbox gets one round of deletions, and for
HOLD seconds pools create no warm pods. A pool may have created a warm pod just before: while pools are held
back, warm pods that are younger than the sandbox are deleted as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import PoolResources, Resources, WarmPod
from llmsafespace_protocol.quantities import number

PAUSE = 4.0  # seconds between two tries to find warm pods to delete for a sandbox
HOLD = 15.0  # seconds for which a waiting sandbox keeps pools from creating warm pods

# Delete warm pods only if they free at least this share of the request; the node may have the rest free.
_LEAST_SHARE = 0.5


class Spare(msgspec.Struct, frozen=True):
    """An unclaimed warm pod, its node ("" if it has none yet) and the resources that it holds there."""

    warm_pod: WarmPod
    node: str
    resources: PoolResources


class _Wait(msgspec.Struct):
    """A waiting sandbox. Times are monotonic."""

    until: float  # pools create no warm pods before
    turn: float = float("-inf")  # the last try to make room
    served: bool = False  # warm pods were deleted for it


class Waiting:
    """The sandboxes whose pods fit on no node. For a while they keep pools from creating warm pods."""

    def __init__(self) -> None:
        self.on_over: Callable[[], None] = lambda: None  # called when pools may create warm pods again
        self._waits: dict[Key, _Wait] = {}

    def held(self) -> float:
        """Return the seconds for which pools must not create warm pods; 0: they may."""
        now = time.monotonic()
        return max((wait.until - now for wait in self._waits.values() if wait.until > now), default=0.0)

    def add(self, key: Key) -> None:
        """The sandbox waits for room. HOLD counts from the first call; only `discard` resets it."""
        self._waits.setdefault(key, _Wait(time.monotonic() + HOLD))

    def scheduled(self, key: Key) -> None:
        """The sandbox's pod has a node: pools need not be held back for it. Its one round stays used."""
        wait = self._waits.get(key)
        if wait is not None:
            held = self.held()
            wait.until = float("-inf")
            self._tell(held)

    def discard(self, key: Key) -> None:
        """Forget the sandbox: it runs, has ended, or never waited."""
        if key in self._waits:
            held = self.held()
            del self._waits[key]
            self._tell(held)

    def clear(self) -> None:
        """Forget all sandboxes, when this process becomes the leader."""
        self._waits.clear()

    def take_turn(self, key: Key) -> bool:
        """Whether warm pods may be deleted for the sandbox now. Counts as a try.

        Not if it has had its round, or if the last try was less than PAUSE seconds ago.
        """
        now = time.monotonic()
        wait = self._waits.get(key)
        if wait is None or wait.served or now - wait.turn < PAUSE:
            return False
        wait.turn = now
        return True

    def served(self, key: Key) -> None:
        """A warm pod was deleted for the sandbox: it gets no further round."""
        wait = self._waits.get(key)
        if wait is not None:
            wait.served = True

    def has_room_made(self, key: Key) -> bool:
        """Whether the sandbox has had its round and pools are still held back for it."""
        wait = self._waits.get(key)
        return wait is not None and wait.served and wait.until > time.monotonic()

    def _tell(self, held_before: float) -> None:
        if held_before and not self.held():
            self.on_over()


def nodes_for(wanted: Pod, placed: Iterable[Pod]) -> set[str]:
    """Return nodes that could run the pod if they had room, concluded from the pods that they run.

    Each has a pod whose node selector contains that of `wanted`, and whose tolerations `wanted` has as well.
    The scheduling fields of a RuntimeClass are in the pods that use it.
    """
    return {
        pod.spec.node_name
        for pod in placed
        if pod.spec.node_name
        and wanted.spec.node_selector.items() <= pod.spec.node_selector.items()
        and all(one in wanted.spec.tolerations for one in pod.spec.tolerations)
    }


def giving_way(wanted: Resources, spares: Iterable[Spare]) -> list[WarmPod]:
    """Choose the warm pods to delete: the fewest on one node that free what is wanted, or most of it.

    If no node's pods free at least half, none that has a node is chosen: deleting it would not help. Pods
    without a node are always chosen, because one of them could take the room.
    """
    by_node: dict[str, list[Spare]] = {}
    queued: list[WarmPod] = []
    for spare in spares:
        if not spare.node:
            queued.append(spare.warm_pod)
            continue
        by_node.setdefault(spare.node, []).append(spare)
    best: list[Spare] = []
    best_rank = (_LEAST_SHARE, 0)
    for on_node in by_node.values():
        chosen = _enough(wanted, sorted(on_node, key=_size, reverse=True))
        rank = (_share(wanted, chosen), -len(chosen))
        if rank > best_rank or (not best and rank[0] >= _LEAST_SHARE):
            best, best_rank = chosen, rank
    return [*queued, *(spare.warm_pod for spare in best)]


def made_since(born: datetime | None, spares: Iterable[Spare]) -> list[WarmPod]:
    """Return the warm pods that were created at `born` (a sandbox's creation time) or later."""
    if born is None:
        return []
    found = (spare.warm_pod for spare in spares)
    return [one for one in found if (made := one.metadata.creation_timestamp) is not None and made >= born]


def _enough(wanted: Resources, spares: Sequence[Spare]) -> list[Spare]:
    chosen: list[Spare] = []
    for spare in spares:
        if _share(wanted, chosen) >= 1:
            break
        chosen.append(spare)
    return chosen


def _share(wanted: Resources, spares: Sequence[Spare]) -> float:
    """Return the share of the request that they hold, for the scarcest resource; at most 1."""
    return min(
        1.0,
        *(
            sum(number(getattr(spare.resources, name)) for spare in spares) / number(getattr(wanted, name))
            for name in ("cpu", "memory", "ephemeral_storage")
        ),
    )


def _size(spare: Spare) -> tuple[float, float]:
    return number(spare.resources.cpu), number(spare.resources.memory)
