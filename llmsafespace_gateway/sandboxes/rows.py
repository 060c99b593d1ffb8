"""The records of a new sandbox: pure functions of who asked for what and of what was got."""

from __future__ import annotations

import hashlib
import secrets
import time

import msgspec

from llmsafespace_gateway.backends.base import Claim
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow


def request_digest(request: CreateSandbox) -> str:
    """Two wishes under one Idempotency-Key must have the same."""
    if request.digest is not None:
        return request.digest
    wish = msgspec.structs.asdict(request)
    del wish["digest"]
    if wish["warm_pool"] is None:  # as gateways say it that know no such field and share the store
        del wish["warm_pool"]
    return hashlib.sha256(msgspec.msgpack.encode(wish, order="sorted")).hexdigest()


def sandbox_row(owner: Owner, request: CreateSandbox, claim: Claim, backend: str) -> SandboxRow:
    """The record of a sandbox that runs."""
    return SandboxRow(
        id=claim.sandbox_id,
        tenant=owner.tenant,
        owner=owner.user_id,
        backend=backend,
        runtime=claim.runtime,
        requested_runtime=request.runtime,
        security_level=request.security_level,
        state="running",
        start_kind=claim.start.kind,
        start_reason=claim.start.reason,
        start_pool=claim.start.pool,
        start_pool_owner=claim.start.pool_owner,
        warnings=claim.start.warnings,
        created_at=time.time(),
        cpu=request.resources.cpu,
        memory=request.resources.memory,
        storage=request.resources.storage,
        timeout=request.timeout,
        idle_timeout=request.idle_timeout,
        max_lifetime=request.max_lifetime,
        metadata=request.metadata,
        isolation=claim.isolation,
        egress=[msgspec.to_builtins(rule) for rule in request.egress],
        idempotency_key=request.idempotency_key,
        request_digest=request_digest(request) if request.idempotency_key is not None else None,
        setup_command=f"setup-{secrets.token_hex(6)}" if request.packages else None,
    )


def kernel_row(request: CreateSandbox, claim: Claim, context_id: str) -> KernelRow:
    """The record of its default kernel."""
    now = time.time()
    return KernelRow(
        id=context_id,
        sandbox_id=claim.sandbox_id,
        name=request.kernel_name or request.language or claim.languages[0],
        language=request.language or claim.languages[0],
        created_at=now,
        last_activity=now,
        execution_state="starting",
        connections=0,
        is_default=True,
        path=request.path,
    )
