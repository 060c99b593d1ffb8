"""What an informer knows is in the end what the server has, in whatever order it learns of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsafespace_kube.api.client import Gone, KubeError, TooManyRequests
from llmsafespace_kube.api.informer import pause_after
from llmsafespace_kube.api.objects import Key, key_of, version_of
from llmsafespace_kube.api.store import Store
from llmsafespace_kube.api.wire import (
    WatchEvent,
    decode,
    decode_line,
    decode_list,
    encode_object,
    lines_of,
)
from llmsafespace_kube.resources import kinds
from llmsafespace_kube.resources.kubernetes import AnyObject, Metadata
from llmsafespace_kube.resources.types import NamedObject, WarmPod, WarmPodSpec

NAMESPACE = "pods"
Event = WatchEvent[AnyObject]


def thing(name: str, version: int, uid: str = "u", namespace: str = NAMESPACE) -> AnyObject:
    return AnyObject(Metadata(name=name, namespace=namespace, uid=uid, resource_version=str(version)))


def event(type_: str, item: AnyObject) -> Event:
    return WatchEvent(type_, key_of(item), version_of(item), item)


class Server:
    """Has a history, as the API server does: one version for each change."""

    def __init__(self) -> None:
        self.states: list[dict[str, AnyObject]] = [{}]
        self.events: list[Event] = []
        self.answers: list[AnyObject] = []

    @property
    def version(self) -> int:
        return len(self.events)

    def write(self, name: str) -> None:
        old = self.states[-1].get(name)
        uid = old.metadata.uid if old else f"{name}{self.version}"
        new = thing(name, self.version + 1, uid)
        self.answers.append(new)
        self._add(event("MODIFIED" if old else "ADDED", new), {**self.states[-1], name: new})

    def delete(self, name: str) -> None:
        old = self.states[-1].get(name)
        if old is not None:
            left = {key: item for key, item in self.states[-1].items() if key != name}
            self._add(event("DELETED", thing(name, self.version + 1, old.metadata.uid)), left)

    def _add(self, event: Event, state: dict[str, AnyObject]) -> None:
        self.events.append(event)
        self.states.append(state)


class Mirror:
    """Believes callbacks, and finds out when they are not a story that can be true."""

    def __init__(self, store: Store[AnyObject]) -> None:
        self.items: dict[Key, AnyObject] = {}
        self.newest: dict[Key, int] = {}
        store.on_change(self.changed)

    def changed(self, old: AnyObject | None, new: AnyObject | None) -> None:
        item = new or old
        assert item is not None
        assert self.items.get(key_of(item)) == old
        if old and new:
            assert old.metadata.uid == new.metadata.uid
        if new:
            assert version_of(new) > self.newest.get(key_of(new), 0)
            self.newest[key_of(new)] = version_of(new)
            self.items[key_of(new)] = new
        else:
            del self.items[key_of(item)]


names = st.sampled_from("ab")
steps = st.one_of(
    st.tuples(st.just("write"), names),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("deliver"), st.integers(1, 3)),
    st.tuples(st.just("bookmark"), st.none()),
    st.tuples(st.just("relist"), st.floats(0, 1)),
    st.tuples(st.just("refresh"), st.tuples(st.floats(0, 1), st.integers(0, 5))),
    st.tuples(st.just("observe"), st.integers(0, 30)),
)


class Run:
    """A store that follows a server, step by step."""

    def __init__(self) -> None:
        self.server = Server()
        self.store: Store[AnyObject] = Store([NAMESPACE])
        self.store.index("name", lambda item: [item.metadata.name])
        self.mirror = Mirror(self.store)

    def deliver(self, count: int) -> None:
        version = self.store.version(NAMESPACE)
        for each in self.server.events[version : version + count]:
            self.store.apply(NAMESPACE, each)

    def bookmark(self, _: None) -> None:
        version = self.store.version(NAMESPACE)
        self.store.apply(NAMESPACE, WatchEvent("BOOKMARK", ("", ""), version, None))

    def relist(self, lateness: float) -> None:
        """A list as it was at some time since, so that writes happened while it was on its way."""
        known = self.store.version(NAMESPACE)
        version = known + round((self.server.version - known) * lateness)
        self.store.replace(NAMESPACE, self.server.states[version].values(), version)

    def refresh(self, overtaken: tuple[float, int]) -> None:
        """A list that is asked for while a watch goes on, which tells the next events before it comes."""
        lateness, told = overtaken
        since = self.store.version(NAMESPACE)
        version = since + round((self.server.version - since) * lateness)
        self.deliver(told)
        self.store.replace(NAMESPACE, self.server.states[version].values(), version, since=since)

    def observe(self, number: int) -> None:
        if self.server.answers:
            self.store.observe(self.server.answers[number % len(self.server.answers)])

    def step(self, what: str, argument: object) -> None:
        source: object = self.server if what in ("write", "delete") else self
        act: Callable[[object], None] = getattr(source, what)
        act(argument)


@settings(max_examples=500)
@given(st.lists(steps, max_size=60))
def test_whatever_comes_in_whatever_order_the_end_is_the_state_of_the_server(
    story: list[tuple[str, object]],
) -> None:
    run = Run()
    for what, argument in story:
        run.step(what, argument)
        assert run.mirror.items == {key_of(item): item for item in run.store.items()}
        for name in "ab":
            found = run.store.get((NAMESPACE, name))
            assert run.store.by_index("name", name) == ([found] if found else [])
    run.deliver(len(run.server.events))
    assert {item.metadata.name: item for item in run.store.items()} == run.server.states[-1]


def store_with(*items: AnyObject, version: int) -> Store[AnyObject]:
    store: Store[AnyObject] = Store([NAMESPACE])
    store.replace(NAMESPACE, items, version)
    return store


def test_a_list_that_a_watch_has_overtaken_takes_nothing_back() -> None:
    store = store_with(thing("a", 4), thing("gone", 5), version=10)
    store.apply(NAMESPACE, event("DELETED", thing("gone", 13)))
    store.apply(NAMESPACE, event("ADDED", thing("new", 14)))
    store.replace(NAMESPACE, [thing("a", 4), thing("gone", 5)], 12, since=10)
    assert {item.metadata.name for item in store.items()} == {"a", "new"}
    assert store.version(NAMESPACE) == 14


def test_an_own_write_is_seen_at_once_and_nothing_older_undoes_it() -> None:
    store = store_with(thing("a", 5), version=5)
    store.observe(thing("a", 9))
    store.apply(NAMESPACE, event("MODIFIED", thing("a", 6)))
    store.apply(NAMESPACE, event("DELETED", thing("a", 7)))
    store.replace(NAMESPACE, [thing("a", 6)], 8)
    assert version_of(store.items()[0]) == 9


def test_a_created_object_is_kept_by_a_list_that_is_older_and_dropped_by_one_that_is_newer() -> None:
    store = store_with(version=5)
    store.observe(thing("a", 9))
    store.replace(NAMESPACE, [], 8)
    assert store.get((NAMESPACE, "a"))
    store.replace(NAMESPACE, [], 10)
    assert not store.get((NAMESPACE, "a"))


def test_the_late_answer_of_a_write_does_not_bring_back_what_was_deleted_since() -> None:
    store = store_with(version=5)
    store.apply(NAMESPACE, event("ADDED", thing("a", 6)))
    store.apply(NAMESPACE, event("DELETED", thing("a", 8)))
    store.observe(thing("a", 7))
    assert not store.items()


def test_an_object_made_anew_under_its_old_name_is_a_deletion_and_a_creation() -> None:
    store = store_with(thing("a", 5, "first"), version=5)
    told: list[tuple[str, str]] = []

    def uid(item: AnyObject | None) -> str:
        return item.metadata.uid if item else ""

    store.on_change(lambda old, new: told.append((uid(old), uid(new))))
    store.replace(NAMESPACE, [thing("a", 9, "second")], 9)
    assert told == [("first", ""), ("", "second")]


def test_a_history_that_was_set_back_is_believed() -> None:
    store = store_with(thing("a", 90), thing("b", 91), version=100)
    store.replace(NAMESPACE, [thing("a", 40)], 50)
    assert [version_of(item) for item in store.items()] == [40]
    store.apply(NAMESPACE, event("MODIFIED", thing("a", 51)))
    assert [version_of(item) for item in store.items()] == [51]


def test_namespaces_are_listed_apart_and_others_are_not_taken_in() -> None:
    store: Store[AnyObject] = Store(["one", "two"])
    store.replace("one", [thing("a", 5, namespace="one")], 5)
    store.replace("two", [thing("a", 6, namespace="two")], 6)
    store.replace("one", [], 7)
    store.observe(thing("a", 9, namespace="three"))
    assert [key_of(item) for item in store.items()] == [("two", "a")]


def test_a_callback_that_fails_does_not_keep_the_others_from_knowing() -> None:
    store: Store[AnyObject] = Store([NAMESPACE])
    told = []

    def fails(old: AnyObject | None, new: AnyObject | None) -> None:
        raise RuntimeError("no")

    store.on_change(fails)
    store.on_change(lambda old, new: told.append(new))
    store.replace(NAMESPACE, [thing("a", 1)], 1)
    assert told == [thing("a", 1)]


def test_an_index_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError):
        store_with(version=1).by_index("color", "red")


# -- bodies ---------------------------------------------------------------------------------------------


def warm_pod(name: str, **spec: object) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": "7"}, "spec": spec}


POOL_REF = {"name": "p", "namespace": NAMESPACE}


def test_an_object_that_cannot_be_read_hides_no_other_and_is_not_taken_for_deleted() -> None:
    good, bad = warm_pod("good", poolRef=POOL_REF), warm_pod("bad", poolRef="text")
    body = msgspec.json.encode({"metadata": {"resourceVersion": "8"}, "items": [good, bad]})
    found = decode_list(kinds.WARMPOD, body)
    assert [item.metadata.name for item in found.items] == ["good"]
    assert found.unreadable == {(NAMESPACE, "bad")}

    known = WarmPod(
        Metadata(name="bad", namespace=NAMESPACE, resource_version="3"), WarmPodSpec(NamedObject("p", "n"))
    )
    store: Store[WarmPod] = Store([NAMESPACE])
    store.replace(NAMESPACE, [known], 3)
    store.replace(NAMESPACE, found.items, 8, found.unreadable)
    assert store.get((NAMESPACE, "bad")) == known
    bad["metadata"]["resourceVersion"] = "9"
    line = msgspec.json.encode({"type": "MODIFIED", "object": bad})
    store.apply(NAMESPACE, decode_line(kinds.WARMPOD, line, "WATCH"))
    assert store.get((NAMESPACE, "bad")) == known
    bad["metadata"]["resourceVersion"] = "10"
    line = msgspec.json.encode({"type": "DELETED", "object": bad})
    store.apply(NAMESPACE, decode_line(kinds.WARMPOD, line, "WATCH"))
    assert store.get((NAMESPACE, "bad")) is None


def test_a_watch_that_is_behind_a_list_brings_nothing_back() -> None:
    store: Store[AnyObject] = Store([NAMESPACE])
    store.replace(NAMESPACE, [], 8)
    store.apply(NAMESPACE, event("ADDED", thing("gone", 5)))
    assert (store.items(), store.version(NAMESPACE)) == ([], 8)


def test_an_answer_that_is_not_as_its_kind_says_is_an_error_of_the_call() -> None:
    with pytest.raises(KubeError, match="a WarmPod cannot be read"):
        decode(kinds.WARMPOD, b"<html>")


def test_an_error_in_a_watch_is_raised_as_what_it_is() -> None:
    status = {
        "kind": "Status",
        "code": 410,
        "reason": "Expired",
        "message": "too old resource version: 1 (9)",
    }
    with pytest.raises(Gone, match="too old resource version"):
        decode_line(kinds.WARMPOD, msgspec.json.encode({"type": "ERROR", "object": status}), "WATCH")


@given(st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line)), st.lists(st.integers(0, 60)))
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    found, rest = [], b""
    for start, end in itertools.pairwise(ends):
        more, rest = lines_of(rest, text[start:end])
        found += list(more)
    assert found == [line for line in lines if line]
    assert rest == b""


def test_what_is_sent_says_what_it_is() -> None:
    pod = WarmPod(Metadata(name="a"), WarmPodSpec(NamedObject("p", "n")))
    want = {
        "apiVersion": "llmsafespace.dev/v1",
        "kind": "WarmPod",
        "metadata": {"name": "a"},
        "spec": {"poolRef": {"name": "p", "namespace": "n"}},
    }
    assert msgspec.json.decode(encode_object(kinds.WARMPOD, pod)) == {**want, "status": {}}
    body = {"metadata": {"name": "a"}, "spec": want["spec"]}
    assert msgspec.json.decode(encode_object(kinds.WARMPOD, body)) == want


def test_pauses_grow_to_ten_seconds_and_heed_what_the_server_asks_for() -> None:
    assert pause_after(0, None) == 0
    assert 0.05 <= pause_after(1, None) <= 0.1
    assert 5 <= pause_after(1000, None) <= 10
    assert pause_after(1, TooManyRequests("slow down", retry_after=7.0)) == 7
