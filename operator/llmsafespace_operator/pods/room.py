"""Room for those who wait: warm pods that nobody has claimed give way to sandboxes that no node takes.

The scheduler's preemption cannot do this. A pod keeps the priority that it was made with, so a warm pod that
was claimed would be preempted as readily as one that waits, and what somebody uses must not end. Priorities
only order the queue (a cold start before a warm pod), and the operator deletes WarmPods under the same
precondition as everywhere: in the state in which nobody had claimed them.

What never fits must cost others little: a sandbox gets one round of deletions, and holds pools back for HOLD.
A pool may be at making a warm pod just then, which would take the room: while pools are held back, those that
are younger than the sandbox go, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.quantities import number
from llmsafespace_kube.resources.types import PoolResources, Resources, WarmPod

PAUSE = 4.0  # seconds between looks for what may give way to a sandbox, until something has
HOLD = 15.0  # seconds in which one sandbox keeps pools from taking the room that is made for it

_LEAST_SHARE = 0.5  # of what is wanted; the rest may be free already. Less is not worth emptying a pool for


class Spare(msgspec.Struct, frozen=True):
    """A warm pod that nobody has claimed: where it runs (empty: nowhere yet), and what it holds there."""

    warm_pod: WarmPod
    node: str
    resources: PoolResources


class _Wait(msgspec.Struct):
    """A sandbox that waits. Times are monotonic: until when it holds pools back, when it last had a turn."""

    until: float
    turn: float = float("-inf")
    served: bool = False  # warm pods were deleted for it


class Waiting:
    """The sandboxes for whose pods no node has room. For a while they keep pools from making warm pods."""

    def __init__(self) -> None:
        self.on_over: Callable[[], None] = lambda: None  # called when nobody holds pools back any more
        self._waits: dict[Key, _Wait] = {}

    def held(self) -> float:
        """Seconds for which pools make no warm pods, if nobody else comes; 0: they may."""
        now = time.monotonic()
        return max((wait.until - now for wait in self._waits.values() if wait.until > now), default=0.0)

    def add(self, key: Key) -> None:
        """It waits. Its time runs from the first call until `discard`, however often it is interrupted."""
        self._waits.setdefault(key, _Wait(time.monotonic() + HOLD))

    def rest(self, key: Key) -> None:
        """It starts, and waits for room no more."""
        wait = self._waits.get(key)
        if wait is not None:
            held = self.held()
            wait.until = float("-inf")
            self._tell(held)

    def discard(self, key: Key) -> None:
        """It runs, has ended, or never waited."""
        if key in self._waits:
            held = self.held()
            del self._waits[key]
            self._tell(held)

    def clear(self) -> None:
        """Nobody is known to wait: another process led meanwhile."""
        self._waits.clear()

    def take_turn(self, key: Key) -> bool:
        """Whether warm pods may be deleted for it now: none were so far, and it has not just been tried."""
        now = time.monotonic()
        wait = self._waits.get(key)
        if wait is None or wait.served or now - wait.turn < PAUSE:
            return False
        wait.turn = now
        return True

    def served(self, key: Key) -> None:
        """A warm pod was deleted for it: after this round it gets no other."""
        wait = self._waits.get(key)
        if wait is not None:
            wait.served = True

    def has_room_made(self, key: Key) -> bool:
        """Whether it has had its round, and still holds pools back."""
        wait = self._waits.get(key)
        return wait is not None and wait.served and wait.until > time.monotonic()

    def _tell(self, held_before: float) -> None:
        if held_before and not self.held():
            self.on_over()


def nodes_for(wanted: Pod, placed: Iterable[Pod]) -> set[str]:
    """Nodes that could take the pod if they had room, as far as the pods that they took show it.

    Each of these has one that selects no less and tolerates no more than `wanted`. What a RuntimeClass
    selects and tolerates is in the pods that were made with it.
    """
    return {
        pod.spec.node_name
        for pod in placed
        if pod.spec.node_name
        and wanted.spec.node_selector.items() <= pod.spec.node_selector.items()
        and all(one in wanted.spec.tolerations for one in pod.spec.tolerations)
    }


def giving_way(wanted: Resources, spares: Iterable[Spare]) -> list[WarmPod]:
    """The fewest warm pods of one node that hold what is wanted, otherwise the most that come near it.

    No placed pod is chosen unless one node's pods hold at least half: they would go for nothing. Pending ones
    always go, as one of them could take the room that is made.
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
    """The warm pods that were created at `born`, a sandbox's creation time, or later."""
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
    """How much of what is wanted they hold, of what they hold least of; 1 at most."""
    return min(
        1.0,
        *(
            sum(number(getattr(spare.resources, name)) for spare in spares) / number(getattr(wanted, name))
            for name in ("cpu", "memory", "ephemeral_storage")
        ),
    )


def _size(spare: Spare) -> tuple[float, float]:
    return number(spare.resources.cpu), number(spare.resources.memory)
