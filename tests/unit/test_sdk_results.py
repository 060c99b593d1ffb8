"""What executions leave, from kernel messages and from the gateway's events, and how it is shown."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from llmsafespace import Execution, ExecutionError, ExecutionFailed, Logs, Result, events
from llmsafespace.outputs import (
    END_OF_INPUT,
    Callbacks,
    ExecutionBuilder,
    SandboxWarning,
    text_of,
    warn_of,
)


def built(*told: events.Event) -> Execution:
    builder = ExecutionBuilder("id")
    for event in told:
        builder.add(event)
    return builder.execution


def message(msg_type: str, **content: Any) -> events.Event:
    event = events.from_message(msg_type, content, 1)
    assert event is not None
    return event


def test_output_is_gathered() -> None:
    execution = built(
        message("stream", name="stdout", text="a"),
        message("stream", name="stderr", text="w"),
        message("stream", name="stdout", text="b\n"),
        message("execute_result", data={"text/plain": "2"}, metadata={}, execution_count=1),
        events.End("ok", 1),
    )
    assert (execution.stdout, execution.stderr, execution.text) == ("ab\n", "w", "2")
    assert execution.logs.stdout == ["a", "b\n"]
    assert (execution.exit_code, execution.success, execution.execution_count) == (0, True, 1)
    assert execution.raise_for_error() is execution


def test_updates_replace_and_clear_clears() -> None:
    shown = {"data": {"text/plain": "1"}, "transient": {"display_id": "d"}}
    new = {"data": {"text/plain": "2"}, "transient": {"display_id": "d"}}
    execution = built(
        message("display_data", **shown),
        message("display_data", **shown),
        message("update_display_data", **new),
    )
    assert [result.text for result in execution.results] == ["2", "2"]
    assert built(message("display_data", **shown), message("clear_output", wait=False)).results == []
    waiting = built(message("display_data", **shown), message("clear_output", wait=True))
    assert len(waiting.results) == 1
    then = built(
        message("display_data", **shown), message("clear_output", wait=True), message("display_data", **new)
    )
    assert [result.text for result in then.results] == ["2"]


@pytest.mark.parametrize("end", ["timeout", "oom", "kernel_died", "expired", "aborted"])
def test_the_agents_word_is_the_end(end: str) -> None:
    raised = message("error", ename="KeyboardInterrupt", evalue="", traceback=["…"])
    content = {"status": "error", "ename": "Honest", "evalue": "because"}
    execution = built(raised, events.end_from_reply(content, {"llmsafespace": {"end": end}}))
    assert (execution.end, execution.exit_code) == (end, 1)
    assert execution.error is not None
    assert execution.error.name == "Honest"
    with pytest.raises(ExecutionFailed, match=end):
        execution.raise_for_error()


def test_an_exception_keeps_its_traceback() -> None:
    trace = ["\x1b[31mZeroDivisionError\x1b[0m", "line"]
    raised = message("error", ename="ZeroDivisionError", evalue="division by zero", traceback=trace)
    reply = {
        "status": "error",
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
        "traceback": trace,
    }
    execution = built(raised, events.end_from_reply(reply, {}))
    assert execution.end == "error"
    assert execution.error == ExecutionError("ZeroDivisionError", "division by zero", "\n".join(trace))
    assert "ZeroDivisionError\nline" in execution.stderr
    assert "\x1b" not in text_of(raised)


def test_lost_output_is_counted_told_and_warned_of() -> None:
    gap = events.Gap(7)
    execution = built(gap)
    assert execution.missed == 7
    assert "7 messages were lost" in execution.stderr
    with pytest.warns(SandboxWarning, match="7 messages"):
        warn_of(gap)


def test_events_of_the_rest_api() -> None:
    lines: list[dict[str, Any]] = [
        {"type": "stdout", "seq": 1, "text": "x"},
        {"type": "display", "seq": 2, "data": {"image/png": "AA=="}, "isMainResult": True, "displayId": "d"},
        {"type": "update", "seq": 3, "data": {"text/plain": "u"}, "displayId": "d"},
        {"type": "error", "seq": 4, "name": "E", "value": "v", "traceback": ["t"]},
        {"type": "end", "seq": 5, "executionId": "i", "end": "error", "exitCode": 3, "message": "m"},
    ]
    told = [event for event in map(events.from_json, lines) if event is not None]
    assert [event.type for event in told] == ["stdout", "display", "update", "error", "end"]
    assert [event.seq for event in told] == [1, 2, 3, 4, 5]
    assert isinstance(told[-1], events.End)
    assert told[-1].exit_code == 3
    assert built(*told).results[0].text == "u"
    assert events.from_json({"type": "something new"}) is None


def test_formats() -> None:
    raw = {"text/plain": "p", "image/png": "AA==", "application/json": {"a": 1}, "application/x": 1}
    result = Result(raw)
    assert result.formats() == ["text", "png", "json", "application/x"]
    assert (result.text, result.png, result.json, result.html) == ("p", "AA==", {"a": 1}, None)
    assert str(Result({"image/png": "AA=="})) == "Result(png)"


def test_untrusted_markup_stays_in_its_frame() -> None:
    evil = '<script>alert("x")</script>'
    bundle = Result({"text/html": evil, "application/javascript": "alert(1)"})._repr_mimebundle_()
    assert evil not in bundle["text/html"]
    assert '<iframe sandbox=""' in bundle["text/html"]
    assert "application/javascript" not in bundle
    picture = Result({"image/svg+xml": f"<svg>{evil}</svg>"})._repr_mimebundle_()["text/html"]
    assert base64.b64encode(f"<svg>{evil}</svg>".encode()).decode() in picture
    html = Execution("i", logs=Logs([evil], [evil]), error=ExecutionError("E", evil))._repr_html_()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 3


def test_an_execution_renders() -> None:
    png = {"image/png": base64.b64encode(b"x").decode()}
    execution = Execution("i", results=[Result(png)], logs=Logs(["out"]))
    bundle = execution._repr_mimebundle_()
    assert "data:image/png;base64" in bundle["text/html"]
    assert "out" in bundle["text/plain"]
    assert "(ok)" in Execution("i")._repr_mimebundle_()["text/plain"]


def test_standard_input_from_text_lines_and_functions() -> None:
    ask = events.InputRequest("name? ")
    from_text = Callbacks(stdin="Ada\nLovelace")
    assert [from_text.call(ask) for _ in range(3)] == ["Ada", "Lovelace", END_OF_INPUT]
    assert Callbacks(stdin=["one\n"]).call(ask) == "one"
    assert Callbacks(stdin=lambda prompt: prompt.upper()).call(ask) == "NAME? "
    assert Callbacks().call(ask) == END_OF_INPUT
