"""A volume for the gateway, on clusters that make none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.support import Kubectl


@contextmanager
def volume(kubectl: Kubectl, namespace: str, image: str) -> Iterator[str]:
    """A storage class with one volume: a folder of a node that the gateway's user may write."""
    name = namespace
    node = on_node(kubectl, namespace, "", image, f"install -d -m 777 /node/{name}")
    hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "storageClassName": name,
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": f"/var/tmp/{name}"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
            },
        }
    )
    try:
        yield name
    finally:
        on_node(kubectl, namespace, node, image, f"rm -rf /node/{name}")
        kubectl("delete", "persistentvolume", name, "--wait=false")


def on_node(kubectl: Kubectl, namespace: str, node: str, image: str, command: str) -> str:
    """Run a command as root with a node's /var/tmp at /node; the node, which "" leaves to the scheduler."""
    container = {
        "name": "main",
        "image": image,
        "command": ["sh", "-c", command],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "on-node", "namespace": namespace},
            "spec": {
                **({"nodeName": node} if node else {}),
                "restartPolicy": "Never",
                "containers": [container],
                "volumes": [{"name": "node", "hostPath": {"path": "/var/tmp"}}],
            },
        }
    )
    succeeded = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "pod", "on-node", "--namespace", namespace, succeeded, "--timeout", "60s")
    ran_on: str = kubectl.json("get", "pod", "on-node", "--namespace", namespace)["spec"]["nodeName"]
    kubectl("delete", "pod", "on-node", "--namespace", namespace)
    return ran_on
