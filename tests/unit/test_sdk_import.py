"""What importing the SDK loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import llmsafespace

HEAVY = ("asyncio", "httpx", "websockets", "msgspec", "ssl", "json", "urllib.request")
FOREIGN = (
    "llmsafespace_gateway",
    "llmsafespace_agent",
    "llmsafespace_kube",
    "llmsafespace_operator",
    "tornado",
    "sqlalchemy",
)
OPTIONAL = ("jupyter_client", "traitlets", "zmq", "tqdm", "argparse")


def loaded(statement: str) -> list[str]:
    """The modules that a fresh interpreter has loaded after `statement`, beyond those it starts with."""
    code = (
        "import sys; before = {*sys.modules}\n"
        f"{statement}\n"
        "found = sorted({*sys.modules} - before)\n"
        "import json; print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_the_package_alone_loads_next_to_nothing() -> None:
    found = loaded("import llmsafespace")
    assert not {*found} & {*HEAVY, *FOREIGN, *OPTIONAL}
    assert [name for name in found if name.startswith("llmsafespace.")] == []


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("SandboxError", (*HEAVY, *FOREIGN)),
        ("Sandbox", (*FOREIGN, *OPTIONAL)),
        ("AsyncSandbox", (*FOREIGN, *OPTIONAL)),
        ("WarmPool", (*FOREIGN, *OPTIONAL)),
    ],
)
def test_a_name_loads_what_it_needs(name: str, unwanted: tuple[str, ...]) -> None:
    assert not {*loaded(f"from llmsafespace import {name}")} & {*unwanted}


def test_names_that_are_there_and_that_are_not() -> None:
    assert {*llmsafespace.__all__} <= {*dir(llmsafespace)}
    for name in llmsafespace.__all__:
        assert getattr(llmsafespace, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="Nothing"):
        _ = llmsafespace.Nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from llmsafespace import Nothing")
