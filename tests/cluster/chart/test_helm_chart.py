"""What the chart renders: valid, refusing wrong values in clear words, with no right too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from llmsafespace_protocol.quantities import number
from tests.cluster.chart.support_chart import CHART, Helm, HelmError, Object, own_values
from tests.cluster.support import Kubectl, Namespaces

RUNNING = ("Deployment", "Job")
EXAMPLES = CHART.parents[1] / "examples"
PLACEMENT: Object = {
    "nodeSelector": {"for": "us"},
    "tolerations": [{"key": "for", "operator": "Equal", "value": "us", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"example.com/scrape": "true"},
    "podLabels": {"team": "platform", "app.kubernetes.io/component": "stolen"},
}
WITH_EVERYTHING: dict[str, Any] = {
    "gateway": {
        "replicas": 3,
        "database": {"existingSecret": "database"},
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "host": "code.example.com", "tlsSecret": "tls"},
        "allowFrom": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
        "config": {"rate_limit": 50},
        "service": {"annotations": {"example.com/balancer": "internal"}},
        "trustedProxies": ["10.0.0.0/8"],
        "drainTimeout": 60,
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        **PLACEMENT,
    },
    "operator": {"scheduleTimeout": 300, **PLACEMENT},
    "image": {"pullSecrets": ["registry"]},
    "egress": {"denied": ["203.0.113.0/24"], **PLACEMENT},
    "sandboxes": {
        "nodeSelector": {"for": "sandboxes"},
        "tolerations": [{"key": "for", "operator": "Exists"}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "namespaces": {"sandboxes": {"team-a": "a", "team-b": "b"}, "pools": ["warm-pools", "team-pools"]},
}
# Text that YAML or Kubernetes could take for something else.
ODD = {
    "image": {"registry": "registry.example.com/team/", "pullSecrets": ["123"]},
    "namespaces": {"sandboxes": {"agent-sandboxes": None, "123": "123"}, "pools": ["0123"]},
    "keys": {"existingSecret": "123"},
    "gateway": {
        "url": "https://code.example.com",
        "adminKey": {"existingSecret": "123"},
        "persistence": {"enabled": True, "storageClass": "-", "size": "123"},
        "ingress": {"enabled": True, "className": "123", "host": "*.example.com", "tlsSecret": "123"},
    },
    "profiles": {"123": {"securityLevel": "standard"}},
    "runtimes": {"123": {"language": "python", "version": "3.11"}},
    "warmPools": {"python": None, "123": {"namespace": "0123", "spec": {"runtime": "python:3.11"}}},
}
WRONG = [
    ({"gateway": {"replica": 2}}, "'/gateway': additional properties 'replica' not allowed"),
    ({"gateway": {"replicas": 0}}, "'/gateway/replicas'"),
    ({"gateway": {"replicas": 2}}, "need a database that all replicas share"),
    ({"gateway": {"autoscaling": {"enabled": True}}}, "need a database that all replicas share"),
    ({"gateway": {"ingress": {"enabled": True}}}, "needs gateway.ingress.host"),
    ({"gateway": {"url": "code.example.com"}}, "'/gateway/url'"),
    ({"image": {"pullPolicy": "Sometimes"}}, "'Always', 'IfNotPresent', 'Never'"),
    ({"egress": {"denied": ["10.0.0.1"]}}, "'/egress/denied/0'"),
    ({"namespaces": {"pools": []}}, "'/namespaces/pools'"),
    ({"namespaces": {"pools": ["team.pools"]}}, "'/namespaces/pools/0'"),
    ({"namespaces": {"sandboxes": {"x": "Team B"}}}, "'/namespaces/sandboxes/x': 'Team B' does not match"),
    (
        {"namespaces": {"sandboxes": {"both": "b"}, "pools": ["both"]}},
        "namespace both is in namespaces.sandb",
    ),
    ({"gateway": {"ingress": {"enabled": True, "host": "*.example.com"}}}, "set gateway.url"),
    ({"namespaces": {"pools": ["system"]}}, "is the release's own"),
    ({"warmPools": {"python": {"namespace": "elsewhere"}}}, "is not one of namespaces.pools"),
    ({"runtimes": {"r": {"image": "r:1"}}}, "missing property 'language'"),
    ({"gateway": {"config": {"rate_limt": 50}}}, "additional properties 'rate_limt' not allowed"),
    ({"gateway": {"config": {"rate_limit": "fast"}}}, "'/gateway/config/rate_limit'"),
    ({"gateway": {"resources": {"limits": {"memory": "lots"}}}}, "'/gateway/resources/limits/memory'"),
    ({"warmPools": {"python": {"spec": {"minsize": 2}}}}, "additional properties 'minsize' not allowed"),
    ({"warmPools": {"python": {"spec": {"minSize": 9}}}}, "minSize is above maxSize (8)"),
    (
        {
            "gateway": {
                "database": {"existingSecret": "x"},
                "autoscaling": {"enabled": True, "minReplicas": 9},
            }
        },
        "gateway.autoscaling.minReplicas is above maxReplicas",
    ),
    ({"sandboxes": {"priorityClasses": {"warm": 200}}}, "priorityClasses.warm is above sandboxes"),
]

# All that the processes may do: group, resource, (name,) and verbs. Whoever adds a right adds it here, too.
READ = {"get", "list", "watch"}
OPERATOR_IN_BOTH = {
    ("", "pods"): READ | {"create", "patch", "delete"},
    ("", "secrets"): {"create"},
    ("llmsafespace.dev", "sandboxprofiles"): READ,
    ("llmsafespace.dev", "sandboxprofiles/status"): {"patch"},
    ("events.k8s.io", "events"): {"list", "create"},
    ("networking.k8s.io", "networkpolicies"): {"list", "create", "patch", "delete"},
}
OPERATOR_SANDBOXES = {
    ("llmsafespace.dev", "sandboxes"): READ | {"patch", "delete"},
    ("llmsafespace.dev", "sandboxes/status"): {"patch"},
    ("llmsafespace.dev", "sandboxes/finalizers"): {"update"},
}
OPERATOR_POOLS = {
    ("llmsafespace.dev", "warmpools"): READ | {"patch", "delete", "claim"},
    ("llmsafespace.dev", "warmpools/status"): {"patch"},
    ("llmsafespace.dev", "warmpods"): READ | {"create", "patch", "delete"},
    ("llmsafespace.dev", "warmpods/status"): {"patch"},
    ("llmsafespace.dev", "warmpods/finalizers"): {"update"},
}
PROFILES = {("llmsafespace.dev", "sandboxprofiles"): READ}
GATEWAY_SANDBOXES = {("llmsafespace.dev", "sandboxes"): READ | {"create", "patch", "delete", "assign"}}
GATEWAY_POOLS = {
    ("llmsafespace.dev", "warmpools"): READ | {"create", "patch", "delete", "claim"},
    ("llmsafespace.dev", "warmpods"): READ | {"patch"},
}
MAY = {
    ("operator", "agent-sandboxes"): OPERATOR_IN_BOTH | OPERATOR_SANDBOXES,
    ("operator", "warm-pools"): OPERATOR_IN_BOTH | OPERATOR_POOLS,
    ("operator", "system"): {
        ("coordination.k8s.io", "leases", "one-llmsafespace-operator"): {"get", "patch"},
        ("", "configmaps", "one-llmsafespace-images"): {"patch"},
        ("", "secrets", "one-llmsafespace-webhook"): {"get", "patch"},
        ("llmsafespace.dev", "sandboxprofiles"): READ,
        ("llmsafespace.dev", "sandboxprofiles/status"): {"patch"},
        ("events.k8s.io", "events"): {"create"},
    },
    ("operator", ""): {
        ("llmsafespace.dev", "runtimeenvironments"): READ,
        ("llmsafespace.dev", "runtimeenvironments/status"): {"patch"},
        ("node.k8s.io", "runtimeclasses"): {"get"},
        ("llmsafespace.dev", "sandboxes"): {"list", "watch"},
        ("llmsafespace.dev", "warmpools"): {"list", "watch"},
        ("llmsafespace.dev", "sandboxes/status"): {"patch"},
        ("llmsafespace.dev", "warmpools/status"): {"patch"},
        ("events.k8s.io", "events"): {"create"},
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            "one-llmsafespace-webhook",
        ): {"get", "patch"},
    },
    ("gateway", "agent-sandboxes"): PROFILES | GATEWAY_SANDBOXES,
    ("gateway", "warm-pools"): PROFILES | GATEWAY_POOLS,
    ("gateway", "system"): PROFILES,
    ("gateway", ""): {("llmsafespace.dev", "runtimeenvironments"): READ},
}


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def test_it_has_no_fault_that_helm_knows(helm: Helm) -> None:
    helm("lint", "--strict", str(CHART))
    helm("lint", "--strict", str(CHART), values=WITH_EVERYTHING)


@pytest.mark.parametrize(("values", "words"), WRONG)
def test_wrong_values_are_refused_in_words_that_help(helm: Helm, values: Object, words: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(**values)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "values", [{}, WITH_EVERYTHING, ODD], ids=["by default", "with everything", "with odd names"]
)
def test_the_api_server_takes_every_object(
    helm: Helm, kubectl: Kubectl, crds: None, namespaces: Namespaces, values: Object
) -> None:
    system = namespaces("chart")
    objects = [each for each in helm.render(namespace=system, **values) if each["kind"] != "ServiceMonitor"]
    for each in objects:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = system  # the others are not there yet
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    dry = ("--dry-run=server", "--validate=strict", "--namespace", system)
    made = kubectl("create", *dry, "--output", "name", "-f", "-", stdin=json.dumps(everything))
    assert len(made.split()) == len(objects)


def test_text_stays_text(helm: Helm) -> None:
    objects = helm.render("123", "123456", **ODD)
    assert {123, 0o123, 123456}.isdisjoint(_leaves(objects))
    images = [leaf for leaf in _leaves(objects) if str(leaf).endswith(":dev")]
    assert all(image.startswith("registry.example.com/team/llmsafespace-") for image in images), images
    [claim] = of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == ""
    [ingress] = of_kind(objects, "Ingress")
    assert (ingress["spec"]["rules"][0]["host"], ingress["spec"]["tls"][0]["hosts"]) == (
        "*.example.com",
        ["*.example.com"],
    )


def test_our_own_pods_run_where_they_are_told(helm: Helm) -> None:
    objects = helm.render(**WITH_EVERYTHING)
    for deployment in of_kind(objects, "Deployment"):
        template, selector = deployment["spec"]["template"], deployment["spec"]["selector"]["matchLabels"]
        spec, meta = template["spec"], template["metadata"]
        for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
            assert spec[name] == PLACEMENT[name]
        assert meta["annotations"]["example.com/scrape"] == "true"
        assert meta["labels"]["team"] == "platform"
        assert selector.items() <= meta["labels"].items()  # ours cannot be overwritten
        mine = "gateway" in deployment["metadata"]["name"]
        assert spec["topologySpreadConstraints"][0]["topologyKey"] == (
            "zone" if mine else "kubernetes.io/hostname"
        )
    [gateway] = [each for each in of_kind(objects, "Deployment") if "gateway" in each["metadata"]["name"]]
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 60
    [service] = [
        each for each in of_kind(objects, "Service") if each["metadata"]["name"] == "one-llmsafespace-gateway"
    ]
    assert service["metadata"]["annotations"] == {"example.com/balancer": "internal"}


def test_what_we_ask_for_by_default_fits_two_cores_beside_a_control_plane(helm: Helm) -> None:
    """A kind cluster's own pods ask for 950 milli-cores; then the pool, and one sandbox that is refilled."""
    objects = helm.render()
    own = sum(
        number(container["resources"]["requests"]["cpu"]) * each["spec"].get("replicas", 1)
        for each in of_kind(objects, "Deployment")
        for container in each["spec"]["template"]["spec"]["containers"]
    )
    warm = sum(
        number(pool["spec"]["resources"]["cpu"]) * pool["spec"]["minSize"]
        for pool in of_kind(objects, "WarmPool")
    )
    assert 0.95 + own + warm <= 2


def _leaves(tree: Any) -> Iterable[Any]:
    if isinstance(tree, dict | list):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(each)
    else:
        yield tree


def test_the_examples_are_valid(helm: Helm, kubectl: Kubectl, crds: None, namespaces: Namespaces) -> None:
    namespace = namespaces("examples")
    for path in EXAMPLES.glob("*.yaml"):
        for example in yaml.safe_load_all(path.read_text()):
            if path.name.startswith("values-"):
                helm("lint", "--strict", str(CHART), values=example)
            else:
                example["metadata"].pop("namespace", None)
                dry = ("--dry-run=server", "--validate=strict", "--namespace", namespace)
                kubectl("create", *dry, "-f", "-", stdin=json.dumps(example))


def rights(objects: Iterable[Object], account: str) -> dict[str, dict[tuple[str, ...], set[str]]]:
    """What the account of a component may do, by namespace ("" is everywhere)."""
    objects = list(objects)
    roles = {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each["rules"]
        for each in of_kind(objects, "Role", "ClusterRole")
    }
    found: dict[str, dict[tuple[str, ...], set[str]]] = {}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        if all(subject["name"] != f"one-llmsafespace-{account}" for subject in binding["subjects"]):
            continue
        namespace = binding["metadata"].get("namespace", "")
        role = binding["roleRef"]
        scope = namespace if role["kind"] == "Role" else ""
        place = found.setdefault(namespace, {})
        for rule in roles[role["kind"], scope, role["name"]]:
            for right, verbs in _of_rule(rule):
                place.setdefault(right, set()).update(verbs)
    return found


def _of_rule(rule: dict[str, Any]) -> Iterable[tuple[tuple[str, ...], set[str]]]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for name in rule.get("resourceNames", [""]):
                yield (group, resource, name) if name else (group, resource), set(rule["verbs"])


@pytest.mark.parametrize("account", ["operator", "gateway", "egress"])
def test_the_processes_may_do_what_they_need_and_nothing_else(helm: Helm, account: str) -> None:
    allowed = {namespace: may for (whose, namespace), may in MAY.items() if whose == account}
    assert rights(helm.render(), account) == allowed


def test_no_account_has_rights_but_gateway_and_operator(helm: Helm) -> None:
    for binding in of_kind(helm.render(), "RoleBinding", "ClusterRoleBinding"):
        names = [subject["name"] for subject in binding["subjects"]]
        assert names in (["one-llmsafespace-operator"], ["one-llmsafespace-gateway"]), binding["metadata"]


def test_its_own_pods_are_restricted_too(
    helm: Helm, kubectl: Kubectl, crds: None, namespaces: Namespaces
) -> None:
    system = namespaces("restricted")
    kubectl("label", "namespace", system, "pod-security.kubernetes.io/enforce=restricted")
    templates = [each["spec"]["template"] for each in of_kind(helm.render(), "Deployment", "Job")]
    assert len(templates) == 4
    for index, template in enumerate(templates):
        spec = {**template["spec"], "serviceAccountName": "default"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{index}"}, "spec": spec}
        kubectl("create", "--dry-run=server", "-n", system, "-f", "-", stdin=json.dumps(pod))
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]


def test_the_egress_proxy_gets_no_key_but_its_own(helm: Helm) -> None:
    (pod,) = [
        each["spec"]["template"]["spec"]
        for each in of_kind(helm.render(), "Deployment")
        if each["metadata"]["name"].endswith("-egress")
    ]
    secrets = [each["secret"] for each in pod["volumes"] if "secret" in each]
    assert [each["items"] for each in secrets] == [[{"key": "egress-key", "path": "egress-key"}]]
    assert pod["automountServiceAccountToken"] is False


def test_no_key_is_an_argument_or_in_a_config_map(helm: Helm) -> None:
    objects = helm.render(**WITH_EVERYTHING)
    for pod in (each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment")):
        for container in pod["containers"]:
            taken = [entry["value"] for entry in container.get("env", []) if "value" in entry]
            assert taken in ([], ["/tmp"])
    for each in of_kind(objects, "ConfigMap"):
        assert "lsp_" not in json.dumps(each)
        assert "postgresql" not in json.dumps(each)


def test_the_database_is_named_by_a_file_not_by_the_command_line(helm: Helm) -> None:
    """Whoever sees the node's processes, or a crash report with a command line, sees no password."""
    pods = [each["spec"]["template"]["spec"] for each in of_kind(helm.render(**WITH_EVERYTHING), *RUNNING)]
    for container in (each for pod in pods for each in pod["containers"]):
        entries = container.get("env", [])
        secret = [e["name"] for e in entries if "secretKeyRef" in e.get("valueFrom", {})]
        words = container["command"] + container.get("args", [])
        assert [word for word in words for name in secret if f"$({name})" in word] == []
        assert [word for word in words if word.startswith("--database-url=")] == []

    [gateway] = [each for each in pods if each["serviceAccountName"].endswith("-gateway")]
    [container] = gateway["containers"]
    assert "--database-url-file=/etc/llmsafespace/database/url" in container["args"]
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts["database"]["mountPath"] == "/etc/llmsafespace/database"
    assert mounts["database"]["readOnly"] is True
    volumes = {each["name"]: each for each in gateway["volumes"]}
    assert volumes["database"]["secret"] == {
        "secretName": "database",
        "defaultMode": 0o440,
        "items": [{"key": "url", "path": "url"}],
    }


def test_two_releases_share_no_object(helm: Helm) -> None:
    def names(release: str) -> set[tuple[str, str, str]]:
        made = helm.render(release, f"{release}-system", **own_values(release, 1))
        return {
            (each["kind"], each["metadata"].get("namespace", f"{release}-system"), each["metadata"]["name"])
            if each["kind"] not in CLUSTER_WIDE
            else (each["kind"], "", each["metadata"]["name"])
            for each in made
        }

    assert names("one").isdisjoint(names("two"))


CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "FlowSchema",
    "Namespace",
    "PriorityLevelConfiguration",
    "RuntimeEnvironment",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
}


def named_priorities(objects: list[Object]) -> list[str]:
    """The PriorityClasses that the operator gives to pods: of sandboxes, and warm ones."""
    data = [each.get("data", {}) for each in of_kind(objects, "ConfigMap")]
    [settings] = [json.loads(each["settings.json"]) for each in data if "settings.json" in each]
    return [settings["priorityClass"], settings["warmPriorityClass"]]


@pytest.mark.parametrize("value", [100, 200, 1_000_000_000])
def test_another_priority_is_another_class(helm: Helm, value: int) -> None:
    """Its value cannot be changed: an upgrade with another one would be refused."""
    objects = helm.render(sandboxes={"priorityClasses": {"sandboxes": value}})
    classes = {each["metadata"]["name"]: each["value"] for each in of_kind(objects, "PriorityClass")}
    assert classes == {f"one-llmsafespace-sandboxes-{value}": value, "one-llmsafespace-warm-0": 0}
    assert named_priorities(objects) == list(classes)


def test_without_priority_classes_none_is_named(helm: Helm) -> None:
    objects = helm.render(sandboxes={"priorityClasses": {"create": False}})
    assert not of_kind(objects, "PriorityClass")
    assert named_priorities(objects) == ["", ""]


def test_every_namespace_of_sandboxes_is_shut(helm: Helm) -> None:
    objects = helm.render(**WITH_EVERYTHING)
    served = {each["metadata"]["name"]: each["metadata"]["labels"] for each in of_kind(objects, "Namespace")}
    assert set(served) == {"agent-sandboxes", "team-a", "team-b", "team-pools", "warm-pools"}
    denied = {
        each["metadata"]["namespace"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    assert denied == set(served)
    for each in of_kind(objects, "Namespace", "NetworkPolicy"):
        if each["metadata"].get("namespace", each["metadata"]["name"]) in served:
            assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", each["metadata"]
    for labels in served.values():
        assert labels["llmsafespace.dev/sandboxes"] == "true"
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_sandbox_reaches_the_release_whether_its_namespace_is_served_or_no_more(helm: Helm) -> None:
    served = ["agent-sandboxes", "team-a", "team-b", "team-pools", "warm-pools"]
    others = [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": served},
        {"key": "llmsafespace.dev/sandboxes", "operator": "DoesNotExist"},
    ]
    policies = of_kind(helm.render(**WITH_EVERYTHING), "NetworkPolicy")
    rules = [rule for policy in policies for rule in policy["spec"].get("ingress", [])]
    peers = [peer for rule in rules for peer in rule.get("from", [])]
    wide = [peer["namespaceSelector"] for peer in peers if set(peer) == {"namespaceSelector"}]
    assert wide == [{"matchExpressions": others}] * 3  # gateway, operator, egress proxy
