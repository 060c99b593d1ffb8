"""The bind request for a Sandbox that no gateway created: the same as a gateway's, with default values."""

from __future__ import annotations

from llmsafespace_kube.claims.egress_token import sign
from llmsafespace_kube.claims.grants import egress_grant, limits_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.types import Sandbox, SandboxProfile
from llmsafespace_protocol.requests import BindRequest


def bind_request(
    egress_key: bytes | None, sandbox: Sandbox, profile: SandboxProfile | None, address: str, born: float
) -> BindRequest:
    """Return the bind request. It is the same for every try, so that it can be repeated after a lost answer.

    `born` (seconds since the epoch) is the time of the claim or the pod's creation, which never changes.
    Without `egress_key` the sandbox reaches no network. Raises ValueError if there are too many egress rules.
    """
    meta = sandbox.metadata
    public = names.sandbox_id(meta.name, meta.uid)
    grant = egress_grant(public, address, sandbox.spec, profile, born)
    return BindRequest(
        claim_id=public,
        sandbox_id=public,
        context_id=names.context_id(meta.uid),
        limits=limits_of(sandbox.spec),
        egress_token=sign(egress_key, grant) if egress_key is not None else None,
    )
