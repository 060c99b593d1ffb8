"""Room for those who wait: warm pods that nobody has claimed give way to sandboxes that no node takes.

The scheduler's preemption cannot do this. A pod keeps the priority that it was made with, so a warm pod that
was claimed would be preempted as readily as one that waits, and what somebody uses must not end. Priorities
only order the queue (a cold start before a warm pod), and the operator deletes WarmPods under the same
precondition as everywhere: in the state in which nobody had claimed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmsafespace_operator.kube.objects import Key
from llmsafespace_operator.resources.quantities import number
from llmsafespace_operator.resources.types import PoolResources, Resources, WarmPod

PAUSE = 4.0  # seconds for deleted pods to be gone, before more are deleted for the same sandbox

_LEAST_SHARE = 0.5  # of what is wanted; the rest may be free already. Less is not worth emptying a pool for


class Spare(msgspec.Struct, frozen=True):
    """A warm pod that nobody has claimed: where it runs (empty: nowhere yet), and what it holds there."""

    warm_pod: WarmPod
    node: str
    resources: PoolResources


class Waiting:
    """The sandboxes whose pods no node takes. While there are any, pools make no more warm pods."""

    def __init__(self) -> None:
        self.on_over: Callable[[], None] = lambda: None  # called when the last one waits no more
        self._since: dict[Key, float] = {}  # when warm pods were last deleted for it

    def __bool__(self) -> bool:
        return bool(self._since)

    def add(self, key: Key) -> None:
        """It waits."""
        self._since.setdefault(key, float("-inf"))

    def discard(self, key: Key) -> None:
        """It waits no more, or never did."""
        if self._since.pop(key, None) is not None and not self._since:
            self.on_over()

    def clear(self) -> None:
        """Nobody is known to wait: another process led meanwhile."""
        self._since.clear()

    def take_turn(self, key: Key) -> bool:
        """Whether warm pods may be deleted for it now: not while the last ones may still be going."""
        now = time.monotonic()
        if now - self._since.get(key, float("-inf")) < PAUSE:
            return False
        self._since[key] = now
        return True


def giving_way(wanted: Resources, spares: Iterable[Spare]) -> list[WarmPod]:
    """The fewest warm pods of one node that hold what is wanted, otherwise the most that come near it.

    None when all of a node's hold less than half: they would go for nothing. With them go those that wait for
    a node themselves, as one of them could take the room that is made.
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
