"""A kernel's messages are the JSON that jupyter_client's own packer writes, with orjson or without it."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import json_packer

import llmsafespace_agent

LAUNCHER = Path(llmsafespace_agent.__file__).parent / "kernels" / "launcher"
Pack = Callable[[Any], bytes]


@pytest.fixture(scope="module")
def packing() -> Iterator[Any]:
    sys.path.insert(0, str(LAUNCHER))
    try:
        yield importlib.import_module("llmsafespace_kernel.packing")
    finally:
        sys.path.remove(str(LAUNCHER))
        for name in [name for name in sys.modules if name.startswith("llmsafespace_kernel")]:
            del sys.modules[name]


def outcome(pack: Pack, document: Any) -> Any:
    """What a client reads, or what is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return repr(json.loads(pack(document).decode("utf-8", "surrogateescape")))
        except Exception as error:
            return type(error)


class Color(IntEnum):
    RED = 1


class Text(str):
    pass


@dataclass
class Point:
    x: int = 1


Pair = namedtuple("Pair", "a b")
ODD = {
    "nan": {"x": [1.5, float("nan"), None]},
    "infinity": ({"x": float("inf")}, [-float("inf")]),
    "numpy nan": {"x": np.float64("nan")},
    "null": {"x": None, "text": "null nan"},
    "big": {"x": [2**63, 2**64, -(2**64), 10**40]},
    "53 bits": {"x": [2**53, 2**53 + 1, -(2**63)]},
    "integer keys": {1: "a", 2: {3: 4}},
    "other keys": {None: 1, True: 2, 1.5: 3},
    "a tuple as key": {(1, 2): 3},
    "twice the same key": {1: "a", "1": "b"},
    "aware": {"x": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)},
    "another zone": {"x": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30)))},
    "naive": {"x": datetime(2026, 1, 2, 3, 4, 5)},
    "date": {"x": date(2026, 1, 2)},
    "bytes": {"x": b"\x00\xff"},
    "set": {"x": {1}},
    "generator": {"x": iter(())},
    "numpy": {"x": [np.int64(1), np.float32(1.5), np.bool_(True)]},
    "array": {"x": np.arange(3)},
    "enum": {"x": Color.RED},
    "subclass": OrderedDict(x=Text("y")),
    "namedtuple": {"x": Pair(1, "b")},
    "dataclass": {"x": Point()},
    "floats": {"x": [0.1, 1e16, 1e-7, -0.0, 1e308, 5e-324]},
    "separators": {"x": '\u2028\u2029\x7f\x00\x1f"\\/'},
    "object": {"x": object()},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("installed", [True, False], ids=["orjson", "no orjson"])
def test_odd_values_come_out_as_before(
    packing: Any, name: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(packing, "_dumps", None)
    assert outcome(packing.pack, ODD[name]) == outcome(json_packer, ODD[name])


_texts = st.text(st.characters(exclude_categories=["Cs"]))  # jupyter_client refuses surrogates: see below
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts | st.datetimes() | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(_texts | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ODD)
def test_odd_values_in_long_messages_come_out_as_before(packing: Any, name: str) -> None:
    for rest in ("x" * 100_000, [1] * 100_000):
        document = {"rest": rest, "odd": ODD[name]}
        assert outcome(packing.pack, document) == outcome(json_packer, document)


@given(st.dictionaries(_texts, _values, max_size=4))
def test_any_document_comes_out_as_before(packing: Any, document: dict[str, Any]) -> None:
    assert outcome(packing.pack, document) == outcome(json_packer, document)


def test_large_text_goes_the_fast_way(packing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_pack_slowly", None)
    assert json.loads(packing.pack({"text": "x" * 1_000_000, "n": None}))["n"] is None


@pytest.mark.parametrize("installed", [True, False], ids=["orjson", "no orjson"])
@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\ud83d", "a\\ud83d"),
        ("\udcffb", "\\udcffb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\udcc3\udca9", "\u00e9"),
        ('"\ud800"\\', '"\\ud800"\\'),
    ],
)
def test_text_that_json_cannot_say_is_spelt_out(
    packing: Any, text: str, read: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(packing, "_dumps", None)
    packed = packing.pack({text: [text, float("nan")]})
    assert json.loads(packed.decode()) == {read: [read, "nan"]}


@given(st.dictionaries(st.text(st.characters(exclude_categories=())), _values, min_size=1, max_size=4))
def test_any_text_can_be_said(packing: Any, document: dict[str, Any]) -> None:
    packing.pack(document).decode()
