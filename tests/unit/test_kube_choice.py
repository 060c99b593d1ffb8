"""Which warm pods a claim tries, in which order, and why a start is cold."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.claims.choice import (
    PoolInUse,
    Request,
    candidates,
    is_free,
    misfit,
    named,
    request_of,
    serves,
)
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.types import (
    Filesystem,
    NamedObject,
    PoolResources,
    PreloadScript,
    ProfileRef,
    Resources,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    SandboxProfile,
    SandboxSpec,
    SecurityContext,
    Storage,
    WarmPod,
    WarmPodClaim,
    WarmPodSpec,
    WarmPodStatus,
    WarmPool,
    WarmPoolSpec,
)

PYTHON = "python-3.11"


def warm_pod(uid: str, pool: str = "pool", **status: Any) -> WarmPod:
    made = {
        "phase": "Ready",
        "runtime": PYTHON,
        "security_level": "standard",
        "resources": PoolResources(),
        **status,
    }
    return WarmPod(
        metadata=Metadata(name=f"{pool}-{uid}", namespace="pools", uid=uid),
        spec=WarmPodSpec(pool_ref=NamedObject(pool, "pools")),
        status=WarmPodStatus(**made),
    )


def pool_in_use(
    name: str = "pool",
    free: int = 3,
    *,
    runtime: str = PYTHON,
    profile: ProfileRef | None = None,
    **spec: Any,
) -> PoolInUse:
    wanted = WarmPoolSpec(runtime="python:3.11", **spec)
    pods = [
        warm_pod(
            f"{name}-{number}",
            name,
            runtime=runtime,
            resources=wanted.resources,
            security_level=wanted.security_level,
            profile_ref=profile,
        )
        for number in range(free)
    ]
    return PoolInUse(WarmPool(Metadata(name=name, namespace="pools"), wanted), runtime, profile, pods)


def request(**changes: Any) -> Request:
    made: dict[str, Any] = {
        "runtime": PYTHON,
        "security_level": "standard",
        "resources": Resources(),
        "namespace": "agents",
        **changes,
    }
    return Request(**made)


def tried(wanted: Request, *pools: PoolInUse, claim: str = "sb-1", limit: int = 8) -> list[str]:
    found = candidates(wanted, claim, pools, limit)
    assert isinstance(found, list), found
    return [pod.metadata.uid for pod in found]


@pytest.mark.parametrize(
    ("wanted", "pools", "why"),
    [
        (request(), [], "there is no warm pool"),
        (request(use_warm_pool=False), [pool_in_use()], "the request asked for no warm pool"),
        (request(plain=False), [pool_in_use()], "a security context, filesystem, storage or pinned CPUs"),
        (request(runtime="r"), [pool_in_use()], "no warm pool has the runtime r"),
        (request(security_level="high"), [pool_in_use()], "no warm pool has the security level high"),
        (request(profile_ref=ProfileRef("p", "n")), [pool_in_use()], "no warm pool has the profile p"),
        (
            request(resources=Resources(cpu="1001m")),
            [pool_in_use()],
            "more resources than those of pool pool",
        ),
        (request(resources=Resources(memory="1025Mi")), [pool_in_use()], "more resources"),
        (request(resources=Resources(ephemeral_storage="2Gi")), [pool_in_use()], "more resources"),
        (request(), [pool_in_use(free=0)], "the warm pool pool was empty"),
        (request(), [pool_in_use(allowed_namespaces=["others"])], "there is no warm pool"),
        (request(), [pool_in_use(runtime="")], "no warm pool has the runtime"),
    ],
)
def test_why_a_start_is_cold(wanted: Request, pools: list[PoolInUse], why: str) -> None:
    told = candidates(wanted, "sb-1", pools, 8)
    assert isinstance(told, str)
    assert why in told


def test_the_reason_of_the_nearest_pool_is_told() -> None:
    pools = [pool_in_use("a", runtime="bash-5.2"), pool_in_use("b"), pool_in_use("c", security_level="high")]
    told = candidates(request(resources=Resources(cpu="64")), "sb-1", pools, 8)
    assert told == "more resources than those of pool b"


def test_pools_of_other_namespaces_are_not_spoken_of() -> None:
    hidden = pool_in_use("secret", allowed_namespaces=["others"], security_level="high")
    assert "secret" not in str(candidates(request(resources=Resources(cpu="64")), "sb-1", [hidden], 8))


def test_a_pool_that_is_being_deleted_serves_nobody() -> None:
    going = pool_in_use()
    going.pool.metadata.deletion_timestamp = datetime.now(UTC)
    assert candidates(request(), "sb-1", [going], 8) == "there is no warm pool"


def test_the_tightest_pool_comes_first_and_one_of_few_namespaces_before_all() -> None:
    large = pool_in_use("large", resources=PoolResources(cpu="4"))
    small = pool_in_use("small")
    own = pool_in_use("own", allowed_namespaces=["agents"], resources=PoolResources(cpu="8"))
    order = [uid.rpartition("-")[0] for uid in tried(request(), large, small, own)]
    assert order == ["own"] * 3 + ["small"] * 3 + ["large"] * 2


def test_a_pod_serves_as_it_was_made_not_as_its_pool_is_now() -> None:
    changed = pool_in_use(resources=PoolResources(cpu="2"))
    old = warm_pod("old", resources=PoolResources(cpu="1"))
    in_use = PoolInUse(changed.pool, PYTHON, None, [old, *changed.free])
    assert "old" not in tried(request(resources=Resources(cpu="2")), in_use)
    assert "old" in tried(request(), in_use)


@pytest.mark.parametrize(
    "status",
    [{"runtime": ""}, {"security_level": ""}, {"resources": None}, {"profile_ref": ProfileRef("p", "n")}],
)
def test_a_pod_that_does_not_say_how_it_was_made_serves_nobody(status: dict[str, Any]) -> None:
    assert not serves(request(), warm_pod("one", **status).status, pool_in_use().pool)


CODE: dict[str, Any] = {"preload_packages": ["numpy"]}
SCRIPT: dict[str, Any] = {"preload_scripts": [PreloadScript("sum", "sum = lambda *_: 1337")]}


@pytest.mark.parametrize("code", [CODE, SCRIPT], ids=["packages", "scripts"])
def test_code_that_nobody_published_serves_only_who_names_its_pool(code: dict[str, Any]) -> None:
    own = pool_in_use("own", published=False, **code)
    assert "by name" in str(candidates(request(), "sb-1", [own], 8))
    assert len(tried(request(warm_pool="own"), own)) == 3
    assert len(tried(request(), pool_in_use("shared", **code))) == 3  # published, as RBAC guards its maker
    assert len(tried(request(), pool_in_use("plain", published=False))) == 3  # there is no code in it


def test_the_pool_that_is_named_is_the_only_one_that_serves() -> None:
    pools = [pool_in_use("small"), pool_in_use("own", published=False, **CODE)]
    assert {uid.partition("-")[0] for uid in tried(request(warm_pool="own"), *pools)} == {"own"}
    assert {uid.partition("-")[0] for uid in tried(request(), *pools)} == {"small"}
    empty = [pools[0], pool_in_use("own", 0, published=False, **CODE)]
    assert candidates(request(warm_pool="own"), "sb-1", empty, 8) == "the warm pool own was empty"


@pytest.mark.parametrize(
    ("made", "now", "served"),
    [
        ("own", {"published": True, **CODE}, False),  # published later: perhaps not what was looked at
        ("published", {"published": False, **CODE}, False),  # an admin took it back
        ("published", {"published": True, **CODE}, True),
        ("own", {}, False),  # the pool preloads nothing any more, its older pods did
        ("none", {"published": False, **CODE}, False),
        ("", {"published": False, **CODE}, False),  # by an operator that did not say so
        ("", {}, True),
    ],
)
def test_what_a_pod_was_made_with_and_what_its_pool_is_now_both_count(
    made: str, now: dict[str, Any], served: bool
) -> None:
    changed = pool_in_use(**now)
    pod = warm_pod("one", code=made)
    found = candidates(request(), "sb-1", [PoolInUse(changed.pool, PYTHON, None, [pod])], 8)
    assert (found == [pod]) is served


def test_the_pool_that_a_sandbox_names_serves_its_namespace() -> None:
    pools = [
        pool_in_use("mine", allowed_namespaces=["agents"]).pool,
        pool_in_use("theirs", allowed_namespaces=["others"]).pool,
    ]
    assert named("mine", "agents", pools) is pools[0]
    for name in ("theirs", "absent"):
        assert (
            named(name, "agents", pools) == f"there is no warm pool {name} that serves the namespace agents"
        )


def test_what_is_claimed_or_going_is_not_free() -> None:
    assert is_free(warm_pod("one"))
    assert not is_free(warm_pod("one", phase="Assigned"))
    claimed = warm_pod("one")
    claimed.spec.claim = WarmPodClaim("sb-1", NamedObject("sb-1", "agents"), datetime.now(UTC))
    assert not is_free(claimed)
    going = warm_pod("one")
    going.metadata.deletion_timestamp = datetime.now(UTC)
    assert not is_free(going)


def test_claims_made_at_one_time_begin_with_different_pods() -> None:
    pool = pool_in_use(free=100)
    first = Counter(tried(request(), pool, claim=f"sb-{number}")[0] for number in range(200))
    assert len(first) > 60  # of 100: at random it is 87
    assert max(first.values()) < 15


@given(
    st.lists(
        st.builds(
            pool_in_use,
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 5),
            runtime=st.sampled_from([PYTHON, "bash-5.2"]),
            security_level=st.sampled_from(["standard", "high"]),
            resources=st.builds(PoolResources, cpu=st.sampled_from(["250m", "1", "2"])),
            allowed_namespaces=st.sampled_from([["*"], ["agents"], ["others"], []]),
        ),
        max_size=5,
        unique_by=lambda each: each.pool.metadata.name,
    ),
    st.builds(
        request,
        security_level=st.sampled_from(["standard", "high"]),
        resources=st.builds(Resources, cpu=st.sampled_from(["100m", "1", "1500m"])),
        use_warm_pool=st.booleans(),
    ),
    st.integers(1, 8),
)
def test_only_what_fits_is_tried(pools: list[PoolInUse], wanted: Request, limit: int) -> None:
    found = candidates(wanted, "sb-1", pools, limit)
    fitting = {
        pod.metadata.uid
        for each in pools
        for pod in each.free
        if wanted.use_warm_pool
        and misfit(wanted, each) is None
        and {"*", "agents"} & set(each.pool.spec.allowed_namespaces)
    }
    if isinstance(found, str):
        assert not fitting
        assert found
    else:
        uids = [pod.metadata.uid for pod in found]
        assert len(uids) == len(set(uids)) == min(limit, len(fitting))
        assert set(uids) <= fitting
        assert found == candidates(wanted, "sb-1", list(reversed(pools)), limit)


ENVIRONMENT = RuntimeEnvironment(
    Metadata(name=PYTHON), RuntimeEnvironmentSpec(image="i", language="python", version="3.11")
)


def test_the_request_of_a_sandbox() -> None:
    spec = SandboxSpec(runtime="python:3.10", security_level="high", use_warm_pool=False)
    profile = SandboxProfile(metadata=Metadata(name="high", namespace="system"))
    assert request_of(spec, "agents", ENVIRONMENT, profile) == Request(
        runtime=PYTHON,
        security_level="high",
        resources=Resources(),
        namespace="agents",
        profile_ref=ProfileRef("high", "system"),
        use_warm_pool=False,
        plain=True,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"security_context": SecurityContext(run_as_user=2000)},
        {"filesystem": Filesystem(writable_paths=["/tmp", "/workspace", "/data"])},
        {"storage": Storage(persistent=True)},
        {"resources": Resources(cpu_pinning=True)},
    ],
)
def test_what_no_pool_has_is_not_plain(change: dict[str, Any]) -> None:
    plain = SandboxSpec(runtime="python")
    assert request_of(plain, "agents", ENVIRONMENT, None).plain
    assert not request_of(msgspec.structs.replace(plain, **change), "agents", ENVIRONMENT, None).plain
