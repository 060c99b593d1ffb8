"""The log: readable lines for people, JSON for machines, and in both nothing that a stranger could forge."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from llmsafespace_gateway.logs import JsonFormatter, TextFormatter

KEY = "lsp_" + "0123456789abcdef" + "_" + "ab" * 32
FORMATTERS = {"json": JsonFormatter(), "text": TextFormatter(colours=False)}


def record(message: str, *values: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("test", logging.WARNING, "file", 1, message, values, None)
    made.fields = fields
    return made


@pytest.fixture(params=FORMATTERS, ids=str)
def formatter(request: pytest.FixtureRequest) -> logging.Formatter:
    return FORMATTERS[request.param]


@pytest.mark.parametrize(
    "hostile",
    [
        "a\n12:00:00 critical all is lost",
        "a\r12:00:00 critical",
        "\x1b]0;title\x07\x1b[2J",
        "\x9b2J",
        "\x7f\x08\x08\x08",
        "a\u2028b\u2029c\x85d",
        "\u202egnp.exe",
        "\u2066\u2069",
        "half \ud83d",
        "NUL \x00",
    ],
    ids=ascii,
)
def test_nobody_writes_lines_or_to_the_terminal(hostile: str, formatter: logging.Formatter) -> None:
    """Neither in a message, nor in a field, nor in a field's name, nor in an exception."""
    lines = [record("%s", hostile), record("x", name=hostile), record("x", **{hostile: 1})]
    for each in lines:
        line = formatter.format(each)
        assert line.isprintable(), line
        line.encode()
    try:
        raise ValueError(hostile)
    except ValueError:
        failed = logging.LogRecord("test", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    told = formatter.format(failed)
    told.encode()
    first, *rest = told.split("\n")
    assert first.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_json_says_what_was_said() -> None:
    """Escapes are JSON's own: a machine gets the text back."""
    text = "a\nb\x1b\x85\u2028\u202e"
    line = json.loads(JsonFormatter().format(record("%s", text, field=text)))
    assert (line["message"], line["field"]) == (text, text)


def test_keys_and_tokens_are_never_written(formatter: logging.Formatter) -> None:
    for text in (f"GET /api/x?a=1&token={KEY}", f"/api?token=secret-{KEY}&b=2", f"Bearer {KEY}"):
        for made in (record("%s", text), record("x", path=text)):
            told = formatter.format(made)
            assert KEY not in told
            assert "secret" not in told
            assert "removed" in told
    assert "b=2" in formatter.format(record("/api?token=x&b=2"))


def test_text_is_one_readable_line() -> None:
    line = TextFormatter(colours=False).format(record("a request failed", status=500, user=None))
    assert line.endswith(" warning  a request failed  status=500")
    assert "\x1b" in TextFormatter(colours=True).format(record("x"))


# -- by the real program -------------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *options: str) -> str:
    """What a gateway that cannot serve writes to a terminal, with a warning in its log first."""
    config = folder / "config.json"
    config.write_text(json.dumps({"GatewayApp": {"warm_pools": []}}))
    program = (
        "import logging, sys; from llmsafespace_gateway import lifecycle, app\n"
        "async def serve(gateway): logging.getLogger('x').warning('seen %s', 'a\\x1bb')\n"
        "app.serve = serve; app.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--config", str(config), "--data-dir", str(folder / "data")]
    ours, theirs = pty.openpty()
    try:
        subprocess.run([*command, *options], stderr=theirs, stdout=theirs, timeout=60, check=True)
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:
            pass  # the terminal's other end is closed
    finally:
        os.close(ours)
    return said.decode()


def test_people_at_a_terminal_get_lines(tmp_path: Path) -> None:
    told = on_a_terminal(tmp_path)
    assert "seen a\\u001bb" in told
    assert "{" not in told


def test_json_on_a_terminal_when_asked_for(tmp_path: Path) -> None:
    assert json.loads(on_a_terminal(tmp_path, "--log-format", "json"))["message"] == "seen a\x1bb"


@pytest.mark.parametrize(("options", "is_json"), [((), True), (("--log-format=text",), False)])
def test_a_pipe_gets_json_unless_told(tmp_path: Path, options: tuple[str, ...], is_json: bool) -> None:
    program = (
        "import logging, sys; from llmsafespace_gateway import app\n"
        "async def serve(gateway): logging.getLogger('x').warning('seen')\n"
        "app.serve = serve; app.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--data-dir", str(tmp_path / "data"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.startswith("{") == is_json
    assert "seen" in done.stderr
