"""Labels, finalizers and ids that gateway and operator agree on."""

from __future__ import annotations

import re
import uuid

GROUP = "llmsafespace.dev"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

AGENT_PORT = 8443  # TLS, with mutual proof (llmsafespace_protocol.proof)
READY_PORT = 8444  # accepts connections once a kernel is parked and the network is shut; says nothing

# Of pods (and of what belongs to them), warm and cold alike.
COMPONENT = f"{GROUP}/component"
SANDBOX_COMPONENT = "sandbox"
POOL = f"{GROUP}/pool"
PROFILE = f"{GROUP}/profile"  # `name` of the SandboxProfile, or the security level where there is none
SANDBOX_ID = f"{GROUP}/sandbox-id"

# Of Sandboxes: the tenant and why a start is cold, as the gateway found.
TENANT = f"{GROUP}/tenant"
COLD_REASON = f"{GROUP}/cold-reason"

# Of a Sandbox whose lifetime was shortened: when it ends at the latest (RFC 3339).
ENDS_AT = f"{GROUP}/ends-at"

# Of WarmPools that were made through a gateway: what it calls them. TENANT says whose they are.
POOL_NAME = f"{GROUP}/pool-name"

# The original's labels of WarmPods, beside ours.
WARMPOD_LABELS = {"app": "llmsafespace", "component": "warmpod"}

SANDBOX_FINALIZER = f"{GROUP}/pod"
WARMPOOL_FINALIZER = f"{GROUP}/warm-pods"

# Why a Sandbox, or a WarmPod, does not start: no node has room for its pod, or may run it.
UNSCHEDULABLE = "Unschedulable"

# Why a SandboxProfile is not Ready, where no pod can be made with it.
NO_RUNTIME_CLASS = "RuntimeClassNotFound"

# A namespace whose pods are sandboxes: the admission policies hold there.
NAMESPACE_LABEL = f"{GROUP}/sandboxes"

_OURS = re.compile(r"sb-[0-9a-f]{20}")
_CONTEXTS = uuid.UUID("6ba1a1e0-0f0e-5a52-9d0a-8d9ad6a2f3c1")


def made_by_gateway(name: str) -> bool:
    """True for the names of Sandboxes that a gateway makes and binds; admission keeps them for gateways."""
    return _OURS.fullmatch(name) is not None


def sandbox_id(name: str, uid: str) -> str:
    """The public id of a Sandbox: its name when a gateway made it, otherwise derived from its uid."""
    return name if made_by_gateway(name) else f"sb-{uid.replace('-', '')[:20]}"


def agent_secret(uid: str) -> str:
    """The Secret of the agent whose pod belongs to the object with this uid: a name that nobody else has."""
    return f"agent-{uid}"


def context_id(uid: str) -> str:
    """The default context (Jupyter kernel id) of a Sandbox that the operator binds."""
    return str(uuid.uuid5(_CONTEXTS, uid))
