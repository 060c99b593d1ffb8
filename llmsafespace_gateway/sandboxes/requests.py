"""What the life of a sandbox begins with."""

from __future__ import annotations

import msgspec

from llmsafespace_gateway.backends.base import EgressRule, Resources


class Owner(msgspec.Struct, frozen=True):
    """Whose a sandbox is: a user's id and a tenant's."""

    user_id: str
    tenant: str


class CreateSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A validated wish for a sandbox. Durations are seconds; `files` maps absolute paths to contents.

    `idempotency_key` (or a client-made `kernel_id`) makes a repeated wish by the same owner one sandbox.
    """

    runtime: str
    security_level: str = "standard"
    timeout: float | None = 300.0
    resources: Resources = Resources()
    egress: tuple[EgressRule, ...] = ()
    use_warm_pool: bool = True
    warm_pool: str | None = None
    env: dict[str, str] = {}
    files: dict[str, bytes] = {}
    packages: tuple[str, ...] = ()
    cwd: str | None = None
    timezone: str | None = None
    metadata: dict[str, str] = {}
    idle_timeout: float | None = 600.0
    max_lifetime: float = 86400.0
    language: str | None = None  # of the default kernel; None is the runtime's own
    kernel_name: str | None = None  # the kernelspec asked for by a Jupyter client
    kernel_id: str | None = None
    path: str = ""
    idempotency_key: str | None = None
    digest: str | None = None  # of rows.request_digest, where it was made already
