"""A release in a real cluster: installed, upgraded under running sandboxes, and gone without a trace."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial

from llmsafespace import Sandbox
from tests.cluster.chart.support_chart import RESOURCES, Object, Release
from tests.cluster.support import Kubectl, eventually

CLUSTER_WIDE = (
    "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,"
    "validatingwebhookconfigurations,runtimeenvironments.llmsafespace.dev,"
    "flowschemas,prioritylevelconfigurations"
)


def sandbox(release: Release, url: str) -> Sandbox:
    """A sandbox that the release's pool serves warm, with what is bound late."""
    return Sandbox(
        release.runtime,
        release.admin_key(),
        resources=RESOURCES,
        api_url=url,
        env={"GREETING": "hello"},
        files={"name.txt": "world"},
    )


def test_a_person_gets_a_warm_sandbox(release: Release) -> None:
    with release.gateway_url() as url, sandbox(release, url) as warm:
        assert warm.start is not None
        assert (warm.start.kind, warm.start.reason) == ("warm", "")
        done = warm.run_code("import os; print(os.environ['GREETING'], open('name.txt').read())")
        assert done.stdout == "hello world\n", done.stderr


def test_a_sandbox_made_with_kubectl_runs_too(release: Release) -> None:
    release.await_warm(1)
    release.kubectl.apply(
        {
            "apiVersion": "llmsafespace.dev/v1",
            "kind": "Sandbox",
            "metadata": {"name": "by-hand", "namespace": release.sandboxes},
            "spec": {"runtime": release.runtime, "resources": RESOURCES},
        }
    )

    def running() -> Object | None:
        found = release.kubectl.json("get", "sandbox", "by-hand", "--namespace", release.sandboxes)
        status: Object = found.get("status", {})
        return status if status.get("phase") == "Running" else None

    status = eventually(running, what="phase Running")
    assert status["startKind"] == "warm"
    release.kubectl("delete", "sandbox", "by-hand", "--namespace", release.sandboxes, "--timeout", "30s")


def test_no_log_has_a_key_in_it(release: Release) -> None:
    log = release.story()
    for secret in release.kubectl.items("secrets", release.system, "--field-selector", "type=Opaque"):
        for value in secret.get("data", {}).values():
            assert base64.b64decode(value).decode(errors="replace") not in log


def test_an_upgrade_keeps_running_sandboxes(release: Release) -> None:
    keys, pods = _keys(release), _processes(release)
    release.await_warm(1)
    with release.gateway_url() as url:
        before = sandbox(release, url)
        before.run_code("x = 42")

    # Another limit, and so other pods of gateway and operator.
    release.upgrade(gateway={**release.values["gateway"], "config": {"rate_limit": 77}})

    assert _processes(release).isdisjoint(pods)
    assert _keys(release) == keys
    with release.gateway_url() as url:
        after = Sandbox.connect(before.id, api_url=url, api_key=release.admin_key())
        assert after.run_code("print(x)").stdout == "42\n"
        after.terminate()


def _keys(release: Release) -> list[Object]:
    names = (release.component("keys"), release.component("admin-key"))
    where = ("--namespace", release.system)
    return [release.kubectl.json("get", "secret", *where, name)["data"] for name in names]


def _processes(release: Release) -> set[str]:
    """The uids of the pods of gateway and operator."""
    labels = "app.kubernetes.io/component in (gateway, operator)"
    found = release.kubectl.items("pods", release.system, "--selector", labels)
    return {each["metadata"]["uid"] for each in found if "deletionTimestamp" not in each["metadata"]}


def test_nothing_but_the_namespaces_and_what_shuts_them_is_left_behind(
    make_release: Callable[..., Release], release: Release
) -> None:
    around = {"networkPolicies": [{"rules": [{"cidr": "192.0.2.0/24"}]}]}
    gone = make_release(1, profiles={"around-the-proxy": around})
    gone.await_warm(1)
    eventually(partial(_has_policy_of, gone, "around-the-proxy"))
    with gone.gateway_url() as url:
        sandbox(gone, url).run_code("x = 42")

    gone.uninstall()

    kubectl = gone.kubectl
    names = kubectl("get", CLUSTER_WIDE, "--output", "name").split()
    assert [each for each in names if gone.name in each] == []
    shut = {gone.component(name) for name in ("default-deny", "sandboxes")}
    for namespace, kept in ((gone.sandboxes, shut), (gone.pools, shut), (gone.system, set())):
        eventually(partial(_holds_only, kubectl, namespace, kept), what=f"{kept or 'nothing'} in {namespace}")
    there = kubectl("get", "namespaces", "--output", "name").split()
    assert {f"namespace/{gone.sandboxes}", f"namespace/{gone.pools}"} <= set(there)
    assert release.warm(), "the other release goes on"


def _has_policy_of(release: Release, profile: str) -> bool:
    policies = release.kubectl.items("networkpolicies", release.pools)
    return any(each["metadata"]["name"].endswith(f".{profile}") for each in policies)


def _holds_only(kubectl: Kubectl, namespace: str, policies: set[str]) -> bool:
    ours = "sandboxes,warmpools,warmpods,pods,secrets,networkpolicies,roles,rolebindings"
    found = kubectl("get", ours, "--namespace", namespace, "--output", "name").split()
    return set(found) == {f"networkpolicy.networking.k8s.io/{name}" for name in policies}
