"""What callers give is checked before anything is sent; the message has the value's name, not the value."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from llmsafespace import InvalidRequest, SandboxError, values
from llmsafespace.errors import GatewayUnavailable, QuotaExceeded
from llmsafespace.events import from_line
from llmsafespace.outputs import Callbacks
from llmsafespace.requests import creation, package_list
from llmsafespace.runner import RunOptions


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Word(enum.StrEnum):
    CODE = "6 * 7"


class Holder:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


BLOCKS: Any = [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "6 * 7"}]


@pytest.mark.parametrize(
    "code",
    [
        "6 * 7",
        Text("6 * 7"),
        Word.CODE,
        AIMessage("6 * 7"),
        AIMessage(BLOCKS),
        HumanMessage("6 * 7"),
        AIMessage("6 * 7").text,
        Generation(text="6 * 7"),
        ChatGeneration(message=AIMessage("6 * 7")),
        LLMResult(generations=[[Generation(text="6 * 7"), Generation(text="other")]]),
        LLMResult(generations=[[ChatGeneration(message=AIMessage("6 * 7"))]]),
        Holder(content="6 * 7"),
        Holder(text=Text("6 * 7")),
        Holder(content=b"6 * 7", text="6 * 7"),
    ],
    ids=lambda code: type(code).__name__,
)
def test_code_is_text_or_holds_text(code: object) -> None:
    found = values.code_text(code)
    assert (found, type(found)) == ("6 * 7", str)


@pytest.mark.parametrize(
    "code",
    [
        *(None, 5, b"6 * 7", bytearray(b"1"), ["6 * 7"], {"content": "6 * 7"}, print),
        *(Holder(), Holder(text=len), Holder(generations=[[[]]])),
        *(LLMResult(generations=[]), LLMResult(generations=[[]])),
    ],
    ids=lambda code: type(code).__name__,
)
def test_other_code_is_a_type_error_that_says_what_is_wanted(code: object) -> None:
    with pytest.raises(TypeError, match=rf"code must be text \(str\), .* got {type(code).__name__}"):
        values.code_text(code)


def test_code_that_utf_8_lacks() -> None:
    """A truncated emoji, say."""
    with pytest.raises(InvalidRequest, match=r"code: character 3 is U\+D83D, half of a pair"):
        values.code_text("# !\ud83d")
    assert values.code_text("a\0b") == "a\0b"  # the kernel has a word of its own for it


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PORT": 8080}, "env: the value of 'PORT' must be text (str), got int"),
        ({"TOKEN": b"secret"}, "env: the value of 'TOKEN' must be text (str), got bytes"),
        ({"A": None}, "env: the value of 'A' must be text (str), got NoneType"),
        ({1: "x"}, "env: the name 1 must be text (str), got int"),
        ({"A=B": "x"}, "env: 'A=B' cannot be the name"),
        ({"": "x"}, "env: '' cannot be the name"),
        ({"A\0": "x"}, "env: the name 'A\\x00' contains NUL"),
        ({"TOKEN": "secret\0"}, "env: the value of 'TOKEN' contains NUL (character 6)"),
        ({"TOKEN": "secret\udcff"}, "env: the value of 'TOKEN': character 6 is U+DCFF"),
        ({"BIG": "x" * 131068}, "env: 'BIG' has 131071 bytes, at most 131070"),
        (
            {f"V{n:02}": "x" * 131000 for n in range(9)},
            "env: all variables have 1179027 bytes, at most 1048576",
        ),
        (["A=1"], "env must be a mapping of names to values, got list"),
    ],
)
def test_variables_that_no_process_can_be_given(env: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        values.environment(env)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


def test_variables_at_their_limits() -> None:
    longest = {"A": "é" * 65534 + "x"}
    assert values.environment(longest) == longest
    most = {f"V{n}": "x" * 131068 for n in range(8)}
    assert values.environment(most) == most
    assert values.environment({Text("A"): Word.CODE}) == {"A": "6 * 7"}
    assert values.environment(None) == {}


@pytest.mark.parametrize("timeout", ["5", b"5", -1, 0, float("nan"), float("inf"), True, [], 10**400])
def test_times_that_are_none(timeout: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a number of seconds above 0, got"):
        RunOptions(timeout=timeout)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (5, "command must be a line (str) or a list of arguments, got int"),
        (b"ls", "command must be a line (str) or a list of arguments, got bytes"),
        ([], "command is an empty list"),
        (["echo", 5], "command[1] must be text (str), got int"),
        ("a\0b", "command contains NUL (character 1)"),
        (["a\0b"], "command[0] contains NUL"),
        (["\ud800"], "command[0]: character 0 is U+D800"),
    ],
)
def test_commands_that_are_none(command: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        values.command(command)
    assert words in str(raised.value)


def test_commands_may_have_paths_in_them() -> None:
    assert values.command(["cat", Path("/tmp/x"), Word.CODE]) == ["cat", "/tmp/x", "6 * 7"]
    assert values.command(argument for argument in ("a", "b")) == ["a", "b"]
    assert values.command("") == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metadata": {"a": 1}}, "metadata['a'] must be text (str), got int"),
        ({"files": {"a": 5}}, "files['a'] must be text, bytes or a Path, got int"),
        ({"files": {"a": "\ud800"}}, "files['a']: character 0"),
        ({"cwd": 5}, "cwd must be text (str), got int"),
        ({"idle_timeout": "soon"}, "idle_timeout must be a number of seconds"),
        ({"max_lifetime": -1}, "max_lifetime must be a number of seconds"),
        ({"env": {"A": 1}}, "env: the value of 'A'"),
    ],
)
def test_values_of_a_sandbox(options: dict[str, Any], words: str) -> None:
    names = (
        "runtime timeout resources network_access warm_pool env files packages cwd metadata "
        "idle_timeout max_lifetime"
    )
    plain: dict[str, Any] = dict.fromkeys(names.split())
    with pytest.raises(InvalidRequest) as raised:
        creation(**{**plain, "security_level": "standard", "use_warm_pool": True, **options})
    assert words in str(raised.value)


def test_input_and_packages() -> None:
    for stdin in (b"x", 5):
        with pytest.raises(InvalidRequest, match="stdin must be text, lines, or a function"):
            Callbacks(stdin=stdin)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"packages\[1\] must be text"):
        package_list(["a", 5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"type":"failure","code":"quota_exceeded","message":"m"}', QuotaExceeded),
        (b'{"type":"failure","code":"service_unavailable","message":"m"}', GatewayUnavailable),
        (b'{"type":"failure","code":"internal_error","message":"m"}', SandboxError),
        (b"<html>", SandboxError),
        (b'{"type":"end"}', SandboxError),
        (b'{"type":"gap","missed":"x"}', SandboxError),
    ],
)
def test_what_a_stream_of_events_breaks_off_with(line: bytes, kind: type[SandboxError]) -> None:
    """Only a gateway that cannot serve now is asked again; anything else is raised at once."""
    with pytest.raises(SandboxError) as raised:
        from_line(line)
    assert type(raised.value) is kind
