"""Which RuntimeEnvironment serves a request: pure decisions about names and versions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from llmsafespace_kube.resources.types import RuntimeEnvironment

_REQUEST = re.compile(r"(?P<language>[a-z][a-z+_-]*)(?P<joined>\d+(\.\d+)*)?(:(?P<version>[\w.+-]+))?")
_NUMBERS = re.compile(r"\d+(\.\d+)*")
_ANY = ("", "latest", "default")

Version = tuple[int, ...]


class Resolved(msgspec.Struct, frozen=True):
    """The environment that serves, and how it differs from what was asked for ("" when it does not)."""

    environment: RuntimeEnvironment
    warning: str = ""


def label(environment: RuntimeEnvironment) -> str:
    """What a Sandbox calls this environment, as `python:3.11`."""
    spec = environment.spec
    return f"{spec.language}:{spec.version}" if spec.version else spec.language


def resolve(requested: str, environments: Iterable[RuntimeEnvironment]) -> Resolved | str:
    """What serves `requested`, or why nothing does.

    `requested` is an environment's name, or a language with or without (the beginning of) a version. What
    fits exactly has no warning; otherwise the nearest version with the same first number serves, the newer
    of two equally near. Of several alike the oldest serves, so that a new one changes nothing unasked.
    """
    known = [each for each in environments if each.metadata.deletion_timestamp is None]
    available = sorted((each for each in known if each.status.available), key=_seniority)
    named = next((each for each in known if each.metadata.name == requested), None)
    if named is not None:
        return Resolved(named) if named.status.available else _not_available(requested, named)
    match = _REQUEST.fullmatch(requested.strip().lower())
    if match is None or (match["joined"] and match["version"]):
        return f"{requested!r} is no runtime: write a language and a version, as in python:3.11"
    language, version = match["language"], match["version"] or match["joined"] or ""
    speaking = [each for each in available if each.spec.language.lower() == language]
    if not speaking:
        return _why_none(requested, language, known, available)
    exact = [each for each in speaking if _is(version, each.spec.version)]
    if exact:
        return Resolved(_newest(exact))
    return _nearest(requested, version, speaking)


def _nearest(requested: str, version: str, speaking: list[RuntimeEnvironment]) -> Resolved | str:
    wanted = _numbers(version)
    near = [each for each in speaking if wanted and _numbers(each.spec.version)[:1] == wanted[:1]]
    if not near:
        return f"there is no runtime {requested} here, only {_list(speaking)}"
    best = min(near, key=lambda each: _distance(wanted, _numbers(each.spec.version)))
    return Resolved(best, f"{requested} is not available here; it is served by {label(best)}")


def _is(requested: str, version: str) -> bool:
    return requested in _ANY or version == requested or version.startswith(f"{requested}.")


def _newest(environments: list[RuntimeEnvironment]) -> RuntimeEnvironment:
    """The first of those with the highest version."""
    return max(environments, key=lambda each: _numbers(each.spec.version))


def _numbers(version: str) -> Version:
    return tuple(map(int, version.split("."))) if _NUMBERS.fullmatch(version) else ()


def _distance(wanted: Version, version: Version) -> tuple[tuple[int, int], ...]:
    length = max(len(wanted), len(version))
    pairs = zip(_padded(wanted, length), _padded(version, length), strict=True)
    return tuple((abs(found - asked), -found) for asked, found in pairs)


def _padded(version: Version, length: int) -> Version:
    return version + (0,) * (length - len(version))


def _seniority(environment: RuntimeEnvironment) -> tuple[float, str]:
    born = environment.metadata.creation_timestamp
    return born.timestamp() if born is not None else 0.0, environment.metadata.name


def _why_none(
    requested: str, language: str, known: list[RuntimeEnvironment], available: list[RuntimeEnvironment]
) -> str:
    waiting = [each for each in known if each.spec.language.lower() == language]
    if waiting:
        return _not_available(requested, waiting[0])
    others = f"; there are {_list(available)}" if available else ""
    return f"there is no runtime for the language {language!r} here{others}"


def _not_available(requested: str, environment: RuntimeEnvironment) -> str:
    said = next((each.message for each in environment.status.conditions if each.status == "False"), "")
    why = said or "the operator has not checked it yet"
    return f"the runtime {requested} is there but not available: {why}"


def _list(environments: list[RuntimeEnvironment]) -> str:
    return ", ".join(sorted({label(each) for each in environments}))
