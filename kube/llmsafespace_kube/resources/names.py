"""Labels, annotations, finalizers, ports and ids that gateway and operator share."""

from __future__ import annotations

import re
import uuid

GROUP = "llmsafespace.dev"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

AGENT_PORT = 8443  # TLS, with mutual proof (llmsafespace_protocol.proof)
READY_PORT = 8444  # accepts connections once a kernel is parked and the network is closed; sends no data

# Labels of pods and of their Secrets, for warm and cold starts.
COMPONENT = f"{GROUP}/component"
SANDBOX_COMPONENT = "sandbox"
POOL = f"{GROUP}/pool"
PROFILE = f"{GROUP}/profile"  # `name` of the SandboxProfile, or the security level if there is none
SANDBOX_ID = f"{GROUP}/sandbox-id"

# Annotations of Sandboxes, set by the gateway: the tenant, and why a start is cold.
TENANT = f"{GROUP}/tenant"
COLD_REASON = f"{GROUP}/cold-reason"

# Annotation of a Sandbox whose lifetime was shortened: its latest end (RFC 3339).
ENDS_AT = f"{GROUP}/ends-at"

# Annotation of WarmPools that a gateway created: their name in its API. TENANT names the tenant.
POOL_NAME = f"{GROUP}/pool-name"

# Labels of WarmPods in addition to ours, for compatibility with the original project.
WARMPOD_LABELS = {"app": "llmsafespace", "component": "warmpod"}

SANDBOX_FINALIZER = f"{GROUP}/pod"
WARMPOOL_FINALIZER = f"{GROUP}/warm-pods"

# Condition reason of a Sandbox or WarmPool: no node has room for the pod, or is allowed to run it.
UNSCHEDULABLE = "Unschedulable"

# Condition reason of a SandboxProfile whose RuntimeClass does not exist.
NO_RUNTIME_CLASS = "RuntimeClassNotFound"

# Label of a namespace whose pods are sandboxes: the admission policies apply there.
NAMESPACE_LABEL = f"{GROUP}/sandboxes"

_OURS = re.compile(r"sb-[0-9a-f]{20}")
_CONTEXTS = uuid.UUID("6ba1a1e0-0f0e-5a52-9d0a-8d9ad6a2f3c1")


def made_by_gateway(name: str) -> bool:
    """Whether a Sandbox of this name was created by a gateway, which also binds it.

    Admission allows such names to gateways only.
    """
    return _OURS.fullmatch(name) is not None


def sandbox_id(name: str, uid: str) -> str:
    """Return the public id of a Sandbox: its name if a gateway created it, otherwise derived from its uid."""
    return name if made_by_gateway(name) else f"sb-{uid.replace('-', '')[:20]}"


def agent_secret(uid: str) -> str:
    """Return the name of the Secret of the agent whose pod belongs to the object with this uid."""
    return f"agent-{uid}"


def context_id(uid: str) -> str:
    """Return the id of the default context (Jupyter kernel id) of a Sandbox that the operator binds."""
    return str(uuid.uuid5(_CONTEXTS, uid))
