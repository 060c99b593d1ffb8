"""The public surface of the SDK: generated classes are current, and the twins have the same names."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import msgspec
import pytest

import llmsafespace
from llmsafespace import AsyncOutput, AsyncSandbox, Output, Sandbox, commands, contexts, files, sync_parts
from llmsafespace.sandbox import CREATE_TIMEOUT
from llmsafespace_gateway.backends.kubernetes.cold import OPERATOR_LIMIT

INNER = {"begin", "output", "transport"}  # what the synchronous class uses of the other


generate_sync = runpy.run_path(str(Path(__file__).parents[2] / "sdk" / "generate_sync.py"))


@pytest.mark.parametrize("module", generate_sync["MODULES"])
def test_the_synchronous_classes_are_generated_anew(module: str) -> None:
    """Otherwise: make format."""
    path = generate_sync["PACKAGE"] / f"{module}.py"
    assert path.read_text() == generate_sync["written"](module)


def test_what_is_said_differently_is_still_said() -> None:
    texts = [(generate_sync["PACKAGE"] / f"{module}.py").read_text() for module in generate_sync["MODULES"]]
    for words in generate_sync["WORDS"].values():
        assert any(words in text for text in texts), words


def surface(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("asynchronous", "synchronous", "only"),
    [
        (AsyncSandbox, Sandbox, INNER),
        (files.AsyncFiles, sync_parts.Files, set()),
        (contexts.AsyncContexts, sync_parts.Contexts, set()),
        (
            commands.AsyncCommands,
            sync_parts.Commands,
            {"attach", "finish", "get", "install", "post", "stream"},
        ),
        (commands.AsyncCommand, sync_parts.Command, set()),
    ],
)
def test_same_names_and_parameters(asynchronous: type, synchronous: type, only: set[str]) -> None:
    assert surface(asynchronous) - only == surface(synchronous)
    for name in surface(synchronous):
        ours, theirs = (inspect.getattr_static(cls, name) for cls in (synchronous, asynchronous))
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if not isinstance(ours, property):
            signatures = [inspect.signature(getattr(cls, name)) for cls in (synchronous, asynchronous)]
            assert list(signatures[0].parameters) == list(signatures[1].parameters), name
            assert [p.default for p in signatures[0].parameters.values()] == [
                p.default for p in signatures[1].parameters.values()
            ], name


def test_same_constructor() -> None:
    ours, theirs = inspect.signature(Sandbox), inspect.signature(AsyncSandbox)
    assert {n: (p.default, p.kind) for n, p in ours.parameters.items()} == {
        n: (p.default, p.kind) for n, p in theirs.parameters.items()
    }


def test_outputs() -> None:
    assert surface(AsyncOutput) - {"aclose", "take"} == surface(Output) - {"close", "id", "end"}
    source = inspect.getsource(AsyncOutput.__init__)
    assert "self.id = " in source
    assert "self.end: End | None = " in source


def test_everything_public_is_documented() -> None:
    for name in llmsafespace.__all__:
        thing = getattr(llmsafespace, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for attribute in surface(thing):
                value = inspect.getattr_static(thing, attribute)
                if isinstance(value, property) or inspect.isfunction(value):
                    assert inspect.getdoc(value), f"{name}.{attribute}"


def test_the_original_positional_order() -> None:
    names = list(inspect.signature(Sandbox).parameters)
    assert names[:8] == [
        "runtime",
        "api_key",
        "security_level",
        "timeout",
        "resources",
        "network_access",
        "api_url",
        "use_warm_pool",
    ]


@pytest.mark.parametrize("values", ["helm/llmsafespace/values.yaml", "examples/values-production.yaml"])
def test_a_create_is_waited_for_as_long_as_a_cluster_may_take(values: str) -> None:
    """Else the caller has an error, and the sandbox begins behind it."""
    deploy = Path(__file__).parents[2] / "deploy"
    limits: dict[str, float] = {}
    for name in ("helm/llmsafespace/values.yaml", values):
        limits |= msgspec.yaml.decode((deploy / name).read_bytes())["operator"]
    longest = limits["scheduleTimeout"] + 2 * limits["startTimeout"] + 2 * OPERATOR_LIMIT
    assert longest < CREATE_TIMEOUT
