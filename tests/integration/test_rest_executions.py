"""Executions, contexts, commands and packages over REST, on real kernels."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import make_gateway
from tests.integration.rest_support import Client, is_error


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-executions")) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(client: Client) -> Iterator[str]:
    with client.sandbox() as made:
        yield made


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.iter_lines()]


def test_code_and_its_results(client: Client, sandbox: str) -> None:
    code = (
        "import sys\nfrom IPython.display import HTML, display\n"
        "print('out'); print('err', file=sys.stderr)\ndisplay(HTML('<b>x</b>'))\n6 * 7"
    )
    answer = client.execute(sandbox, code)
    assert (answer["stdout"], answer["stderr"]) == ("out\n", "err\n")
    assert (answer["status"], answer["end"], answer["exitCode"]) == ("completed", "ok", 0)
    assert answer["results"][0]["data"]["text/html"] == "<b>x</b>"
    assert answer["results"][1]["data"]["text/plain"] == "42"
    assert answer["results"][1]["isMainResult"]
    assert not answer["truncated"]


def test_errors_timeouts_and_exits_have_their_words(client: Client, sandbox: str) -> None:
    failed = client.execute(sandbox, "1/0")
    assert (failed["end"], failed["exitCode"]) == ("error", 1)
    assert failed["error"]["name"] == "ZeroDivisionError"
    slow = client.execute(sandbox, "import time; print('before', flush=True); time.sleep(60)", timeout=0.5)
    assert (slow["end"], slow["status"], slow["stdout"]) == ("timeout", "failed", "before\n")
    assert client.execute(sandbox, "kept = 1\nkept")["end"] == "ok"


def test_the_same_id_runs_once(client: Client, sandbox: str) -> None:
    execution = uuid.uuid4().hex
    code = "count = globals().get('count', 0) + 1\nprint(count)"
    first = client.execute(sandbox, code, executionId=execution)
    again = client.execute(sandbox, code, executionId=execution)
    assert first == again
    assert first["stdout"] == "1\n"
    other = client.post(
        f"/sandboxes/{sandbox}/execute", json={"content": "print(2)", "executionId": execution}
    )
    is_error(other, 409, "conflict")
    assert client.get(f"/sandboxes/{sandbox}/executions/{execution}").json() == first
    listed = client.get(f"/sandboxes/{sandbox}/executions").json()["items"]
    assert [row["executionId"] for row in listed].count(execution) == 1


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/event-stream"])
def test_events_are_streamed_and_taken_up_again(client: Client, sandbox: str, kind: str) -> None:
    body = {"content": "for i in range(5): print(i, flush=True)", "executionId": uuid.uuid4().hex}
    path = f"/sandboxes/{sandbox}/execute"
    with client.stream("POST", path, json=body, headers={"Accept": kind}) as answer:
        assert answer.headers["content-type"] == kind
        text = answer.read().decode()
    data = [
        line.removeprefix("data: ")
        for line in text.splitlines()
        if line and not line.startswith(("id", "ev"))
    ]
    found = [json.loads(line) for line in data]
    assert "".join(event["text"] for event in found if event["type"] == "stdout") == "0\n1\n2\n3\n4\n"
    assert found[-1]["type"] == "end"
    assert found[-1]["end"] == "ok"
    events = f"/sandboxes/{sandbox}/executions/{body['executionId']}/events"
    after = found[0]["seq"]
    rest = lines(client.get(events, params={"after": after}))
    assert rest == [event for event in found if event["seq"] > after]
    resumed = client.get(events, headers={"Accept": "text/event-stream", "Last-Event-ID": str(after)})
    assert resumed.text.count("event: ") == len(rest)


def test_events_come_while_it_runs_and_interrupt_ends_it(client: Client, sandbox: str) -> None:
    body = {
        "content": "import time\nprint('up', flush=True)\ntime.sleep(120)",
        "executionId": uuid.uuid4().hex,
    }
    path = f"/sandboxes/{sandbox}/executions/{body['executionId']}"
    with client.stream(
        "POST", f"/sandboxes/{sandbox}/execute", json=body, headers={"Accept": "application/x-ndjson"}
    ) as answer:
        events = answer.iter_lines()
        assert json.loads(next(events))["text"] == "up\n"
        known = client.get(path).json()
        assert (known["status"], known["end"]) == ("running", None)
        assert client.post(f"{path}/interrupt").status_code == 200
        last = [json.loads(line) for line in events][-1]
    assert (last["type"], last["end"]) == ("end", "interrupted")
    assert client.get(path, params={"wait": "true"}).json()["end"] == "interrupted"


def test_a_dead_kernel_and_an_ended_sandbox_end_what_runs(client: Client) -> None:
    with client.sandbox() as doomed:
        died = client.execute(doomed, "import os; print('x', flush=True); os._exit(1)")
        assert (died["end"], died["stdout"]) == ("kernel_died", "x\n")
    with client.sandbox() as doomed:
        with client.stream(
            "POST",
            f"/sandboxes/{doomed}/execute",
            json={"content": "print('up\\n', end='', flush=True)\nimport time; time.sleep(60)"},
            headers={"Accept": "application/x-ndjson"},
        ) as answer:
            events = answer.iter_lines()
            assert json.loads(next(events))["text"] == "up\n"
            client.delete(f"/sandboxes/{doomed}")
            last = [json.loads(line) for line in events][-1]
        assert last["type"] == "end"
        assert last["end"] in ("aborted", "kernel_died", "expired")


def test_env_is_data_for_one_execution(client: Client, sandbox: str) -> None:
    code = "import os; print(os.environ.get('ONLY'))"
    assert client.execute(sandbox, code, env={"ONLY": "a'b\"c\n"})["stdout"] == "a'b\"c\n\n"
    assert client.execute(sandbox, code)["stdout"] == "None\n"


def test_much_output_is_whole(client: Client, sandbox: str) -> None:
    answer = client.execute(sandbox, "for _ in range(4000): print('x' * 1000)")
    assert len(answer["stdout"]) == 4000 * 1001, {**answer, "stdout": len(answer["stdout"])}
    assert not answer["truncated"]


def test_contexts(client: Client, sandbox: str) -> None:
    path = f"/sandboxes/{sandbox}/contexts"
    (default,) = client.get(path).json()["items"]
    assert default["isDefault"]
    made = client.post(path, json={"name": "second", "cwd": "/tmp"})
    assert made.status_code == 201, made.text
    second = made.json()["id"]
    client.execute(sandbox, "mine = 1")
    other = client.execute(sandbox, "import os; print('mine' in globals(), os.getcwd())", context=second)
    assert other["stdout"] == "False /tmp\n"
    assert [row["id"] for row in client.get(path).json()["items"]] == [default["id"], second]
    client.execute(sandbox, "mine = 2", context=second)
    assert client.post(f"{path}/{second}/restart").status_code == 200
    assert client.execute(sandbox, "'mine' in globals()", context=second)["results"][0]["data"] == {
        "text/plain": "False"
    }
    assert client.delete(f"{path}/{second}").status_code == 204
    is_error(client.post(f"/sandboxes/{sandbox}/execute", json={"content": "1", "context": second}), 404)
    is_error(client.post(f"{path}/unknown/restart"), 404, "not_found")


def test_commands(client: Client, sandbox: str) -> None:
    path = f"/sandboxes/{sandbox}/commands"
    done = client.post(path, json={"command": "echo out; echo err >&2; exit 3"}).json()
    assert (done["stdout"], done["stderr"], done["exitCode"], done["running"]) == ("out\n", "err\n", 3, False)
    listed = client.post(path, json={"argv": ["printf", "%s", "a b; c"]}).json()
    assert listed["stdout"] == "a b; c"
    typed = client.post(
        f"/sandboxes/{sandbox}/execute", json={"type": "command", "content": "cat", "stdin": "given"}
    ).json()
    assert (typed["type"], typed["stdout"], typed["end"]) == ("command", "given", "ok")
    assert client.get(f"/sandboxes/{sandbox}/executions/{typed['executionId']}").json()["stdout"] == "given"
    assert done["id"] in [row["id"] for row in client.get(path).json()["items"]]


def test_commands_in_the_background(client: Client, sandbox: str) -> None:
    path = f"/sandboxes/{sandbox}/commands"
    wanted = {"id": uuid.uuid4().hex, "command": "read x; echo got $x", "background": True, "keepStdin": True}
    started = client.post(path, json=wanted)
    assert started.status_code == 201, started.text
    assert started.json()["running"]
    assert client.post(path, json=wanted).json()["pid"] == started.json()["pid"]
    assert client.post(f"{path}/{wanted['id']}/stdin", json={"data": "it\n", "eof": True}).status_code == 200
    events = lines(client.get(f"{path}/{wanted['id']}/events"))
    assert [event["type"] for event in events] == ["stdout", "end"]
    assert events[0]["text"] == "got it\n"
    assert client.get(f"{path}/{wanted['id']}").json()["stdout"] == "got it\n"

    sleeper = client.post(path, json={"command": "exec sleep 600", "background": True}).json()["id"]
    assert client.post(f"{path}/{sleeper}/signal", json={"signal": "SIGTERM"}).status_code == 200
    ended = client.get(f"{path}/{sleeper}", params={"wait": "true"}).json()
    assert (ended["running"], ended["exitCode"]) == (False, -15)
    killed = client.post(path, json={"command": "exec sleep 600", "background": True}).json()["id"]
    assert client.delete(f"{path}/{killed}").status_code == 204
    assert client.get(f"{path}/{killed}", params={"wait": "true"}).json()["exitCode"] == -9
    is_error(client.get(f"{path}/unknown"), 404, "not_found")


def test_a_client_that_leaves_changes_nothing(client: Client, sandbox: str) -> None:
    execution = uuid.uuid4().hex
    body = {
        "content": "import time\nprint(1, flush=True)\ntime.sleep(0.5)\nprint(2)",
        "executionId": execution,
    }
    with client.stream(
        "POST", f"/sandboxes/{sandbox}/execute", json=body, headers={"Accept": "application/x-ndjson"}
    ) as answer:
        next(answer.iter_lines())
    ended = client.get(f"/sandboxes/{sandbox}/executions/{execution}", params={"wait": "true"}).json()
    assert (ended["stdout"], ended["end"]) == ("1\n2\n", "ok")


def test_a_killed_gateway_repeats_and_loses_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        Path(folder).chmod(0o755)
        own = make_gateway(Path(folder), warm_pools=[])
        try:
            key = own.key("rest-killed")
            with Client(own.url, key) as client:
                made = client.post("/sandboxes", json={"runtime": "python"}).json()["id"]
                body = {
                    "content": "import time\nfor i in range(8):\n    print(i, flush=True); time.sleep(0.25)",
                    "executionId": uuid.uuid4().hex,
                }
                found: list[dict[str, Any]] = []
                try:
                    with client.stream(
                        "POST",
                        f"/sandboxes/{made}/execute",
                        json=body,
                        headers={"Accept": "application/x-ndjson"},
                    ) as answer:
                        for line in answer.iter_lines():
                            found.append(json.loads(line))
                            if len(found) == 3:
                                own.kill()
                except httpx.HTTPError:
                    pass
                own.start()
                events = f"/sandboxes/{made}/executions/{body['executionId']}/events"
                found += lines(client.get(events, params={"after": found[-1]["seq"]}))
                texts = [event["text"] for event in found if event["type"] == "stdout"]
                assert "".join(texts) == "".join(f"{i}\n" for i in range(8))
                assert found[-1]["end"] == "ok"
                assert client.execute(made, body["content"], executionId=body["executionId"])["end"] == "ok"
                assert client.execute(made, "1")["executionCount"] == 2
        finally:
            own.end_all()


def test_requests_side_by_side(client: Client, sandbox: str) -> None:
    """A long execution does not stand in the way of files, status or another context."""
    context = client.post(f"/sandboxes/{sandbox}/contexts").json()["id"]
    execution = uuid.uuid4().hex
    body = {"content": "import time; time.sleep(120)", "executionId": execution}
    running = threading.Thread(
        target=client.post, args=(f"/sandboxes/{sandbox}/execute",), kwargs={"json": body}
    )
    running.start()
    deadline = time.monotonic() + 30
    path = f"/sandboxes/{sandbox}/executions/{execution}"
    while client.get(path).status_code == 404:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        assert client.execute(sandbox, "print(1)", context=context)["stdout"] == "1\n"
        assert client.get(f"/sandboxes/{sandbox}/status").status_code == 200
        assert client.get(f"/sandboxes/{sandbox}/files").status_code == 200
    finally:
        client.post(f"{path}/interrupt")
        running.join(30)
        client.delete(f"/sandboxes/{sandbox}/contexts/{context}")
    assert not running.is_alive()
