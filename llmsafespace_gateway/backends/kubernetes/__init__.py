"""Sandboxes as pods of a Kubernetes cluster. Needs the extra `kubernetes`."""

from llmsafespace_gateway.backends.kubernetes.backend import KubernetesBackend
from llmsafespace_kube.api.metrics import REQUEST_DURATION, REQUESTS

METRICS = (REQUESTS, REQUEST_DURATION)

__all__ = ["METRICS", "KubernetesBackend"]
