"""What the Kubernetes backend makes of requests, and of what it finds in the cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_gateway.backends.base import EgressRule, Resources, SandboxSpec, WarmPoolSpec
from llmsafespace_gateway.backends.kubernetes import cold, errors, listing, objects, pools
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.errors import (
    AlreadyExists,
    Forbidden,
    Invalid,
    KubeError,
    TooManyRequests,
    Unavailable,
)
from llmsafespace_kube.claims.profiles import missing_runtime_class
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kubernetes import Condition, Metadata
from llmsafespace_protocol.limits import MAX_DURATION
from llmsafespace_protocol.quantities import format_cores, format_size, number
from llmsafespace_protocol.requests import Limits

ID = "sb-" + "ab" * 10
UID = "01234567-89ab-cdef-0123-456789abcdef"
TIME = datetime(2026, 1, 1, tzinfo=UTC)
TENANTS = {"agents": "default", "more": "default", "acme": "acme"}


def spec(**changes: Any) -> SandboxSpec:
    made: dict[str, Any] = {
        "sandbox_id": ID,
        "runtime": "python:3.10",
        "owner": "u-1",
        "tenant": "default",
        **changes,
    }
    return SandboxSpec(**made)


def sandbox(name: str = "by-hand", *, going: bool = False, **status: Any) -> types.Sandbox:
    return types.Sandbox(
        Metadata(name=name, namespace="agents", uid=UID, deletion_timestamp=TIME if going else None),
        types.SandboxSpec(runtime="python:3.10", user="ada"),
        types.SandboxStatus(**status),
    )


def warm_pod(claim_id: str, sandbox_name: str, namespace: str = "agents") -> types.WarmPod:
    claim = types.WarmPodClaim(claim_id, types.NamedObject(sandbox_name, namespace), TIME)
    reference = types.NamedObject("pool", "pools")
    return types.WarmPod(
        Metadata(name="pool-1", namespace="pools", uid="w"), types.WarmPodSpec(reference, claim=claim)
    )


def test_a_request_becomes_a_sandbox_of_its_claim() -> None:
    wanted = spec(
        resources=Resources(cpu=0.25, memory=512 * 2**20, storage=2**30),
        egress=(EgressRule("example.org", (443,)), EgressRule("*.example.net")),
        limits=Limits(timeout=0.5, idle_timeout=None, max_lifetime=3600.5),
    )
    made = objects.warm_sandbox(wanted, "agents", warm_pod(ID, ID))
    assert (made.metadata.name, made.metadata.namespace) == (ID, "agents")
    assert made.metadata.labels == {names.TENANT: "default", names.SANDBOX_ID: ID}
    assert made.metadata.finalizers == [names.SANDBOX_FINALIZER]
    assert made.spec == types.SandboxSpec(
        runtime="python:3.10",
        timeout=1,
        resources=types.Resources(cpu="250m", memory="512Mi", ephemeral_storage="1Gi"),
        network_access=types.NetworkAccess(
            egress=[
                types.EgressRule("example.org", [types.PortRule(443)]),
                types.EgressRule("*.example.net"),
            ]
        ),
        user="u-1",
        max_lifetime=3601,
        warm_pod=types.WarmPodClaimed("pool-1", "pools", ID),
    )


def test_a_cold_sandbox_says_why_and_asks_for_no_warm_pool() -> None:
    made = objects.cold_sandbox(spec(), "agents", "the warm pool was empty")
    assert made.metadata.annotations == {names.COLD_REASON: "the warm pool was empty"}
    assert (made.spec.use_warm_pool, made.spec.warm_pod) == (False, None)


def test_no_limit_of_time_is_the_longest_that_can_be_said() -> None:
    assert objects.sandbox_spec(spec(limits=Limits(timeout=None))).timeout == MAX_DURATION


@given(st.floats(0.01, 1024.0), st.integers(1, 2**50))
def test_quantities_never_promise_less(cpu: float, count: int) -> None:
    assert number(format_cores(cpu)) >= cpu - 1e-6
    assert number(format_size(count)) == count


def test_quantities_are_short() -> None:
    assert [format_cores(count) for count in (0.1, 0.5, 1.0, 1.5)] == ["100m", "500m", "1", "1500m"]
    assert [format_size(count) for count in (2**30, 3 * 2**20, 1000)] == ["1Gi", "3Mi", "1000"]


# -- ends and strangers ------------------------------------------------------------------------------------

LIVING = sandbox(phase="Running", pod_ip="10.0.0.1")
ENDED = sandbox(phase="Failed", pod_ip="10.0.0.1", end="oom", message="too much")
GOING = sandbox(phase="Running", pod_ip="10.0.0.1", going=True)


@pytest.mark.parametrize(
    ("old", "new", "end"),
    [
        (None, LIVING, None),
        (LIVING, LIVING, None),
        (LIVING, ENDED, "oom"),
        (None, ENDED, "oom"),
        (ENDED, ENDED, None),
        (ENDED, None, None),
        (LIVING, GOING, "terminated"),
        (GOING, None, None),
        (LIVING, None, "terminated"),
    ],
)
def test_an_end_is_told_once(old: types.Sandbox, new: types.Sandbox, end: str | None) -> None:
    told = objects.news_of(old, new)
    assert (told.end if told is not None else None) == end
    if told is not None:
        assert told.sandbox_id == names.sandbox_id("by-hand", UID)


@pytest.mark.parametrize(
    ("seen", "is_one"),
    [
        (LIVING, True),
        (ENDED, False),
        (GOING, False),
        (sandbox(phase="Running"), False),
        (sandbox(phase="Creating", pod_ip="10.0.0.1"), False),
        (sandbox(ID, phase="Running", pod_ip="10.0.0.1"), False),
    ],
)
def test_a_stranger_is_bound_and_not_a_gateways(seen: types.Sandbox, is_one: bool) -> None:
    assert objects.is_stranger(seen) == is_one
    assert objects.is_new_stranger(None, seen) == is_one
    assert not objects.is_new_stranger(LIVING, seen)


def test_a_stranger_is_described_as_its_operator_bound_it() -> None:
    seen = sandbox(
        phase="Running", pod_ip="10.0.0.1", start_kind="warm", runtime="python:3.11", start_time=TIME
    )
    found = objects.stranger(seen, "default", {"backend": "kubernetes"})
    assert found.spec.sandbox_id == found.claim.sandbox_id == names.sandbox_id("by-hand", UID)
    assert (found.spec.owner, found.spec.tenant, found.spec.runtime) == ("ada", "default", "python:3.10")
    assert found.spec.limits == Limits(timeout=300.0, idle_timeout=600.0, max_lifetime=86400.0)
    assert found.spec.resources == Resources()
    assert (found.claim.runtime, found.claim.languages, found.claim.start.kind) == (
        "python:3.11",
        ("python",),
        "warm",
    )
    assert (found.context_id, found.started_at) == (names.context_id(UID), TIME.timestamp())


def test_only_the_warm_pods_own_word_says_whose_it_is() -> None:
    """A Sandbox that names somebody else's warm pod gets no token for it."""
    own = sandbox()
    public = names.sandbox_id("by-hand", UID)
    assert objects.has(own, warm_pod(public, "by-hand"))
    assert not objects.has(own, warm_pod("sb-other", "by-hand"))
    assert not objects.has(own, warm_pod(public, "other"))
    assert not objects.has(own, warm_pod(public, "by-hand", "acme"))
    unclaimed = types.WarmPod(Metadata(name="w"), types.WarmPodSpec(types.NamedObject("p", "pools")))
    assert not objects.has(own, unclaimed)


def test_which_warm_pod_a_sandbox_names() -> None:
    reference = types.NamedObject("pool-1", "pools")
    assert objects.warm_pod_of(sandbox(warm_pod_ref=reference)) == reference
    assert objects.warm_pod_of(objects.warm_sandbox(spec(), "agents", warm_pod(ID, ID))) == reference
    assert objects.warm_pod_of(objects.cold_sandbox(spec(), "agents", "")) is None
    forged = sandbox()
    forged.spec.warm_pod = types.WarmPodClaimed("pool-1", "pools", ID)
    assert objects.warm_pod_of(forged) is None  # the operator claims for those that no gateway made


def test_what_differs_from_the_request_is_told() -> None:
    assert objects.warnings("", {"A": "b"}) == ()
    served, early = objects.warnings("served by another", {"PYTHONHASHSEED": "0", "LD_PRELOAD": "x"})
    assert served == "served by another"
    assert early.startswith("LD_PRELOAD, PYTHONHASHSEED: works from a process's start only")


def test_a_profile_without_its_runtime_class_is_in_the_way() -> None:
    def profile(*conditions: Condition) -> types.SandboxProfile:
        return types.SandboxProfile(
            Metadata(name="high"), status=types.SandboxProfileStatus(list(conditions))
        )

    missing = Condition("Ready", "False", "RuntimeClassNotFound", "there is no RuntimeClass gvisor")
    assert "there is no RuntimeClass gvisor" in missing_runtime_class(profile(missing))
    assert missing_runtime_class(profile(Condition("Ready", "True", "Valid"))) == ""
    assert missing_runtime_class(profile(Condition("Ready", "False", "InvalidCidr"))) == ""
    assert missing_runtime_class(profile()) == missing_runtime_class(None) == ""


def test_isolation_tells_of_the_runtime_class() -> None:
    profile = types.SandboxProfile(
        Metadata(name="high"), types.SandboxProfileSpec(runtime_class_name="gvisor")
    )
    told = objects.isolation(profile, "high", types.PoolResources(), egress=True)
    assert (told["runtimeClassName"], told["kernel"]) == ("gvisor", "its runtime class's")
    assert told["seccomp"] == "its runtime class's"
    plain = objects.isolation(None, "standard", types.Resources(), egress=False)
    assert (plain["kernel"], plain["network"]) == ("its node's, shared", "none")
    assert plain["seccomp"] == "RuntimeDefault"
    assert plain["limits"]["memory"] == {"bytes": 512 * 2**20, "by": "kubelet"}


# -- pools, runtimes, profiles -------------------------------------------------------------------------------


def pool(*allowed: str) -> types.WarmPool:
    made = types.WarmPoolSpec(runtime="python:3.11", allowed_namespaces=list(allowed))
    return types.WarmPool(Metadata(name="p", namespace="pools"), made)


@pytest.mark.parametrize(
    ("allowed", "tenant", "seen_by"),
    [
        (["*"], None, {"default", "acme"}),
        (["*", "acme"], None, {"default", "acme"}),
        (["agents"], "default", {"default"}),
        (["agents", "more"], "default", {"default"}),
        (["agents", "acme"], None, {"default", "acme"}),
        (["elsewhere"], None, set()),
        ([], None, set()),
    ],
)
def test_whose_a_pool_is(allowed: list[str], tenant: str | None, seen_by: set[str]) -> None:
    made = pool(*allowed)
    assert pools.pool_spec(made, TENANTS).tenant == tenant
    assert {each for each in TENANTS.values() if pools.visible(made, each, TENANTS)} == seen_by
    assert pools.visible(made, None, TENANTS)


def test_a_pool_comes_back_as_it_was_written() -> None:
    wanted = WarmPoolSpec(
        name="p",
        runtime="python:3.11",
        min_size=2,
        max_size=5,
        preload_packages=("numpy",),
        preload_scripts=(("init", "x = 1"),),
        auto_scaling=True,
        target_utilization=70,
        tenant="acme",
    )
    body = {**pools.pool_body(wanted), "allowedNamespaces": ["acme"]}
    written = types.WarmPool(Metadata(name="p"), msgspec.convert(body, types.WarmPoolSpec))
    assert pools.pool_spec(written, TENANTS) == wanted


def test_a_pool_keeps_its_owner_and_whether_it_is_published() -> None:
    wanted = WarmPoolSpec(name="p", runtime="python:3.11", tenant="acme", owner="u-1", published=False)
    meta = Metadata(name="p-1234", labels={names.POOL_NAME: "p", names.TENANT: "acme"})
    written = types.WarmPool(meta, msgspec.convert(pools.pool_body(wanted), types.WarmPoolSpec))
    assert pools.pool_spec(written, TENANTS) == wanted
    assert pools.pool_spec(pool("acme"), TENANTS).published  # made with kubectl: RBAC says who may


@pytest.mark.parametrize("name", ["p", "a" * 54, "a" * 39 + ".-b"])
def test_pools_of_one_name_have_objects_of_their_own(name: str) -> None:
    made = {
        pools.object_name(WarmPoolSpec(name=name, runtime="python", tenant=tenant)) for tenant in ("a", "b")
    }
    assert len(made) == 2
    for each in made:
        assert len(each) <= 54  # WarmPods' names are made of it
        assert ".-" not in each
        msgspec.convert({"name": each, "namespace": "n"}, types.NamedObject)


@pytest.mark.parametrize(
    ("condition", "end", "code", "words"),
    [
        (Condition("Ready", "False", "Unschedulable", "no node"), "failed", "Unschedulable", "no room"),
        (Condition("Ready", "False", "PodNotReady", "ErrImagePull"), "failed", "PodNotReady", "could not"),
        (Condition("Ready", "False", "ColdStartLimit", "waits for its turn"), "", "ColdStartLimit", "turn"),
        (None, "", "NoOperator", "does the operator run?"),
    ],
)
def test_a_refusal_says_what_the_operator_said(
    condition: Condition | None, end: str, code: str, words: str
) -> None:
    status = types.SandboxStatus(conditions=[condition] if condition else [], end=end, message="why")
    found = cold.refusal(types.Sandbox(Metadata(name="sb"), types.SandboxSpec("python"), status))
    assert (found.status, found.details) == (503, {"reason": code})
    assert words in found.message
    assert found.retry_after is not None


@pytest.mark.parametrize(
    ("seconds", "said", "changed"),
    [
        (600, None, False),
        (597, None, False),  # clocks and answers differ
        (900, None, False),
        (60, None, True),
        (60, 60, False),
        (57, 60, False),
        (300, 60, False),  # later, though earlier than at first
        (30, 60, True),
        (60, 10**6, True),  # somebody else's: later than it may live
        (600, 10**6, False),
        (60, "x", True),  # neither does the operator heed it
        (600, "x", False),
        (600, "2026-01-01T00:00:00", False),  # without a zone
    ],
)
def test_only_an_earlier_end_is_written(seconds: float, said: int | str | None, changed: bool) -> None:
    if isinstance(said, int):
        said = (datetime.now(UTC) + timedelta(seconds=said)).isoformat()
    meta = Metadata(name="sb", annotations={names.ENDS_AT: str(said)} if said else {})
    spec = types.SandboxSpec("python", max_lifetime=600)
    running = types.SandboxStatus(start_time=datetime.now(UTC))
    assert objects.is_shortened(types.Sandbox(meta, spec, running), seconds) is changed


@pytest.mark.parametrize(("seconds", "changed"), [(600, False), (597, False), (60, True)])
def test_a_life_is_shortened_before_its_beginning_is_written(seconds: float, changed: bool) -> None:
    young = types.Sandbox(Metadata(name="sb"), types.SandboxSpec("python", max_lifetime=600))
    assert objects.is_shortened(young, seconds) is changed


def test_each_runtime_is_listed_once_and_as_available_as_it_is() -> None:
    def environment(name: str, version: str, available: bool) -> types.RuntimeEnvironment:
        return types.RuntimeEnvironment(
            Metadata(name=name),
            types.RuntimeEnvironmentSpec(image="i", language="python", version=version),
            types.RuntimeEnvironmentStatus(available=available),
        )

    told = listing.served(
        [
            environment("a", "3.11", False),
            environment("b", "3.11", True),
            environment("c", "3.12", False),
        ]
    )
    assert [(each.id, each.available, bool(each.reason)) for each in told] == [
        ("python:3.11", True, False),
        ("python:3.12", False, True),
    ]
    assert told[0].display_name == "Python 3.11"


def test_the_levels_are_described_by_their_profiles() -> None:
    own = types.SandboxProfile(
        Metadata(name="gpu"),
        types.SandboxProfileSpec(
            security_level="high",
            runtime_class_name="kata",
            network_policies=[types.NetworkPolicyRules(rules=[types.NetworkRule(domain="example.org")])],
        ),
    )
    told = {each.name: each for each in listing.profiles([own])}
    assert list(told) == ["standard", "high", "custom", "gpu"]
    assert "runtime class kata" in told["gpu"].measures[-1]
    assert told["gpu"].network.endswith("and example.org")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AlreadyExists("m"), "conflict"),
        (Forbidden("m"), "forbidden"),
        (Invalid("m"), "invalid_request"),
        (Unavailable("m"), "service_unavailable"),
        (TooManyRequests("m", retry_after=3.0), "service_unavailable"),
    ],
)
def test_refusals_are_told_in_the_words_of_the_api(error: KubeError, code: str) -> None:
    told = errors.as_api_error(error, "it failed")
    assert (told.code, told.message) == (code, "it failed: m")
    if error.retry_after is not None:
        assert told.retry_after == error.retry_after


@pytest.mark.parametrize(
    "changes",
    [
        {"egress": tuple(EgressRule(f"{n}.example.org") for n in range(129))},
        {"limits": Limits(max_lifetime=2_592_001.0)},
        {"runtime": "Not a name"},
    ],
)
def test_what_the_api_server_would_refuse_is_refused_before_a_pod_is_taken(changes: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="a Sandbox cannot be like that") as told:
        objects.sandbox_spec(spec(**changes))
    assert told.value.code == "invalid_request"
