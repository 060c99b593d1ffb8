"""What the API server refuses in the namespaces of sandboxes, each rule by itself, and what it lets pass."""

from __future__ import annotations

import copy
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_kube.resources.kinds import WARMPOD
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import PoolResources
from llmsafespace_operator.pods.build import Recipe, pod
from tests.cluster.support import Kubectl, KubectlError, Namespaces, eventually

CHART = Path(__file__).parents[2] / "deploy/helm/llmsafespace"
TEMPLATES = ("admission-policies", "rbac-operator", "rbac-gateway")
GROUP = "llmsafespace.dev"
IMAGE = "localhost/llmsafespace-python:test"
DEVELOPER = "somebody"  # may do all that RBAC has names for, but neither assign nor claim

Change = Callable[[dict[str, Any]], None]


class Installed:
    """A release of which only the policies and the roles are there."""

    def __init__(self, kubectl: Kubectl, namespaces: Namespaces) -> None:
        self.system = namespaces("system")
        self.sandboxes = namespaces("policies", sandboxes=True)
        self.pools = namespaces("policies-pools", sandboxes=True)
        self.release = f"policies-{secrets.token_hex(3)}"
        self.name = f"{self.release}-llmsafespace"
        self.operator = self._account("operator")
        self.gateway = self._account("gateway")
        self.admin = ""
        self._kubectl = kubectl

    def _account(self, component: str) -> str:
        return f"system:serviceaccount:{self.system}:{self.name}-{component}"

    def manifests(self) -> str:
        version = self._kubectl.json("version")["serverVersion"]["gitVersion"]
        namespaces = {"sandboxes": {self.sandboxes: "t", "agent-sandboxes": None}, "pools": [self.pools]}
        command = ["helm", "template", self.release, str(CHART), "--namespace", self.system]
        command += ["--kube-version", version, "--set-json", f"namespaces={json.dumps(namespaces)}"]
        command += ["--set", "warmPools=null"]
        command += [each for name in TEMPLATES for each in ("--show-only", f"templates/{name}.yaml")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def allow(self, *images: str) -> None:
        name = f"{self.name}-images"
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        self._kubectl.apply({**body, "data": {"images": "\n".join(images) + "\n"}}, namespace=self.system)

    def create(self, who: str, body: dict[str, Any], namespace: str, *options: str) -> None:
        """Create it as somebody; raises KubectlError with the API server's refusal."""
        identity = [f"--as={who}"] if who else []
        arguments = ("create", *identity, "--namespace", namespace, *options, "--filename", "-")
        self._kubectl(*arguments, stdin=json.dumps(body))

    def refusal(self, who: str, body: dict[str, Any], namespace: str) -> str:
        """Why the API server does not take it; empty when it would."""
        try:
            self.create(who, body, namespace, "--dry-run=server")
        except KubectlError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, crds: None, namespaces: Namespaces) -> Iterator[Installed]:
    made = Installed(kubectl, namespaces)
    manifests = made.manifests()
    kubectl("apply", "--filename", "-", stdin=manifests)
    try:
        made.allow(IMAGE)
        for namespace in (made.sandboxes, made.pools):
            _let_develop(kubectl, namespace)
        _in_force(made)
        yield made
    finally:
        kubectl("delete", "--ignore-not-found", "--filename", "-", stdin=manifests)


def _let_develop(kubectl: Kubectl, namespace: str) -> None:
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    rules = [{"apiGroups": ["", GROUP], "resources": ["*"], "verbs": verbs}]
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "developer"}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "name": "developer"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DEVELOPER}
    kubectl.apply(
        {**kind, "kind": "Role", "rules": rules},
        {**kind, "kind": "RoleBinding", "roleRef": {**reference, "kind": "Role"}, "subjects": [subject]},
        namespace=namespace,
    )


def _in_force(made: Installed) -> None:
    """A new policy is looked at after a moment; its parameter, too."""

    def refused() -> bool:
        pods, taken = made.refusal("", a_pod(), made.pools), made.refusal(made.operator, a_pod(), made.pools)
        sandbox = made.refusal(DEVELOPER, a_sandbox(user="alice"), made.sandboxes)
        claim = made.refusal(DEVELOPER, a_warm_pod(claim=CLAIM), made.pools)
        return bool(pods and sandbox and claim) and not taken

    eventually(refused, what="policies in force")


def a_pod(*changes: Change, name: str = "some-pod") -> dict[str, Any]:
    """The pod that the operator makes for a WarmPod that there is not, and what somebody changed in it."""
    recipe = Recipe(
        kind=WARMPOD,
        owner=Metadata(name=name, uid="0-0"),
        image=IMAGE,
        resources=PoolResources(),
    )
    settings = Settings(system_namespace="system", key_file="/key", gateway_url="http://gateway")
    made = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(pod(recipe, settings))}
    made["metadata"].pop("namespace")
    made["spec"]["nodeSelector"] = {"no-such": "node"}
    for change in changes:
        change(made["spec"])
    return made


def an_orphan(name: str) -> dict[str, Any]:
    """The same as a pod that stays, although there is nobody whose it is."""
    made = a_pod(_without_secret, name=name)
    made["metadata"].pop("ownerReferences")
    return made


def _without_secret(spec: dict[str, Any]) -> None:
    for container in spec["containers"]:
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "config"]
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] != "config"]


def _spec(**fields: Any) -> Change:
    return lambda spec: spec.update(fields)


def _container(**fields: Any) -> Change:
    return lambda spec: spec["containers"][0].update(fields)


def _security(**fields: Any) -> Change:
    return lambda spec: spec["containers"][0]["securityContext"].update(fields)


def _volume(source: dict[str, Any]) -> Change:
    return lambda spec: spec["volumes"].append({"name": "more", **source})


def _second(**fields: Any) -> Change:
    """A second container that differs from the first."""
    return lambda spec: spec["containers"].append({**spec["containers"][0], "name": "second", **fields})


def _init(spec: dict[str, Any]) -> None:
    spec["initContainers"] = [{"name": "first", "image": IMAGE}]


def _root(spec: dict[str, Any]) -> None:
    for context in (spec["securityContext"], spec["containers"][0]["securityContext"]):
        context.pop("runAsNonRoot")


def _no_seccomp(spec: dict[str, Any]) -> None:
    spec["securityContext"].pop("seccompProfile")


def _no_limit(resource: str) -> Change:
    return lambda spec: spec["containers"][0]["resources"]["limits"].pop(resource)


def _limit(resource: str, amount: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        for of in spec["containers"][0]["resources"].values():
            of[resource] = amount

    return change


def _secret_of(name: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"secretKeyRef": {"name": name, "key": "agent.json"}}}


PROJECTED = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_spec(hostNetwork=True), "leave hostNetwork out"),
        (_spec(hostPID=True), "leave hostPID out"),
        (_spec(hostIPC=True), "leave hostIPC out"),
        (_container(ports=[{"containerPort": 1, "hostPort": 1}]), "leave hostPort out"),
        (_volume({"hostPath": {"path": "/"}}), "no hostPath"),
        (_volume({"secret": {"secretName": "another"}}), "the Secret of its own owner"),
        (_volume({"secret": {"secretName": "some-pod"}}), "the Secret of its own owner"),
        (_volume({"configMap": {"name": "some"}}), "no volumes but emptyDir"),
        (_volume({"persistentVolumeClaim": {"claimName": "some"}}), "no volumes but emptyDir"),
        (_volume(PROJECTED), "no volumes but emptyDir"),
        (_container(env=[_secret_of("another")]), "leave envFrom and valueFrom out"),
        (_container(envFrom=[{"secretRef": {"name": "another"}}]), "leave envFrom and valueFrom out"),
        (_security(privileged=True, allowPrivilegeEscalation=True), "leave privileged out"),
        (_security(allowPrivilegeEscalation=True), "set allowPrivilegeEscalation to false"),
        (_security(capabilities={}), "drop ALL and add none"),
        (_security(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}), "drop ALL and add none"),
        (_root, "set runAsNonRoot to true"),
        (_security(runAsNonRoot=False), "set runAsNonRoot to true"),
        (_security(readOnlyRootFilesystem=False), "set readOnlyRootFilesystem to true"),
        (_no_seccomp, "set seccompProfile to RuntimeDefault or Localhost"),
        (_security(seccompProfile={"type": "Unconfined"}), "set seccompProfile to RuntimeDefault"),
        (_spec(automountServiceAccountToken=True), "set automountServiceAccountToken to false"),
        (lambda spec: spec.pop("automountServiceAccountToken"), "set automountServiceAccountToken to false"),
        (_spec(enableServiceLinks=True), "set enableServiceLinks to false"),
        (_no_limit("cpu"), "set resources.limits"),
        (_no_limit("memory"), "set resources.limits"),
        (_no_limit("ephemeral-storage"), "set resources.limits"),
        (_limit("cpu", "0"), "set resources.limits"),
        (_limit("memory", "0"), "set resources.limits"),
        (_limit("ephemeral-storage", "0Gi"), "set resources.limits"),
        (_container(image="docker.io/evil:1"), "image docker.io/evil:1 is not one that sandboxes may run"),
        (_container(image=f"{IMAGE}2"), "is not one that sandboxes may run"),
        (_container(image=IMAGE[:-1]), "is not one that sandboxes may run"),
        (_second(image="docker.io/evil:1"), "image docker.io/evil:1 is not one"),
        (_second(securityContext={}), "a sandbox may not gain privileges"),
        (_init, "a sandbox may not gain privileges"),
    ],
)
def test_a_pod_that_breaks_one_rule_is_refused_even_to_the_operator(
    installed: Installed, change: Change, message: str
) -> None:
    assert message in installed.refusal(installed.operator, a_pod(change), installed.pools)


def test_the_pods_that_the_operator_makes_are_taken(installed: Installed) -> None:
    assert installed.refusal(installed.operator, a_pod(), installed.pools) == ""
    own = _spec(securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}})
    assert installed.refusal(installed.operator, a_pod(own), installed.pools) == ""


@pytest.mark.parametrize("who", ["admin", "gateway"])
def test_nobody_else_makes_pods(installed: Installed, who: str) -> None:
    refusal = installed.refusal(getattr(installed, who), a_pod(), installed.pools)
    assert "create a Sandbox instead" in refusal or (who == "gateway" and "cannot create" in refusal)


def test_what_makes_pods_elsewhere_makes_none_here(
    kubectl: Kubectl, installed: Installed, namespaces: Namespaces
) -> None:
    """A Deployment's pods are the controller's, so they are refused, however tame they are."""
    labels = {"app": "tame"}
    template = {"metadata": {"labels": labels}, "spec": {**a_pod()["spec"], "restartPolicy": "Always"}}
    kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "tame"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        namespace=installed.sandboxes,
    )

    def refused() -> bool:
        [deployment] = kubectl.items("deployment", installed.sandboxes)
        return "create a Sandbox instead" in json.dumps(deployment["status"])

    eventually(refused, what="a refused replica")
    elsewhere = namespaces("elsewhere")
    assert installed.refusal(installed.admin, a_pod(), elsewhere) == ""


def test_nobody_enters_a_pod_or_changes_its_image(kubectl: Kubectl, installed: Installed) -> None:
    installed.create(installed.operator, an_orphan("entered"), installed.pools)
    where = ("--namespace", installed.pools)

    for door in ("exec", "attach", "portforward"):
        path = f"/api/v1/namespaces/{installed.pools}/pods/entered/{door}"
        with pytest.raises(KubectlError, match="nobody gets into a sandbox past its gateway"):
            kubectl("create", "--raw", path, "--filename", "-", stdin="{}")
    with pytest.raises(KubectlError, match="nobody gets into a sandbox past its gateway"):
        kubectl("get", "--raw", f"/api/v1/namespaces/{installed.pools}/pods/entered/proxy/")

    with pytest.raises(KubectlError, match="evil:1 is not one that sandboxes may run"):
        kubectl("set", "image", "pod/entered", "sandbox=docker.io/evil:1", *where)
    with pytest.raises(KubectlError, match="takes no ephemeral containers"):
        kubectl("debug", "entered", f"--image={IMAGE}", "--container=sneaky", *where)


def test_an_image_that_is_no_longer_allowed_goes_on_in_the_pods_that_have_it(
    kubectl: Kubectl, installed: Installed
) -> None:
    installed.create(installed.operator, an_orphan("old"), installed.pools)
    installed.allow("localhost/llmsafespace-python:new")
    try:
        eventually(
            lambda: "is not one" in installed.refusal(installed.operator, a_pod(), installed.pools),
            what="the image off the list",
        )
        kubectl("label", "pod", "old", "some=label", "--namespace", installed.pools)
    finally:
        installed.allow(IMAGE)
    eventually(lambda: not installed.refusal(installed.operator, a_pod(), installed.pools))


def test_without_the_list_of_images_no_pod_starts(kubectl: Kubectl, installed: Installed) -> None:
    name = f"{installed.name}-images"
    kubectl("delete", "configmap", name, "--namespace", installed.system)
    try:
        eventually(
            lambda: "no params found" in installed.refusal(installed.operator, a_pod(), installed.pools),
            what="a refusal without the list",
        )
    finally:
        installed.allow(IMAGE)
    eventually(lambda: not installed.refusal(installed.operator, a_pod(), installed.pools))


# -- Sandboxes and claims --------------------------------------------------------------------------------

CLAIM = {
    "claimId": "sb-00000000000000000001",
    "sandbox": {"name": "one", "namespace": "somewhere"},
    "time": "2026-01-01T00:00:00Z",
}
WARM_POD_CLAIMED = {"name": "one", "namespace": "warm-pools", "claimId": "sb-00000000000000000001"}


def a_sandbox(name: str = "mine", **spec: Any) -> dict[str, Any]:
    return _object("Sandbox", name, {"runtime": "python:3.11", **spec})


def a_warm_pod(name: str = "one", **spec: Any) -> dict[str, Any]:
    return _object("WarmPod", name, {"poolRef": {"name": "pool", "namespace": "warm-pools"}, **spec})


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


ASSIGNED = [
    (a_sandbox(user="alice"), "spec.user is for those who may `assign` sandboxes"),
    (
        a_sandbox(name="sb-0123456789abcdef0123"),
        "names like sb-0123456789abcdef0123 are reserved for the gateway",
    ),
    (a_sandbox(warmPod=WARM_POD_CLAIMED), "spec.warmPod is set by the gateway only"),
]


@pytest.mark.parametrize(("body", "message"), ASSIGNED, ids=["user", "name", "warmPod"])
def test_only_who_may_assign_says_whose_a_sandbox_is(
    installed: Installed, body: dict[str, Any], message: str
) -> None:
    assert message in installed.refusal(DEVELOPER, body, installed.sandboxes)
    assert installed.refusal(installed.gateway, body, installed.sandboxes) == ""
    assert installed.refusal(installed.admin, body, installed.sandboxes) == ""


@pytest.mark.parametrize("name", ["mine", "sb-1", "sb-0123456789abcdef0123a", "sb-0123456789abcdef012"])
def test_everybody_with_the_right_makes_sandboxes(installed: Installed, name: str) -> None:
    assert installed.refusal(DEVELOPER, a_sandbox(name=name), installed.sandboxes) == ""


def test_a_sandbox_that_was_assigned_may_be_labelled_by_others(
    kubectl: Kubectl, installed: Installed
) -> None:
    installed.create(installed.gateway, a_sandbox(name="labelled", user="alice"), installed.sandboxes)
    where = ("--namespace", installed.sandboxes, f"--as={DEVELOPER}")
    kubectl("label", "sandbox", "labelled", "team=blue", *where)


def test_only_who_may_claim_takes_a_warm_pod(kubectl: Kubectl, installed: Installed) -> None:
    claimed = a_warm_pod(claim=CLAIM)
    message = "spec.claim is for those who may `claim` this pool's warm pods"
    assert message in installed.refusal(DEVELOPER, claimed, installed.pools)
    assert installed.refusal(installed.operator, claimed, installed.pools) == ""

    installed.create(installed.operator, a_warm_pod("taken"), installed.pools)
    patch = ("patch", "warmpod", "taken", "--namespace", installed.pools, "--type=merge", "--patch")
    with pytest.raises(KubectlError, match=message):
        kubectl(*patch, json.dumps({"spec": {"claim": CLAIM}}), f"--as={DEVELOPER}")
    kubectl(*patch, json.dumps({"spec": {"claim": CLAIM}}), f"--as={installed.gateway}")
    kubectl(*patch, json.dumps({"metadata": {"labels": {"team": "blue"}}}), f"--as={DEVELOPER}")


def test_the_api_server_understands_every_expression(kubectl: Kubectl, installed: Installed) -> None:
    """It checks their types against the schemas of what they match, and would warn here."""
    for policy in kubectl.json("get", "validatingadmissionpolicies")["items"]:
        if policy["metadata"]["name"].startswith(installed.name):
            warnings = policy["status"].get("typeChecking", {}).get("expressionWarnings", [])
            assert warnings == [], policy["metadata"]["name"]
