"""What a door accepts, the layers below accept: the egress proxy, the agent's bind, a new process."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmsafespace_agent.server import validation
from llmsafespace_agent.server.commands import installation
from llmsafespace_agent.server.limits import check_limits
from llmsafespace_gateway.egress.rules import to_rules
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.models import clean_env
from llmsafespace_gateway.rest import conversions
from llmsafespace_gateway.rest.types import SandboxCreate
from llmsafespace_gateway.rest.validation import decode
from llmsafespace_gateway.sandboxes import specs
from llmsafespace_gateway.sandboxes.requests import CreateSandbox
from llmsafespace_protocol.requests import Limits, PackagesInstall

NASTY = [
    "127.1",
    "*.com",
    "0x7f.1",
    "2130706433",
    "*.1.2.3.4",
    "a..b",
    "-a.b",
    "*",
    "1",
    "0x",
    "0XFF",
    "a." * 130,
]
LABEL = st.text("abz09-_xX*", min_size=1, max_size=6)
DOMAIN = st.one_of(
    st.sampled_from([*NASTY, "example.org", "*.example.org", "10.0.0.1", "PyPI.org."]),
    st.lists(LABEL, min_size=1, max_size=4).map(".".join),
    st.text(max_size=12),
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["a", "a/b", "./a", "a//b", "..", "/workspace", "/etc/x", "ä" * 200]),
)
DURATION = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-1, 10**7))
BODY = st.fixed_dictionaries(
    {"runtime": st.just("python")},
    optional={
        "networkAccess": st.fixed_dictionaries(
            {
                "egress": st.lists(
                    st.fixed_dictionaries(
                        {"domain": DOMAIN, "ports": st.lists(st.integers(-1, 70_000), max_size=2)}
                    ),
                    max_size=3,
                )
            }
        ),
        "env": st.dictionaries(st.one_of(WORDS, st.just("PYTHONHASHSEED")), WORDS, max_size=4),
        "files": st.dictionaries(WORDS, st.text(max_size=5), max_size=4),
        "packages": st.lists(WORDS, max_size=4),
        "cwd": WORDS,
        "timezone": st.one_of(
            st.text(max_size=8), st.sampled_from(["Europe/Paris", "UTC", "../etc", "posixrules"])
        ),
        "metadata": st.dictionaries(WORDS, WORDS, max_size=3),
        "timeout": DURATION,
        "idleTimeout": DURATION,
        "maxLifetime": DURATION,
        "resources": st.fixed_dictionaries(
            {}, optional={"cpu": WORDS, "memory": st.sampled_from(["1Mi", "1Pi", "512Mi", "0", "lots"])}
        ),
    },
)


def let_in(body: dict[str, Any]) -> CreateSandbox | ApiError:
    """The door's answer to a body: a request, or its refusal."""
    try:
        return conversions.create_request(decode(msgspec.json.encode(body), SandboxCreate), None)
    except ApiError as error:
        return error


def below(request: CreateSandbox) -> None:
    """Every check that the layers below make of a request. Raises what they raise."""
    to_rules(request.egress)
    validation.environment(request.env)
    for name, value in request.env.items():
        assert len(os.fsencode(f"{name}={value}")) < 128 * 1024
    validation.timezone(request.timezone)
    check_limits(Limits(request.timeout, request.idle_timeout, request.max_lifetime))
    if request.packages:
        installation(["pip", "install"], PackagesInstall(id="a", packages=list(request.packages)))
    assert len(request.metadata) <= 64
    folders = {path.rpartition("/")[0] for path in request.files}
    assert not folders & request.files.keys()
    assert all(len(os.fsencode(name)) <= 255 for path in request.files for name in path.split("/"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example({"runtime": "python", "networkAccess": {"egress": [{"domain": "127.1", "ports": []}]}})
@example({"runtime": "python", "files": {"a": "", "a/b": ""}})
@example({"runtime": "python", "packages": [" "]})
@given(BODY)
def test_what_the_door_accepts_the_layers_accept(body: dict[str, Any]) -> None:
    judged = let_in(body)
    if isinstance(judged, ApiError):
        assert judged.status == 400
        assert judged.details["field"].startswith("body")
    else:
        below(judged)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(WORDS, st.one_of(WORDS, st.integers(), st.booleans(), st.none()), max_size=5))
def test_the_jupyter_door_too(env: dict[str, Any]) -> None:
    refused = None
    try:
        request = CreateSandbox(runtime="python", env=clean_env(env))
        specs.check(request)
    except ApiError as error:
        refused = error
    if refused is None:
        below(request)
    else:
        assert refused.status == 400


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        *(
            ({"networkAccess": {"egress": [{"domain": domain}]}}, "networkAccess.egress[0].domain", domain)
            for domain in ("127.1", "*.com", "0x7f.1", "2130706433")
        ),
        ({"files": {"a": "", "a/b": ""}}, "files['/workspace/a']", "/workspace/a/b"),
        ({"files": {"a": "", "./a": ""}}, "files['./a']", "twice"),
        ({"files": {"/workspace": ""}}, "files['/workspace']", "folder"),
        ({"files": {"x" * 300: ""}}, "files['/workspace/xxx", "300 bytes"),
        ({"files": {"a": "x" * 2**20 + "x"}, "resources": {"ephemeralStorage": "1Mi"}}, "files", "1048577"),
        ({"env": {f"A{n}": "x" * 100_000 for n in range(11)}}, "env", "1100000"[:2]),
        ({"env": {"A": "x" * 128 * 1024}}, "env", "131073"),
        ({"env": {"PYTHONHASHSEED": "many"}}, "env.PYTHONHASHSEED", "many"),
        ({"env": {"PYTHONHASHSEED": "4294967296"}}, "env.PYTHONHASHSEED", "4294967296"),
        ({"packages": ["  "]}, "packages[0]", "  "),
        ({"packages": ["a\nb"]}, "packages[0]", "a\\nb"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], field: str, value: str) -> None:
    refused = let_in({"runtime": "python", **body})
    assert isinstance(refused, ApiError)
    assert refused.status == 400
    assert refused.message.startswith(f"body.{field}")
    assert value in refused.message


@pytest.mark.parametrize(
    ("env", "message", "code"),
    [
        ({"PYTHONHOME": "/x"}, "not ready: no kernel can be started: it died", "invalid_request"),
        ({"LD_PRELOAD": "/x"}, "not ready: no kernel can be started: it died", "invalid_request"),
        ({"OMP_NUM_THREADS": "1"}, "not ready: no kernel can be started: it died", "service_unavailable"),
        ({"PYTHONHOME": "/x"}, "the sandbox's keeper did not start in time", "service_unavailable"),
        ({}, "not ready: no kernel can be started: it died", "service_unavailable"),
    ],
)
def test_variables_that_break_an_interpreter_are_named(env: dict[str, str], message: str, code: str) -> None:
    error = specs.blamed(ApiError("service_unavailable", message), env)
    assert error.code == code
    assert code == "service_unavailable" or all(name in error.message for name in env)
