"""A sandbox's pod as Kubernetes is asked for it, and what its status says about its sandbox."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from llmsafespace_kube.resources import kinds, names
from llmsafespace_kube.resources.kubernetes import Metadata, Pod
from llmsafespace_kube.resources.settings import AgentLimits, Settings
from llmsafespace_kube.resources.types import (
    Filesystem,
    FilesystemConfig,
    PoolResources,
    PreloadScript,
    SandboxProfile,
    SandboxProfileSpec,
    SeccompProfile,
    SecurityContext,
)
from llmsafespace_operator.pods.build import Recipe, pod, secret
from llmsafespace_operator.pods.ends import End, end_of, is_ready, trouble
from llmsafespace_protocol.configuration import AgentConfig
from llmsafespace_protocol.quantities import number

SETTINGS = Settings(
    system_namespace="llmsafespace",
    key_file="/key",
    gateway_url="https://gateway",
    egress_proxy="10.96.0.7:3128",
    canaries=["10.96.0.1:443"],
    agent=AgentLimits(parked=2),
)
TOKEN = "ab" * 32


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "kind": kinds.WARMPOD,
        "owner": Metadata(name="pool-1a2b", namespace="warm-pools", uid="uid-1"),
        "image": "localhost/python:1",
        "resources": PoolResources(cpu="1", memory="1Gi", ephemeral_storage="2Gi"),
        "pool": "pool",
    }
    return Recipe(**(values | changes))


def spec(**changes: Any) -> Any:
    return pod(recipe(**changes), SETTINGS)["spec"]


def profile(**changes: Any) -> SandboxProfile:
    return SandboxProfile(metadata=Metadata(name="strict"), spec=SandboxProfileSpec(**changes))


# -- the pod -------------------------------------------------------------------------------------------


def test_a_pod_gives_its_code_nothing_to_work_with() -> None:
    made = spec()
    (container,) = made["containers"]
    assert made["automountServiceAccountToken"] is made["enableServiceLinks"] is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["runAsUser"] == made["securityContext"]["fsGroup"] == 1000
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (made["dnsPolicy"], made["dnsConfig"]) == ("None", {"nameservers": ["127.0.0.1"]})
    assert made["restartPolicy"] == "Never"
    for absent in ("hostNetwork", "hostPID", "hostIPC", "initContainers", "serviceAccountName"):
        assert absent not in made
    assert "env" not in container
    assert "envFrom" not in container


def test_what_a_pod_may_use_is_what_it_has_reserved() -> None:
    resources = spec()["containers"][0]["resources"]
    assert resources["limits"] == {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    assert resources["requests"] == resources["limits"]


def test_every_folder_is_empty_and_limited() -> None:
    made = spec()
    paths = {one["mountPath"]: one["name"] for one in made["containers"][0]["volumeMounts"]}
    volumes = {one["name"]: one for one in made["volumes"]}
    assert {"/workspace", "/tmp", "/home/sandbox", "/run/llmsafespace", "/dev/shm"} <= paths.keys()
    assert len(paths) == len(volumes) == len(made["volumes"])
    for path, name in paths.items():
        if path == "/etc/llmsafespace":
            assert volumes[name]["secret"] == {"secretName": "agent-uid-1", "defaultMode": 0o440}
        else:
            assert number(volumes[name]["emptyDir"]["sizeLimit"]) > 0


def test_folders_in_memory_leave_most_of_it_to_the_sandbox() -> None:
    small = recipe(resources=PoolResources(memory="256Mi"))
    volumes = pod(small, SETTINGS)["spec"]["volumes"]
    in_memory = [one["emptyDir"] for one in volumes if one.get("emptyDir", {}).get("medium") == "Memory"]
    assert len(in_memory) == 2
    assert sum(number(one["sizeLimit"]) for one in in_memory) <= number("256Mi") / 2


def test_further_folders_come_from_sandbox_and_profile_and_hide_none_of_ours() -> None:
    asked = ["/tmp/", "/data", "/run/llmsafespace", "/dev/shm", "/data/../data"]
    config = FilesystemConfig(writable_paths=["/cache"], read_only_paths=["/data/fixed"])
    made = spec(filesystem=Filesystem(writable_paths=asked), profile=profile(filesystem_config=config))
    mounts = made["containers"][0]["volumeMounts"]
    paths = [one["mountPath"] for one in mounts]
    assert len(paths) == len(set(paths))
    assert {"/data", "/cache", "/data/fixed"} <= set(paths)
    assert [one["mountPath"] for one in mounts if one.get("readOnly")] == ["/etc/llmsafespace", "/data/fixed"]


def test_the_profile_says_how_strongly_it_is_isolated() -> None:
    strict = profile(runtime_class_name="gvisor", seccomp_profile="profiles/strict.json")
    made = pod(recipe(profile=strict), SETTINGS)
    assert made["spec"]["runtimeClassName"] == "gvisor"
    local = {"type": "Localhost", "localhostProfile": "profiles/strict.json"}
    assert made["spec"]["securityContext"]["seccompProfile"] == local
    assert made["metadata"]["labels"][names.PROFILE] == "strict"
    assert "runtimeClassName" not in spec()


def test_a_sandbox_cannot_choose_a_weaker_seccomp_profile_than_its_profile_has() -> None:
    own = SecurityContext(seccomp_profile=SeccompProfile("Localhost", "lax.json"))
    chosen = spec(security_context=own)["securityContext"]["seccompProfile"]
    assert chosen == {"type": "Localhost", "localhostProfile": "lax.json"}
    for name, type_ in (("RuntimeDefault", "RuntimeDefault"), ("strict.json", "Localhost")):
        made = spec(security_context=own, profile=profile(seccomp_profile=name))
        assert made["securityContext"]["seccompProfile"]["type"] == type_
        assert made["securityContext"]["seccompProfile"].get("localhostProfile") != "lax.json"


def test_pod_and_secret_end_with_their_owner_and_are_found_by_labels() -> None:
    made = {"pool-1a2b": pod(recipe(), SETTINGS), "agent-uid-1": secret(recipe(), TOKEN, SETTINGS)}
    for name, one in made.items():
        metadata = one["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (name, "warm-pools")
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("WarmPod", "uid-1")
        assert metadata["labels"] == {
            names.COMPONENT: "sandbox",
            names.PROFILE: "standard",
            names.POOL: "pool",
        }


def test_only_a_claimed_pod_has_a_deadline() -> None:
    assert "activeDeadlineSeconds" not in spec()
    cold = pod(recipe(kind=kinds.SANDBOX, pool="", sandbox_id="sb-1", deadline=360), SETTINGS)
    assert cold["spec"]["activeDeadlineSeconds"] == 360
    assert cold["metadata"]["labels"][names.SANDBOX_ID] == "sb-1"
    assert names.POOL not in cold["metadata"]["labels"]


def test_pip_asks_the_configured_indexes() -> None:
    def env(*indexes: str) -> dict[str, str]:
        settings = msgspec.structs.replace(SETTINGS, package_indexes=list(indexes))
        text = secret(recipe(), TOKEN, settings)["stringData"]["agent.json"]
        return msgspec.json.decode(text, type=AgentConfig).env

    assert env() == {}
    assert env("https://pypi.example/simple") == {"PIP_INDEX_URL": "https://pypi.example/simple"}
    assert env("http://10.0.0.1:8000/simple/", "https://a.example/simple", "http://b.example/simple") == {
        "PIP_INDEX_URL": "http://10.0.0.1:8000/simple/",
        "PIP_EXTRA_INDEX_URL": "https://a.example/simple http://b.example/simple",
        "PIP_TRUSTED_HOST": "10.0.0.1:8000 b.example",
    }


def test_the_secret_tells_the_agent_all_it_needs_and_the_pod_none_of_it() -> None:
    made = recipe(preload_packages=["numpy"], preload_scripts=[PreloadScript("seed", "x = 1")])
    config = msgspec.json.decode(secret(made, TOKEN, SETTINGS)["stringData"]["agent.json"], type=AgentConfig)
    assert config.token == TOKEN
    assert (config.listen.port, config.ready_port) == (names.AGENT_PORT, names.READY_PORT)
    assert (config.preload_packages, config.preload_scripts[0].content) == (["numpy"], "x = 1")
    assert config.canaries == ["10.96.0.1:443"]
    assert config.egress is not None
    assert config.egress.proxy == "10.96.0.7:3128"
    assert (config.kernels, config.parked) == ([], 2)
    assert config.limits.memory_bytes is not None
    assert config.limits.memory_bytes < number("1Gi")
    assert TOKEN not in str(pod(made, SETTINGS))


def test_without_a_proxy_nothing_is_forwarded() -> None:
    alone = msgspec.structs.replace(SETTINGS, egress_proxy="")
    config = msgspec.json.decode(secret(recipe(), TOKEN, alone)["stringData"]["agent.json"], type=AgentConfig)
    assert config.egress is None


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("128M", 128e6), ("1Ki", 1024)]
)
def test_quantities_are_numbers(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "m", "1X", "1mGi", "-", "Gi1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        number(text)


# -- its status ------------------------------------------------------------------------------------------


def seen(**status: Any) -> Pod:
    """A pod whose status the API server would send so."""
    metadata = {"name": "p"} | ({"deletionTimestamp": _NOW} if status.pop("deleted", False) else {})
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "sandbox", "state": state}]


_NOW = datetime.now(UTC)
READY = {
    "phase": "Running",
    "podIP": "10.244.0.9",
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": container(running={}),
}


def test_ready_is_running_ready_and_not_being_deleted() -> None:
    assert is_ready(seen(**READY))
    assert not is_ready(seen(**READY, deleted=True))
    assert not is_ready(seen(**(READY | {"conditions": [{"type": "Ready", "status": "False"}]})))
    assert not is_ready(seen(**(READY | {"phase": "Pending"})))
    assert not is_ready(seen(**(READY | {"podIP": ""})))


def test_a_living_pod_has_no_end() -> None:
    assert end_of(seen(**READY)) is None
    assert end_of(seen(phase="Pending")) is None


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"phase": "Succeeded", "containerStatuses": container(terminated={"exitCode": 0})}, "terminated"),
        ({"phase": "Failed", "containerStatuses": container(terminated={"exitCode": 10})}, "expired"),
        ({"phase": "Failed", "containerStatuses": container(terminated={"exitCode": 11})}, "oom"),
        ({"phase": "Failed", "containerStatuses": container(terminated={"exitCode": 1})}, "failed"),
        (
            {
                "phase": "Failed",
                "containerStatuses": container(terminated={"exitCode": 137, "reason": "OOMKilled"}),
            },
            "oom",
        ),
        # containerd marks the container when the kernel killed any process of it, long before its end.
        (
            {
                "phase": "Failed",
                "containerStatuses": container(terminated={"exitCode": 10, "reason": "OOMKilled"}),
            },
            "expired",
        ),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "expired"),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "containerStatuses": container(terminated={"exitCode": 137}),
            },
            "lost",
        ),
        ({"phase": "Failed", "reason": "NodeLost"}, "lost"),
        ({"phase": "Failed"}, "lost"),
        ({"phase": "Unknown"}, "lost"),
        (READY | {"deleted": True}, "lost"),
        (
            {
                "phase": "Failed",
                "deleted": True,
                "containerStatuses": container(terminated={"exitCode": 137}),
            },
            "lost",
        ),
        ({"deleted": True, "containerStatuses": container(terminated={"exitCode": 10})}, "expired"),
    ],
)
def test_an_end_is_one_honest_word(status: dict[str, Any], end: str) -> None:
    found = end_of(seen(**status))
    assert found is not None
    assert found.end == end
    assert found.message


def test_an_end_says_what_kubernetes_said() -> None:
    evicted = seen(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    message = "its pod was lost: Evicted: The node was low on resource: memory."
    assert end_of(evicted) == End("lost", message)


def test_an_end_says_what_the_agent_said_last_and_no_more_of_it() -> None:
    log = f"INFO: listening\nNetworkOpen: 10.96.0.1:443 can be reached {'x' * 1000}\n"
    found = end_of(
        seen(phase="Failed", containerStatuses=container(terminated={"exitCode": 1, "message": log}))
    )
    assert found is not None
    assert found.message.startswith(
        "the agent ended with status 1: NetworkOpen: 10.96.0.1:443 can be reached"
    )
    assert len(found.message) < 600


def test_trouble_is_said_in_words() -> None:
    pulling = container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    assert trouble(seen(containerStatuses=pulling)) == "ImagePullBackOff: no such image"
    scheduling = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    assert trouble(seen(conditions=[scheduling])) == "no node takes its pod: 0/1 nodes are available"
    usual = container(waiting={"reason": "ContainerCreating"})
    assert trouble(seen(containerStatuses=usual)) == trouble(seen(**READY)) == ""
