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
    """The environment that serves; `warning` says how it differs from the request ("" if it does not)."""

    environment: RuntimeEnvironment
    warning: str = ""


def label(environment: RuntimeEnvironment) -> str:
    """Return the name that a Sandbox uses for this environment, such as `python:3.11`."""
    spec = environment.spec
    return f"{spec.language}:{spec.version}" if spec.version else spec.language


def resolve(requested: str, environments: Iterable[RuntimeEnvironment]) -> Resolved | str:
    """Return the environment that serves `requested`, or text: why none does.

    `requested` is an environment's name, or a language with an optional version or the beginning of one. An
    exact match has no warning. Otherwise the nearest version with the same major version serves; of two
    equally near, the newer. Of several environments with the same version the oldest object serves, so that
    adding one changes nothing.
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
    of_language = [each for each in available if each.spec.language.lower() == language]
    if not of_language:
        return _no_runtime(requested, language, known, available)
    exact = [each for each in of_language if _matches(version, each.spec.version)]
    if exact:
        return Resolved(_newest(exact))
    return _nearest(requested, version, of_language)


def _nearest(requested: str, version: str, of_language: list[RuntimeEnvironment]) -> Resolved | str:
    wanted = _numbers(version)
    near = [each for each in of_language if wanted and _numbers(each.spec.version)[:1] == wanted[:1]]
    if not near:
        return f"there is no runtime {requested} here, only {_list(of_language)}"
    best = min(near, key=lambda each: _distance(wanted, _numbers(each.spec.version)))
    return Resolved(best, f"{requested} is not available here; it is served by {label(best)}")


def _matches(requested: str, version: str) -> bool:
    return requested in _ANY or version == requested or version.startswith(f"{requested}.")


def _newest(environments: list[RuntimeEnvironment]) -> RuntimeEnvironment:
    """Return the environment with the highest version; of several, the first."""
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


def _no_runtime(
    requested: str, language: str, known: list[RuntimeEnvironment], available: list[RuntimeEnvironment]
) -> str:
    unavailable = [each for each in known if each.spec.language.lower() == language]
    if unavailable:
        return _not_available(requested, unavailable[0])
    others = f"; there are {_list(available)}" if available else ""
    return f"there is no runtime for the language {language!r} here{others}"


def _not_available(requested: str, environment: RuntimeEnvironment) -> str:
    said = next((each.message for each in environment.status.conditions if each.status == "False"), "")
    why = said or "the operator has not checked it yet"
    return f"the runtime {requested} exists but is not available: {why}"


def _list(environments: list[RuntimeEnvironment]) -> str:
    return ", ".join(sorted({label(each) for each in environments}))
