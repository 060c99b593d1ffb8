"""Checks what callers give before anything is sent: what is wrong is told at once, by the name of the value.

Values may be secret: a message tells their name and type and what is expected, never a variable's value.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from llmsafespace_protocol.environment import MAX_VARIABLE, problem

from llmsafespace.errors import InvalidRequest


def code_text(code: object) -> str:
    """The code in what `run_code` was given. Raises TypeError for what has none, InvalidRequest.

    Text and its subclasses are taken as they are. Of other objects the text in `.content` or in `.text` is
    taken (LangChain's messages and generations), or that of the first generation (LangChain's `LLMResult`).
    """
    found = _text_in(code)
    if found is None:
        raise TypeError(
            f"code must be text (str), or a message or result of LangChain with text in it; got {_kind(code)}"
        )
    return plain(found, "code", nul=True)


def _text_in(value: object) -> str | None:
    if isinstance(value, str):
        return value
    for name in ("content", "text"):
        found = getattr(value, name, None)
        if isinstance(found, str):
            return found
    first = getattr(value, "generations", None)
    while isinstance(first, list) and first:
        first = first[0]
    return _text_in(first) if first is not None and first is not value else None


def plain(value: object, name: str, *, nul: bool = False) -> str:
    """A str itself for a str or a subclass. Raises InvalidRequest for others, and for what UTF-8 lacks."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text (str), got {_kind(value)}")
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise InvalidRequest(
            f"{name}: character {error.start} is {half}, half of a pair, which no text can hold alone"
        ) from None
    if not nul and "\0" in text:
        raise InvalidRequest(f"{name} contains NUL (character {text.index(chr(0))}), which it cannot")
    return text


def environment(
    env: Mapping[str, str] | None, *, longest: int | None = MAX_VARIABLE, name: str = "env"
) -> dict[str, str]:
    """Environment variables that a process can be given. Raises InvalidRequest with the variable's name."""
    if env is not None and not isinstance(env, Mapping):
        raise InvalidRequest(f"{name} must be a mapping of names to values, got {_kind(env)}")
    checked: dict[str, str] = {}
    for key, value in (env or {}).items():
        text = plain(key, f"{name}: the name {key!r:.80}")
        checked[text] = plain(value, f"{name}: the value of {text!r:.80}")
    if (found := problem(checked, longest)) is not None:
        raise InvalidRequest(f"{name}: {found}")
    return checked


def texts(values: Mapping[str, str] | None, name: str) -> dict[str, str] | None:
    """A mapping of text to text, None for none. Raises InvalidRequest with the key."""
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"{name} must be a mapping, got {_kind(values)}")
    return {
        plain(key, f"{name}: the key {key!r:.80}"): plain(value, f"{name}[{key!r:.80}]")
        for key, value in values.items()
    }


def seconds(value: Any, name: str) -> float | None:
    """A number of seconds above 0, None for none. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidRequest(f"{name} must be a number of seconds above 0, got {value!r:.80}")
    return number


def path(value: object, name: str) -> str:
    """A path as text, from text or an object that stands for one (pathlib). Raises InvalidRequest."""
    return plain(os.fspath(value) if isinstance(value, os.PathLike) else value, name)


def data(value: object, name: str) -> bytes:
    """Bytes. Raises InvalidRequest for what is neither bytes nor a view of them."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidRequest(f"{name} must be text, bytes or a Path, got {_kind(value)}")
    return bytes(value)


def check_lines(value: object) -> None:
    """Raise InvalidRequest for what is neither text nor lines of it."""
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Iterable):
        raise InvalidRequest(f"stdin must be text, lines, or a function of the prompt, got {_kind(value)}")


def input_of(value: object, field: str = "stdin", encoding: str = "stdinEncoding") -> dict[str, str]:
    """Text or any bytes for a command's standard input, as the API takes them. Raises InvalidRequest."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {field: plain(value, "stdin", nul=True)}
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidRequest(f"stdin must be text or bytes, got {_kind(value)}")
    return {field: base64.b64encode(value).decode("ascii"), encoding: "base64"}


def optional_path(value: object, name: str) -> str | None:
    """A path as text, None for none. Raises InvalidRequest."""
    return None if value is None else path(value, name)


def command(value: object) -> str | list[str]:
    """A shell line, or the program and its arguments. Raises InvalidRequest."""
    if isinstance(value, str):
        return plain(value, "command")
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRequest(f"command must be a line (str) or a list of arguments, got {_kind(value)}")
    arguments = [path(each, f"command[{place}]") for place, each in enumerate(value)]
    if not arguments:
        raise InvalidRequest("command is an empty list: name a program")
    return arguments


def _kind(value: object) -> str:
    return type(value).__name__
