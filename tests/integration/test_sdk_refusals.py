"""A run that the sandbox does not take raises at once, and the sandbox serves the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from llmsafespace import AsyncSandbox, InvalidRequest, Sandbox
from tests.conftest import Gateway
from tests.integration.test_sdk_bridge_breaks import Kernel


@pytest.fixture(scope="module")
def sandbox(gateway: Gateway) -> Iterator[Sandbox]:
    with Sandbox(runtime="python", timeout=None, api_url=gateway.url, api_key=gateway.admin_key) as made:
        yield made


@pytest.mark.parametrize(
    "options",
    [{"env": {"A=B": "x"}}, {"env": {"": "x"}}, {"env": {"A": "\0"}}, {"timeout": -1}, {"timeout": 1e12}],
    ids=repr,
)
def test_options_that_are_refused(sandbox: Sandbox, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        sandbox.run_code("ran = True", **options)
    with pytest.raises(InvalidRequest):
        list(sandbox.stream_code("ran = True", **options))
    assert sandbox.run_code("'ran' in globals()").text == "False"


def test_the_others_of_a_connection_go_on(sandbox: Sandbox) -> None:
    stream = sandbox.stream_code("print(1, flush=True)\nimport time; time.sleep(1)\nprint(2)")
    first = next(iter(stream))
    with pytest.raises(InvalidRequest):
        sandbox.run_code("3", env={"A=B": "x"})
    assert "".join([first, *stream]).split() == ["1", "2"]


async def test_a_notebook_shows_the_refusal(gateway: Gateway) -> None:
    kernel = Kernel(gateway.url, gateway.admin_key)
    await kernel.start()
    try:
        message = kernel.client.session.msg("execute_request", {"code": "1", "silent": False})
        message["metadata"] = {"llmsafespace": {"timeout": -1}}
        kernel.client.shell_channel.send(message)
        reply = await kernel.client.get_shell_msg(timeout=20)
        while reply["msg_type"] != "execute_reply":
            reply = await kernel.client.get_shell_msg(timeout=20)
        assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "invalid_request")
        assert await kernel.run("print(1)") == ("ok", "1\n")
    finally:
        await kernel.close()


@pytest.mark.parametrize(
    ("env", "words"),
    [({"PORT": 8080}, "'PORT' must be text"), ({"A\ud800": "x"}, "U.D800"), ({"B": "x" * 2**21}, "'B'")],
    ids=["number", "surrogate", "size"],
)
def test_every_door_checks_the_environment_before_it_sends(
    sandbox: Sandbox, env: dict[str, Any], words: str
) -> None:
    doors: list[Callable[[], object]] = [
        lambda: sandbox.run_code("1", env=env),
        lambda: sandbox.stream_code("1", env=env),
        lambda: sandbox.run_command("true", env=env),
        lambda: sandbox.run_command("true", env=env, background=True),
        lambda: sandbox.stream_command("true", env=env),
        lambda: sandbox.contexts.create(env=env),
        lambda: Sandbox(env=env, api_url="http://127.0.0.1:9", api_key="key"),
    ]
    for door in doors:
        with pytest.raises(InvalidRequest, match=words):
            door()


def test_results_of_a_language_model_are_run(sandbox: Sandbox) -> None:
    assert sandbox.run_code(AIMessage("6 * 7")).text == "42"
    assert "".join(sandbox.stream_code(AIMessage("print(6 * 7)"))) == "42\n"
    with pytest.raises(TypeError, match="code must be text"):
        sandbox.stream_code(b"1")


async def test_a_refusal_reaches_whom_it_is_about(gateway: Gateway) -> None:
    """Also where several wait, and where the message itself is what cannot be read."""
    where: dict[str, Any] = {"api_url": gateway.url, "api_key": gateway.admin_key}
    async with AsyncSandbox(runtime="python", **where) as made:
        kernel = made._runner.stream(await made.contexts.default_id())
        await kernel.execute("import time; time.sleep(1)")
        waiting = [await kernel.execute("6 * 7") for _ in range(2)]
        refused: Any = await kernel.execute(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="Expected `str`, got `int`"):
            await asyncio.wait_for(refused.batch(), 20)
        for each in waiting:
            events: list[Any] = []
            while not events or events[-1].type != "end":
                events += await asyncio.wait_for(each.batch(), 20)
            assert events[-1].end == "ok"
