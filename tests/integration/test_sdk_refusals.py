"""A run that the sandbox does not take raises at once, and the sandbox serves the next one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmsafespace import InvalidRequest, Sandbox
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
