"""Which RuntimeEnvironment and which SandboxProfile serve a request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.claims.profiles import profile_of, reference
from llmsafespace_kube.claims.runtimes import Resolved, label, resolve
from llmsafespace_kube.resources.kubernetes import Condition, Metadata
from llmsafespace_kube.resources.types import (
    ProfileRef,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    RuntimeEnvironmentStatus,
    SandboxProfile,
)

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def environment(
    language: str = "python", version: str = "3.11", *, name: str = "", available: bool = True, day: int = 0
) -> RuntimeEnvironment:
    return RuntimeEnvironment(
        metadata=Metadata(
            name=name or f"{language}-{version}", creation_timestamp=BORN + timedelta(days=day)
        ),
        spec=RuntimeEnvironmentSpec(image="example/image", language=language, version=version),
        status=RuntimeEnvironmentStatus(available=available),
    )


HERE = [
    environment(version="3.10"),
    environment(version="3.11"),
    environment(version="3.13"),
    environment("bash", "5.2"),
]


@pytest.mark.parametrize(
    ("requested", "served", "warned"),
    [
        ("python:3.11", "python-3.11", False),
        ("python3.11", "python-3.11", False),
        ("Python:3.11", "python-3.11", False),
        ("python-3.11", "python-3.11", False),
        ("python", "python-3.13", False),
        ("python:latest", "python-3.13", False),
        ("python:3", "python-3.13", False),
        ("python:3.12", "python-3.13", True),
        ("python:3.9", "python-3.10", True),
        ("python:3.11.7", "python-3.11", True),
        ("python:3.99", "python-3.13", True),
        ("bash", "bash-5.2", False),
        ("bash:5", "bash-5.2", False),
        ("bash:5.1", "bash-5.2", True),
    ],
)
def test_what_serves(requested: str, served: str, warned: bool) -> None:
    resolved = resolve(requested, HERE)
    assert isinstance(resolved, Resolved)
    assert resolved.environment.metadata.name == served
    assert bool(resolved.warning) == warned
    if warned:
        assert requested in resolved.warning
        assert label(resolved.environment) in resolved.warning


@pytest.mark.parametrize(
    ("requested", "why"),
    [
        ("python:2.7", "there is no runtime python:2.7 here, only python:3.10, python:3.11, python:3.13"),
        ("python:lts", "there is no runtime python:lts here"),
        ("ruby:3.2", "there is no runtime for the language 'ruby' here; there are bash:5.2, python:3.10"),
        ("python3.11:3.11", "is no runtime: write a language and a version"),
        ("docker.io/evil", "is no runtime"),
        ("", "is no runtime"),
    ],
)
def test_why_nothing_serves(requested: str, why: str) -> None:
    told = resolve(requested, HERE)
    assert isinstance(told, str)
    assert why in told


def test_what_is_not_available_serves_nobody_and_says_why() -> None:
    broken = environment("ruby", "3.2", available=False)
    broken.status.conditions.append(
        Condition(type="Available", status="False", reason="NoImage", message="its image cannot be pulled")
    )
    told = resolve("ruby", [*HERE, broken])
    assert told == "the runtime ruby exists but is not available: its image cannot be pulled"
    assert "ruby-3.2 exists but is not available" in str(resolve("ruby-3.2", [broken]))
    assert "not checked" in str(resolve("perl", [environment("perl", "5", available=False)]))
    assert "no runtime for the language 'perl' here" in str(resolve("perl", []))


def test_of_several_alike_the_oldest_serves() -> None:
    newer = environment(name="a-copy", day=2)
    older = environment(name="z-first", day=1)
    resolved = resolve("python:3.11", [newer, older])
    assert isinstance(resolved, Resolved)
    assert resolved.environment is older


def test_a_version_without_numbers_is_found_by_its_whole_text() -> None:
    resolved = resolve("node:lts", [environment("node", "lts")])
    assert isinstance(resolved, Resolved)
    assert resolved.warning == ""


VERSIONS = st.lists(st.integers(0, 20), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(st.text(max_size=40) | VERSIONS.map("python:{}".format), st.lists(VERSIONS, max_size=6))
def test_whatever_is_asked_for_one_environment_or_words_come_back(
    requested: str, versions: list[str]
) -> None:
    there = [environment(version=version) for version in versions]
    found = resolve(requested, there)
    assert found == resolve(requested, list(reversed(there))) or len(set(versions)) < len(versions)
    if isinstance(found, str):
        assert found
    else:
        assert found.environment in there
        exact = requested.rpartition(":")[2] in versions
        assert not (exact and found.warning)


# -- profiles --------------------------------------------------------------------------------------------

PROFILES = {
    (name, namespace): SandboxProfile(metadata=Metadata(name=name, namespace=namespace))
    for name, namespace in (("high", "system"), ("own", "agents"), ("own", "pools"))
}


def test_the_profile_that_is_referred_to_holds() -> None:
    def of(ref: ProfileRef | None, level: str = "standard") -> SandboxProfile | str | None:
        return profile_of(
            ref, level, "agents", "system", lambda name, namespace: PROFILES.get((name, namespace))
        )

    assert of(ProfileRef("own")) is PROFILES["own", "agents"]
    assert of(ProfileRef("own", "pools")) is PROFILES["own", "pools"]
    assert of(None) is None
    assert of(None, "high") is PROFILES["high", "system"]
    assert of(ProfileRef("none")) == "there is no SandboxProfile none in the namespace agents"


def test_a_reference_names_the_namespace() -> None:
    assert reference(PROFILES["own", "agents"]) == ProfileRef("own", "agents")
    assert reference(None) is None
