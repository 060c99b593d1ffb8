"""The webhook's rules and certificates, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from llmsafespace_kube.resources.kubernetes import Condition, Metadata
from llmsafespace_kube.resources.types import (
    PoolResources,
    ProfileRef,
    ResourceRequirements,
    Resources,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    RuntimeEnvironmentStatus,
    SandboxProfile,
    SandboxProfileStatus,
    SandboxSpec,
    WarmPool,
    WarmPoolSpec,
)
from llmsafespace_operator.admission.certificates import Certificates, is_due, make
from llmsafespace_operator.admission.rules import Verdict, can_be_removed, can_be_served, wants_the_same


def an_environment(version: str = "3.11", *, available: bool = True, **spec: Any) -> RuntimeEnvironment:
    return RuntimeEnvironment(
        Metadata(name=f"python-{version}"),
        RuntimeEnvironmentSpec(image="python", language="python", version=version, **spec),
        RuntimeEnvironmentStatus(available=available),
    )


def a_pool(name: str, runtime: str, *, deleted: bool = False) -> WarmPool:
    going = datetime.now(UTC) if deleted else None
    return WarmPool(Metadata(name=name, namespace="pools", deletion_timestamp=going), WarmPoolSpec(runtime))


def served(spec: SandboxSpec | WarmPoolSpec, *environments: RuntimeEnvironment) -> Verdict:
    """In a cluster whose only profile is `there` in the namespace `mine`."""

    def profile(name: str, namespace: str) -> SandboxProfile | None:
        return SandboxProfile(Metadata(name=name)) if (name, namespace) == ("there", "mine") else None

    return can_be_served(spec, "mine", environments, profile, "system")


def test_a_runtime_that_is_there_is_taken_without_a_word() -> None:
    assert served(SandboxSpec("python:3.11"), an_environment()) == Verdict()
    assert served(WarmPoolSpec("python:3.11"), an_environment()) == Verdict()


def test_a_runtime_that_nothing_serves_is_refused() -> None:
    verdict = served(SandboxSpec("julia:1.10"), an_environment())
    assert "no runtime for the language 'julia'" in verdict.refusal
    assert "python:3.11" in verdict.refusal


def test_another_version_serves_with_a_warning() -> None:
    verdict = served(SandboxSpec("python:3.10"), an_environment())
    assert not verdict.refusal
    assert verdict.warnings == ("python:3.10 is not available here; it is served by python:3.11",)


def test_a_runtime_that_was_just_made_is_taken_with_a_warning() -> None:
    verdict = served(WarmPoolSpec("python:3.11"), an_environment(available=False))
    assert not verdict.refusal
    [warning] = verdict.warnings
    assert "not available" in warning


@pytest.mark.parametrize(
    ("resources", "refusal"),
    [
        (Resources(cpu="1", memory="512Mi"), ""),
        (Resources(cpu="0.5", memory="1Gi"), "needs cpu of at least 1: raise resources.cpu from 0.5"),
        (Resources(cpu="2", memory="500M"), "needs memory of at least 512Mi: raise resources.memory"),
        (PoolResources(cpu="999m"), "needs cpu of at least 1: raise resources.cpu from 999m"),
    ],
)
def test_less_than_the_runtime_needs_is_refused(resources: Resources | PoolResources, refusal: str) -> None:
    needs = ResourceRequirements(min_cpu="1", min_memory="512Mi")
    spec = (
        SandboxSpec("python", resources=resources)
        if isinstance(resources, Resources)
        else WarmPoolSpec("python", resources=resources)
    )
    for available in (True, False):
        environment = an_environment(resource_requirements=needs, available=available)
        found = served(spec, environment).refusal
        assert refusal in found
        assert bool(found) == bool(refusal)


def test_a_profile_has_to_exist_where_it_is_looked_for() -> None:
    for reference, refused in (
        (ProfileRef("there"), False),
        (ProfileRef("there", "mine"), False),
        (ProfileRef("there", "elsewhere"), True),
        (ProfileRef("missing"), True),
    ):
        verdict = served(SandboxSpec("python", profile_ref=reference), an_environment())
        assert ("there is no SandboxProfile" in verdict.refusal) == refused


def test_a_runtime_class_that_is_not_there_is_warned_of() -> None:
    """It may be installed in a moment; until then the Sandbox waits, and its condition says why."""
    missing = Condition("Ready", "False", "RuntimeClassNotFound", "there is no RuntimeClass gvisor")
    high = SandboxProfile(Metadata(name="high"), status=SandboxProfileStatus([missing]))
    spec = SandboxSpec("python", security_level="high")
    verdict = can_be_served(spec, "mine", [an_environment()], lambda *_: high, "system")
    assert not verdict.refusal
    assert "there is no RuntimeClass gvisor" in verdict.warnings[0]


def test_a_pool_that_no_plain_request_fits_is_warned_of() -> None:
    [warning] = served(WarmPoolSpec("python", resources=PoolResources(cpu="250m")), an_environment()).warnings
    assert "resources.cpu is 250m, less than a sandbox's default of 500m" in warning
    assert served(SandboxSpec("python", resources=Resources(cpu="250m")), an_environment()) == Verdict()


def test_scaling_a_pool_asks_for_nothing_new() -> None:
    old = WarmPoolSpec("python:3.11", min_size=1)
    assert wants_the_same(WarmPoolSpec("python:3.11", min_size=0), old)
    assert not wants_the_same(WarmPoolSpec("python:3.12"), old)
    assert not wants_the_same(WarmPoolSpec("python:3.11", profile_ref=ProfileRef("other")), old)
    assert not wants_the_same(WarmPoolSpec("python:3.11", resources=PoolResources(cpu="2")), old)


def test_a_runtime_in_use_stays() -> None:
    environments = [an_environment("3.11"), an_environment("3.12")]
    pools = [a_pool("fast", "python:3.11"), a_pool("slow", "python:3.12")]
    assert "WarmPools use it: pools/fast;" in can_be_removed("python-3.11", environments, pools).refusal
    assert "WarmPools use it: pools/slow;" in can_be_removed("python-3.12", environments, pools).refusal


def test_a_runtime_that_is_out_of_order_is_still_in_use() -> None:
    environments = [an_environment("3.11"), an_environment("3.12", available=False)]
    pools = [a_pool("slow", "python:3.12")]
    for name in ("python-3.11", "python-3.12"):  # the one serves until the other can
        assert "WarmPools use it: pools/slow;" in can_be_removed(name, environments, pools).refusal


def test_a_runtime_goes_when_its_pools_do_or_run_another() -> None:
    environments = [an_environment("3.11"), an_environment("3.12")]
    pools = [a_pool("going", "python:3.11", deleted=True), a_pool("other", "python:3.12")]
    assert can_be_removed("python-3.11", environments, pools) == Verdict()


def test_a_refusal_names_some_pools_only() -> None:
    pools = [a_pool(f"pool-{number}", "python:3.11") for number in range(9)]
    assert "pools/pool-4 and 4 more;" in can_be_removed("python-3.11", [an_environment()], pools).refusal


# -- certificates ----------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTS = ["webhook.system.svc", "192.0.2.1"]


def is_trusted(served: Certificates, authorities: bytes, now: datetime = NOW) -> bool:
    """What a client that knows these authorities thinks of who serves this certificate."""
    store = Store(x509.load_pem_x509_certificates(authorities))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(HOSTS[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(served.certificate), [])
    except VerificationError:
        return False
    return True


def test_a_certificate_is_trusted_through_its_own_authority_only() -> None:
    one, other = make(HOSTS, NOW), make(HOSTS, NOW)
    assert is_trusted(one, one.authorities)
    assert not is_trusted(one, other.authorities)


def test_after_a_renewal_the_old_certificate_is_trusted_until_it_expires() -> None:
    old = make(HOSTS, NOW)
    later = NOW + timedelta(days=60)
    new = make(HOSTS, later, trusted=old.authorities)
    assert is_trusted(old, new.authorities, later)
    assert is_trusted(new, new.authorities, later)
    assert not is_trusted(new, old.authorities, later)
    much_later = later + timedelta(days=60)
    assert not is_trusted(old, make(HOSTS, much_later, trusted=new.authorities).authorities, much_later)


def test_the_authorities_do_not_add_up_for_ever() -> None:
    now, certificates = NOW, make(HOSTS, NOW)
    for _ in range(10):
        now += timedelta(days=61)
        certificates = make(HOSTS, now, trusted=certificates.authorities)
    assert certificates.authorities.count(b"BEGIN CERTIFICATE") == 2


def test_a_certificate_is_due_after_two_thirds_of_its_life() -> None:
    certificates = make(HOSTS, NOW)
    assert not is_due(certificates, HOSTS, NOW)
    assert not is_due(certificates, HOSTS, NOW + timedelta(days=59))
    assert is_due(certificates, HOSTS, NOW + timedelta(days=61))
    assert is_due(certificates, HOSTS, NOW - timedelta(days=1))


def test_a_certificate_for_other_hosts_is_due() -> None:
    assert is_due(make(HOSTS, NOW), [HOSTS[0]], NOW)


def test_what_cannot_be_served_is_due() -> None:
    good, other = make(HOSTS, NOW), make(HOSTS, NOW)
    for unusable in (
        Certificates(b"", b"", b""),
        Certificates(b"no key", good.certificate, good.authorities),
        Certificates(other.key, good.certificate, good.authorities),
        Certificates(good.key, b"no certificate", good.authorities),
        Certificates(good.key, good.certificate, b""),
        Certificates(good.key, good.certificate, other.authorities),
    ):
        assert is_due(unusable, HOSTS, NOW)
    assert make(HOSTS, NOW, trusted=b"no certificates").authorities.count(b"BEGIN CERTIFICATE") == 1
