"""The cluster and what the other tests of this folder rely on."""

from __future__ import annotations

import pytest

from tests.cluster.support import Kubectl, KubectlError, Namespaces

SANDBOX = """
apiVersion: llmsafespace.dev/v1
kind: Sandbox
metadata: {name: held, finalizers: [llmsafespace.dev/pod]}
spec: {runtime: "python:3.11"}
"""


def test_kubectl_says_what_was_wrong(kubectl: Kubectl) -> None:
    with pytest.raises(KubectlError, match="not found"):
        kubectl("get", "namespace", "no-such-namespace")


def test_a_namespace_goes_with_what_nobody_releases(kubectl: Kubectl, crds: None) -> None:
    namespaces = Namespaces(kubectl)
    name = namespaces("held", sandboxes=True)
    kubectl.apply(SANDBOX, namespace=name)
    namespaces.remove_all()
    assert kubectl("get", "namespace", "--ignore-not-found", name) == ""
