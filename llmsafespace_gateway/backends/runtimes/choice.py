"""Which runtime serves a request: pure decisions about names and versions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_REQUEST = re.compile(r"(?P<language>[a-z]+)(?P<joined>\d+(\.\d+)*)?(:(?P<version>[\w.+-]+))?")
_NUMBERS = re.compile(r"\d+(\.\d+)*")
_ANY = ("", "latest", "default", "3")


class Choice(msgspec.Struct, frozen=True):
    """The minor Python version that serves, the language that its default kernel speaks, and what differs."""

    language: str
    minor: str
    warning: str = ""


def choose(requested: str, available: Mapping[str, str], default: str, bash: str | None) -> Choice | str:
    """What serves `requested`, or why nothing does.

    `available` maps minor versions to full ones (3.11: 3.11.7); `default` is one of the minors, `bash` the
    version of bash, if there is one. An exact match has no warning; without one the nearest minor serves,
    the newer of two equally near.
    """
    match = _REQUEST.fullmatch(requested.strip().lower())
    if match is None or (match["joined"] and match["version"]):
        return f"{requested!r} is no runtime: write a language and a version, as in python:3.11"
    language, version = match["language"], match["version"] or match["joined"] or ""
    if language == "bash" and bash is not None:
        exact = version in ("", "latest", "default", bash, bash.split(".")[0])
        warning = f"{requested} is not available here; it is served by bash {bash}"
        return Choice("bash", default, "" if exact else warning)
    if language != "python":
        return f"there is no runtime for the language {language!r} here"
    if version in _ANY:
        return Choice("python", default)
    if not _NUMBERS.fullmatch(version):
        return f"{version!r} is no Python version: write it as in python:3.11"
    numbers = [int(part) for part in version.split(".")]
    if numbers[0] != 3:
        return f"Python {numbers[0]} is not served here, only Python 3"
    if len(numbers) == 1:
        return Choice("python", default)
    minor = _nearest(numbers[1], available)
    found = available[minor] if len(numbers) > 2 else minor
    if ".".join(map(str, numbers)) == found:
        return Choice("python", minor)
    served = f"python:{minor}" if len(numbers) == 2 else f"Python {available[minor]}"
    return Choice("python", minor, f"{requested} is not available here; it is served by {served}")


def _nearest(wanted: int, available: Mapping[str, str]) -> str:
    def distance(minor: str) -> tuple[int, int]:
        number = int(minor.split(".")[1])
        return abs(number - wanted), -number

    return min(available, key=distance)


def ids(available: Mapping[str, str], bash: str | None) -> list[str]:
    """Every id that names a runtime exactly, as an error message lists them."""
    return [f"python:{minor}" for minor in available] + (["bash"] if bash else [])
