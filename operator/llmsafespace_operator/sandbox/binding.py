"""How the operator binds a Sandbox that no gateway made: as a gateway would, with nothing but defaults."""

from __future__ import annotations

from llmsafespace_kube.claims.egress_token import sign
from llmsafespace_kube.claims.grants import egress_grant, limits_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.types import Sandbox, SandboxProfile
from llmsafespace_protocol.requests import BindRequest


def bind_request(
    egress_key: bytes | None, sandbox: Sandbox, profile: SandboxProfile | None, address: str, born: float
) -> BindRequest:
    """The same for every attempt, so that a bind whose answer was lost may be sent again.

    `born` (seconds since the epoch) is a time that stays: of the claim, or of the pod. Without a key nothing
    gets out. Raises ValueError when the egress rules are too many.
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
