"""The custom resources at a real API server: defaults, every rule with its message, columns, scale."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsafespace_protocol.limits import MAX_DURATION
from tests.cluster.support import Kubectl, KubectlError, Namespaces

GROUP = "llmsafespace.dev"

# The original's examples, unchanged but for the namespaces.
SANDBOX = """
apiVersion: llmsafespace.dev/v1
kind: Sandbox
metadata:
  name: sandbox-12345
spec:
  runtime: python:3.10
  resources:
    cpu: "1"
    memory: "1Gi"
  timeout: 300
  user: "user-123"
  securityLevel: "standard"
  securityContext:
    runAsNonRoot: true
    seccompProfile:
      type: RuntimeDefault
  useWarmPool: true
status:
  phase: Running
  startTime: "2023-07-01T10:00:00Z"
  endpoint: "sandbox-12345.agent-sandboxes.svc.cluster.local"
  warmPodRef:
    name: "python-pool-abc123"
    namespace: "warm-pools"
"""
WARM_POOL = """
apiVersion: llmsafespace.dev/v1
kind: WarmPool
metadata:
  name: python-pool
spec:
  runtime: python:3.10
  minSize: 5
  maxSize: 20
  securityLevel: standard
  preloadPackages:
  - numpy
  - pandas
  preloadScripts:
  - name: init-data
    content: |
      import numpy as np
      np.random.seed(42)
      print("Preloaded numpy with fixed seed")
  autoScaling:
    enabled: true
    targetUtilization: 80
status:
  availablePods: 3
  assignedPods: 2
  pendingPods: 0
  lastScaleTime: "2023-07-01T10:00:00Z"
  conditions:
  - type: Ready
    status: "True"
    reason: PoolReady
    message: "Warm pool is ready"
    lastTransitionTime: "2023-07-01T10:05:00Z"
"""
WARM_POD = """
apiVersion: llmsafespace.dev/v1
kind: WarmPod
metadata:
  name: python-pool-abc123
  labels:
    app: llmsafespace
    component: warmpod
    pool: python-pool
spec:
  poolRef:
    name: python-pool
    namespace: warm-pools
  creationTimestamp: "2023-07-01T09:55:00Z"
  lastHeartbeat: "2023-07-01T10:00:00Z"
status:
  phase: Ready
  podName: python-pool-pod-abc123
  podNamespace: warm-pools
"""
CLAIM = {
    "claimId": "sb-00000000000000000001",
    "sandbox": {"name": "one", "namespace": "somewhere"},
    "time": "2026-01-01T00:00:00Z",
}


@pytest.fixture(scope="module")
def namespace(crds: None, namespaces: Namespaces) -> str:
    return namespaces("crds")


class Objects:
    """Makes, changes and reads objects of one namespace."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    def apply(self, manifest: str) -> None:
        self._kubectl.apply(manifest, namespace=self._namespace)

    def create(self, kind: str, name: str, spec: dict[str, Any], *, dry_run: bool = False) -> None:
        body = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        options = ["--dry-run=server"] if dry_run else []
        arguments = ("create", "--namespace", self._namespace, *options, "--filename", "-")
        self._kubectl(*arguments, stdin=json.dumps(body))

    def get(self, resource: str, name: str) -> dict[str, Any]:
        return self._kubectl.json("get", resource, name, "--namespace", self._namespace)

    def patch(self, resource: str, name: str, patch: dict[str, Any], subresource: str = "") -> None:
        options = [f"--subresource={subresource}"] if subresource else []
        arguments = ("patch", resource, name, "--namespace", self._namespace, *options)
        self._kubectl(*arguments, "--type=merge", "--patch", json.dumps(patch))

    def columns(self, resource: str, *options: str) -> list[list[str]]:
        text = self._kubectl("get", resource, "--namespace", self._namespace, *options)
        return [line.split() for line in text.splitlines()]


@pytest.fixture
def objects(kubectl: Kubectl, namespace: str) -> Objects:
    return Objects(kubectl, namespace)


@pytest.mark.parametrize(
    ("manifest", "resource", "name"),
    [
        (SANDBOX, "sandboxes", "sandbox-12345"),
        (WARM_POOL, "warmpools", "python-pool"),
        (WARM_POD, "warmpods", "python-pool-abc123"),
    ],
    ids=["Sandbox", "WarmPool", "WarmPod"],
)
def test_the_originals_manifest_applies_and_applying_it_again_changes_nothing(
    objects: Objects, manifest: str, resource: str, name: str
) -> None:
    objects.apply(manifest)
    first = objects.get(f"{resource}.{GROUP}", name)
    objects.apply(manifest)
    again = objects.get(f"{resource}.{GROUP}", name)
    assert again["metadata"]["generation"] == 1
    assert again["spec"] == first["spec"]
    assert again["status"] == first["status"]
    assert again["status"].get("phase", "Pending") == "Pending"  # a status is the operator's


def test_a_sandbox_gets_its_defaults(objects: Objects) -> None:
    objects.create("Sandbox", "defaults", {"runtime": "python:3.11"})
    made = objects.get("sandbox", "defaults")
    assert made["spec"] == {
        "runtime": "python:3.11",
        "securityLevel": "standard",
        "timeout": 300,
        "resources": {"cpu": "500m", "memory": "512Mi", "ephemeralStorage": "1Gi", "cpuPinning": False},
        "networkAccess": {"ingress": False},
        "filesystem": {"readOnlyRoot": True, "writablePaths": ["/tmp", "/workspace"]},
        "storage": {"persistent": False, "volumeSize": "5Gi"},
        "securityContext": {
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "useWarmPool": True,
        "maxLifetime": 86400,
    }
    assert made["status"] == {"phase": "Pending"}


def test_a_warm_pool_gets_its_defaults(objects: Objects) -> None:
    objects.create("WarmPool", "defaults", {"runtime": "python:3.11"})
    spec = objects.get("warmpool", "defaults")["spec"]
    assert (spec["minSize"], spec["maxSize"], spec["ttl"]) == (1, 0, 3600)
    assert spec["resources"] == {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}
    assert spec["autoScaling"] == {"enabled": False, "targetUtilization": 80, "scaleDownDelay": 300}
    assert spec["allowedNamespaces"] == ["*"]


def _sandbox(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "Sandbox", {"runtime": "python:3.11", **fields}


def _pool(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "WarmPool", {"runtime": "python:3.11", **fields}


def _profile(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "SandboxProfile", fields


def _seccomp(**fields: str) -> tuple[str, dict[str, Any]]:
    return _sandbox(securityContext={"seccompProfile": fields})


def _network(**fields: str) -> tuple[str, dict[str, Any]]:
    return _profile(networkPolicies=[{"rules": [fields]}])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (_sandbox(storage={"persistent": True}), "persistent storage is not supported yet: leave it out"),
        (_sandbox(filesystem={"writablePaths": ["data"]}), "writablePaths must be absolute"),
        (_sandbox(filesystem={"writablePaths": ["/"]}), "writablePaths must be absolute"),
        (_sandbox(filesystem={"writablePaths": ["/tmp/../etc"]}), "writablePaths must be absolute"),
        (_seccomp(type="Localhost"), "type Localhost needs localhostProfile"),
        (_seccomp(localhostProfile="own.json"), "type Localhost needs localhostProfile"),
        (_seccomp(type="Unconfined"), 'supported values: "Localhost", "RuntimeDefault"'),
        (_sandbox(securityContext={"runAsUser": 0}), "should be greater than or equal to 1"),
        (_sandbox(securityContext={"runAsNonRoot": False}), 'supported values: "true"'),
        (_sandbox(networkAccess={"ingress": True}), 'supported values: "false"'),
        (_sandbox(timeout=MAX_DURATION + 1), "spec.timeout in body should be less than or equal to"),
        (_sandbox(runtime="docker.io/library/python:3.11"), "spec.runtime in body should match"),
        (_sandbox(resources={"cpu": "much"}), "spec.resources.cpu in body should match"),
        (_sandbox(resources={"cpu": -1}), "spec.resources.cpu in body should be greater than or equal to 1"),
        (_sandbox(resources={"cpu": 0}), "spec.resources.cpu in body should be greater than or equal to 1"),
        (_sandbox(resources={"cpu": "0m"}), "spec.resources.cpu in body should match"),
        (_sandbox(resources={"memory": "0.0Gi"}), "spec.resources.memory in body should match"),
        (
            _sandbox(resources={"ephemeralStorage": "0"}),
            "spec.resources.ephemeralStorage in body should match",
        ),
        (_sandbox(resources={"memory": "-1Gi"}), "spec.resources.memory in body should match"),
        (_sandbox(resources={"cpu": 0.5}), "spec.resources.cpu in body must be of type integer,string"),
        (_sandbox(resources={"cpu": True}), "spec.resources.cpu in body must be of type integer,string"),
        (_sandbox(resources={"cpu": [1]}), "spec.resources.cpu in body must be of type integer,string"),
        (_pool(resources={"memory": -1}), "spec.resources.memory in body should be greater than or equal"),
        (_pool(resources={"cpu": "0"}), "spec.resources.cpu in body should match"),
        (_profile(resourceDefaults={"cpu": -1}), "spec.resourceDefaults.cpu in body should be greater"),
        (_network(domain="pypi.org", cidr="192.0.2.0/24"), "a rule has either a domain or a cidr"),
        (_network(), "a rule has either a domain or a cidr"),
        (_profile(filesystemConfig={"writablePaths": ["data"]}), "writablePaths must be absolute"),
        (_profile(filesystemConfig={"readOnlyPaths": ["data"]}), "readOnlyPaths must be absolute"),
        (_pool(minSize=3, maxSize=2), "maxSize must be at least"),
    ],
    ids=lambda value: json.dumps(value[1]) if isinstance(value, tuple) else "",
)
def test_what_breaks_a_rule_is_refused_and_told_why(
    objects: Objects, made: tuple[str, dict[str, Any]], message: str
) -> None:
    kind, spec = made
    with pytest.raises(KubectlError) as refused:
        objects.create(kind, "wrong", spec)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "made",
    [
        _seccomp(type="Localhost", localhostProfile="own.json"),
        _sandbox(filesystem={"writablePaths": ["/data", "/var/cache"]}),
        _network(domain="pypi.org"),
        _network(cidr="192.0.2.0/24"),
        _pool(minSize=3, maxSize=3),
        _pool(minSize=3, maxSize=0),
        _sandbox(resources={"cpu": 1, "memory": 1073741824, "ephemeralStorage": 1073741824}),
        _sandbox(resources={"cpu": "0.5", "memory": "1.50Gi", "ephemeralStorage": "1000M"}),
        _pool(resources={"cpu": 1, "memory": 1073741824}),
        _profile(resourceDefaults={"cpu": 1, "memory": 1073741824}),
    ],
    ids=lambda value: json.dumps(value[1]),
)
def test_what_keeps_the_rules_is_taken(objects: Objects, made: tuple[str, dict[str, Any]]) -> None:
    kind, spec = made
    objects.create(kind, "right", spec, dry_run=True)


@pytest.mark.parametrize(("kind", "longest"), [("WarmPool", 54), ("SandboxProfile", 63)])
def test_a_name_that_makes_no_label_is_refused(objects: Objects, kind: str, longest: int) -> None:
    spec = {"runtime": "python:3.11"} if kind == "WarmPool" else {}
    objects.create(kind, "n" * longest, spec, dry_run=True)
    with pytest.raises(KubectlError, match=f"at most {longest} characters"):
        objects.create(kind, "n" * (longest + 1), spec)


def test_the_spec_of_a_sandbox_never_changes(objects: Objects) -> None:
    objects.create("Sandbox", "fixed", {"runtime": "python:3.11"})
    for change in ({"timeout": 5}, {"user": "mallory"}, {"warmPod": _warm_pod("sb-1")}):
        with pytest.raises(KubectlError, match="cannot be changed: delete it and make another"):
            objects.patch("sandbox", "fixed", {"spec": change})
    objects.patch("sandbox", "fixed", {"metadata": {"labels": {"team": "blue"}}})


def _warm_pod(claim_id: str) -> dict[str, str]:
    return {"name": "one", "namespace": "warm-pools", "claimId": claim_id}


def test_a_phase_only_goes_forward(objects: Objects) -> None:
    objects.create("Sandbox", "phases", {"runtime": "python:3.11"})
    for phase in ("Creating", "Running", "Running"):
        objects.patch("sandbox", "phases", {"status": {"phase": phase}}, "status")
    with pytest.raises(KubectlError, match="a phase only goes forward"):
        objects.patch("sandbox", "phases", {"status": {"phase": "Creating"}}, "status")
    objects.patch("sandbox", "phases", {"status": {"phase": "Terminated"}}, "status")
    for phase in ("Failed", "Running"):
        with pytest.raises(KubectlError, match="Terminated and Failed are final"):
            objects.patch("sandbox", "phases", {"status": {"phase": phase}}, "status")


def test_a_claim_is_written_once_and_a_warm_pod_stays_with_its_pool(objects: Objects) -> None:
    pool = {"name": "some-pool", "namespace": "warm-pools"}
    objects.create("WarmPod", "claimed", {"poolRef": pool})
    objects.patch("warmpod", "claimed", {"spec": {"claim": CLAIM}})
    objects.patch("warmpod", "claimed", {"spec": {"claim": CLAIM}})
    for other in ({**CLAIM, "claimId": "sb-00000000000000000002"}, None):
        with pytest.raises(KubectlError, match="this WarmPod is claimed"):
            objects.patch("warmpod", "claimed", {"spec": {"claim": other}})
    objects.patch("warmpod", "claimed", {"spec": {"lastHeartbeat": "2026-01-01T00:00:00Z"}})
    with pytest.raises(KubectlError, match="a WarmPod stays with its pool"):
        objects.patch("warmpod", "claimed", {"spec": {"poolRef": {**pool, "name": "other"}}})


def test_a_pool_is_scaled_by_its_minimum_and_within_its_maximum(
    kubectl: Kubectl, namespace: str, objects: Objects
) -> None:
    objects.create("WarmPool", "scaled", {"runtime": "python:3.11", "minSize": 1, "maxSize": 3})
    status = {"replicas": 2, "selector": "pool=scaled"}
    objects.patch("warmpool", "scaled", {"status": status}, "status")
    kubectl("scale", "warmpool", "scaled", "--namespace", namespace, "--replicas=3")
    assert objects.get("warmpool", "scaled")["spec"]["minSize"] == 3
    path = f"/apis/{GROUP}/v1/namespaces/{namespace}/warmpools/scaled/scale"
    scale = json.loads(kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == status
    with pytest.raises(KubectlError, match="maxSize must be at least minSize"):
        kubectl("scale", "warmpool", "scaled", "--namespace", namespace, "--replicas=4")


def test_kubectl_get_reads_well(objects: Objects) -> None:
    objects.apply(WARM_POOL)
    ready = {"type": "Ready", "status": "True", "reason": "PoolReady"}
    status = {"availablePods": 3, "assignedPods": 2, "conditions": [ready]}
    objects.patch("warmpool", "python-pool", {"status": status}, "status")
    header, *rows = objects.columns("wp")
    assert header == ["NAME", "RUNTIME", "MIN", "MAX", "AVAILABLE", "ASSIGNED", "PENDING", "READY", "AGE"]
    [pool] = [row for row in rows if row[0] == "python-pool"]
    assert pool[1:8] == ["python:3.10", "5", "20", "3", "2", "0", "True"]

    pool_ref = {"name": "python-pool", "namespace": "warm-pools"}
    objects.create("WarmPod", "seen", {"poolRef": pool_ref, "claim": CLAIM})
    header, *rows = objects.columns("wpod")
    assert header == ["NAME", "POOL", "PHASE", "SANDBOX", "AGE"]
    assert ["seen", "python-pool", "Pending", "one"] in [row[:4] for row in rows]

    objects.create("Sandbox", "seen", {"runtime": "python:3.11"})
    objects.patch("sb", "seen", {"status": {"phase": "Running", "startKind": "warm"}}, "status")
    header, *rows = objects.columns("sb")
    assert header == ["NAME", "RUNTIME", "PHASE", "START", "END", "AGE"]
    assert ["seen", "python:3.11", "Running", "warm"] in [row[:4] for row in rows]

    objects.create("SandboxProfile", "seen", {"language": "python", "runtimeClassName": "gvisor"})
    header, row = objects.columns("sbp")
    assert header == ["NAME", "LANGUAGE", "LEVEL", "RUNTIME", "CLASS", "AGE"]
    assert row[:4] == ["seen", "python", "standard", "gvisor"]


def test_runtime_environments_are_cluster_wide_and_read_well(kubectl: Kubectl, namespace: str) -> None:
    name = f"{namespace}-python"
    spec = {"image": "localhost/python:1", "language": "python", "version": "3.11"}
    body = {"apiVersion": f"{GROUP}/v1", "kind": "RuntimeEnvironment", "metadata": {"name": name}}
    kubectl.apply({**body, "spec": spec})
    try:
        header, row = (line.split() for line in kubectl("get", "rte", name).splitlines())
        assert header == ["NAME", "LANGUAGE", "VERSION", "AVAILABLE", "AGE"]
        assert row[:3] == [name, "python", "3.11"]
        assert row[3] in ("true", "false")  # an operator of another installation may have looked
    finally:
        kubectl("delete", "rte", name)


def test_one_word_lists_them_all(kubectl: Kubectl, namespace: str, objects: Objects) -> None:
    objects.create("Sandbox", "among", {"runtime": "python:3.11"})
    assert "sandbox.llmsafespace.dev/among" in kubectl("get", "llmsafespace", "--namespace", namespace)
