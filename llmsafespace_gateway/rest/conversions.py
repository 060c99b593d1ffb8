"""Between the API's bodies and what the rest of the gateway works with. Pure functions."""

from __future__ import annotations

import base64
import binascii
import re
import time
from functools import cache
from typing import Any
from zoneinfo import available_timezones

import msgspec

from llmsafespace_gateway.rest.routing import PREFIX
from llmsafespace_gateway.rest.types import (
    EgressRuleAnswer,
    EgressRuleBody,
    Endpoints,
    FileAnswer,
    FileContent,
    NetworkAccessAnswer,
    NetworkAccessBody,
    PortBody,
    ResourcesAnswer,
    ResourcesBody,
    SandboxAnswer,
    SandboxCreate,
    StartAnswer,
    UsageAnswer,
)
from llmsafespace_gateway.rest.types_admin import (
    AutoScaling,
    ConditionAnswer,
    PreloadScript,
    WarmPoolAnswer,
    WarmPoolCreate,
    WarmPoolPatch,
    WarmPoolStatusAnswer,
)
from llmsafespace_gateway.rest.types_processes import CommandAnswer
from llmsafespace_gateway.rest.validation import decode, invalid
from llmsafespace_gateway.services.pool_rules import check
from llmsafespace_gateway.services.pool_rules import check_package as check_package
from llmsafespace_gateway.services.types import (
    CreateSandbox,
    EgressRule,
    Resources,
    SandboxRow,
    WarmPoolSpec,
    WarmPoolStatus,
    check_request,
    moment,
    request_digest,
)
from llmsafespace_protocol import quantities
from llmsafespace_protocol.requests import CommandInfo, FileInfo, Usage

WORKSPACE = "/workspace"
MAX_FILES = 16 * 1024 * 1024
DEFAULT_LIFETIME = 86400.0
_POOL_DEFAULTS = Resources(cpu=1.0, memory=1024**3)
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")


def resources(body: ResourcesBody | None, defaults: Resources | None = None) -> Resources:
    """Limits in cores and bytes; what is absent is as `defaults`. Raises ApiError(invalid_request)."""
    known = defaults or Resources()
    if body is None:
        return known
    parsed: dict[str, float] = {}
    for name, field, parse, quantity in (
        ("cpu", "cpu", quantities.cores, body.cpu),
        ("memory", "memory", quantities.size, body.memory),
        ("storage", "ephemeralStorage", quantities.size, body.ephemeral_storage),
    ):
        if quantity is not None:
            try:
                parsed[name] = parse(quantity)
            except ValueError as error:
                raise invalid(f"body.resources.{field}", str(error)) from error
    return msgspec.structs.replace(known, **parsed)


def resources_answer(cpu: float, memory: int, storage: int) -> ResourcesAnswer:
    """Limits as quantities."""
    return ResourcesAnswer(
        cpu=quantities.format_cores(cpu),
        memory=quantities.format_size(memory),
        ephemeral_storage=quantities.format_size(storage),
    )


def usage_answer(row: SandboxRow, usage: Usage | None) -> UsageAnswer:
    """What a sandbox uses; None: nothing any more."""
    limits = resources_answer(row.cpu, row.memory, row.storage)
    if usage is None:
        return UsageAnswer(cpu_seconds=0.0, memory_bytes=0, disk_bytes=0, processes=0, limits=limits)
    return UsageAnswer(
        cpu_seconds=usage.cpu_seconds,
        memory_bytes=usage.memory_bytes,
        disk_bytes=usage.disk_bytes,
        processes=usage.processes,
        limits=limits,
    )


def egress(body: NetworkAccessBody | None) -> tuple[EgressRule, ...]:
    """Egress rules. Raises ApiError(invalid_request)."""
    if body is None:
        return ()
    if body.ingress:
        raise invalid("body.networkAccess.ingress", "expected false: nothing can reach into a sandbox")
    return tuple(_rule(rule, f"body.networkAccess.egress[{i}]") for i, rule in enumerate(body.egress))


def _rule(rule: EgressRuleBody, field: str) -> EgressRule:
    if len(rule.domain) > 253 or _DOMAIN.fullmatch(rule.domain) is None:
        raise invalid(f"{field}.domain", f"expected a domain as example.org, got {rule.domain[:60]!r}")
    ports = [port.port if isinstance(port, PortBody) else port for port in rule.ports]
    return EgressRule(rule.domain.rstrip(".").lower(), tuple(dict.fromkeys(ports)))


def workspace_path(path: str, field: str) -> str:
    """An absolute path beneath the workspace; relative ones begin there. Raises ApiError(invalid_request)."""
    absolute = path if path.startswith("/") else f"{WORKSPACE}/{path}"
    parts = [part for part in absolute.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid(field, "expected a path without `..`")
    if not parts or f"/{parts[0]}" != WORKSPACE:
        raise invalid(field, f"expected a path beneath {WORKSPACE}, got {path[:100]!r}")
    return "/" + "/".join(parts)


def working_directory(path: str | None) -> str | None:
    """Where to work: a relative path is beneath the workspace."""
    return path if path is None or path.startswith("/") else f"{WORKSPACE}/{path}"


def url_path(path: str) -> str:
    """The file that a URL's path names: beneath the workspace, which may be named as its first folder."""
    first = path.split("/", 1)[0]
    return workspace_path(f"/{path}" if first == WORKSPACE[1:] else path, "path")


def contents(files: dict[str, str | FileContent]) -> dict[str, bytes]:
    """Files to write, by absolute path. Raises ApiError(invalid_request)."""
    found: dict[str, bytes] = {}
    for path, content in files.items():
        field = f"body.files[{path[:60]!r}]"
        absolute = workspace_path(path, field)
        if absolute == WORKSPACE or absolute in found:
            raise invalid(
                field, "expected a file, got a folder" if absolute == WORKSPACE else "is given twice"
            )
        found[absolute] = _content(content, field)
    if sum(map(len, found.values())) > MAX_FILES:
        raise invalid("body.files", f"expected at most {MAX_FILES} bytes; upload larger files afterwards")
    return found


def _content(content: str | FileContent, field: str) -> bytes:
    if isinstance(content, str):
        return content.encode()
    if content.encoding == "utf-8":
        return content.content.encode()
    try:
        return base64.b64decode(content.content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{field}.content", f"expected base64: {error}") from error


@cache
def timezones() -> frozenset[str]:
    """Every time zone that this machine knows. The first call reads hundreds of files: not on the loop."""
    return frozenset(available_timezones())


def create_request(
    body: SandboxCreate, idempotency_key: str | None, default_runtime: str = "python"
) -> CreateSandbox:
    """A validated request for a sandbox. Raises ApiError(invalid_request)."""
    if body.timezone is not None and body.timezone not in timezones():
        raise invalid("body.timezone", f"expected a name as Europe/Paris, got {body.timezone!r}")
    if body.warm_pool is not None and not body.use_warm_pool:
        raise invalid("body.warmPool", "cannot be combined with useWarmPool: false")
    request = CreateSandbox(
        runtime=body.runtime or default_runtime,
        security_level=body.security_level,
        timeout=body.timeout,
        resources=resources(body.resources),
        egress=egress(body.network_access),
        use_warm_pool=body.use_warm_pool,
        warm_pool=body.warm_pool,
        env=body.env,
        files=contents(body.files),
        packages=tuple(body.packages),
        cwd=working_directory(body.cwd),
        timezone=body.timezone,
        metadata=body.metadata,
        idle_timeout=body.idle_timeout,
        max_lifetime=body.max_lifetime or DEFAULT_LIFETIME,
        language=body.language,
        idempotency_key=idempotency_key,
    )
    check_request(request, "body.")
    if idempotency_key is None:
        return request
    return msgspec.structs.replace(request, digest=request_digest(request))


def sandbox_answer(row: SandboxRow, kernel_id: str | None) -> SandboxAnswer:
    """A sandbox as the API shows it; `kernel_id` is its default context."""
    base = f"{PREFIX}/sandboxes/{row.id}"
    return SandboxAnswer(
        id=row.id,
        runtime=row.runtime,
        requested_runtime=row.requested_runtime,
        status=row.state,  # type: ignore[arg-type]  # the store's words are these
        security_level=row.security_level,
        created_at=moment(row.created_at),
        ended_at=moment(row.ended_at) if row.ended_at is not None else None,
        end=row.end,
        end_message=row.end_message,
        start=StartAnswer(
            kind=row.start_kind,
            reason=row.start_reason,
            pool=row.start_pool,
            pool_owner=row.start_pool_owner,
        ),
        warnings=list(row.warnings),
        resources=resources_answer(row.cpu, row.memory, row.storage),
        network_access=NetworkAccessAnswer(
            egress=[
                EgressRuleAnswer(domain=rule["domain"], ports=list(rule.get("ports", ())))
                for rule in row.egress
            ]
        ),
        timeout=row.timeout,
        idle_timeout=row.idle_timeout,
        max_lifetime=row.max_lifetime,
        expires_at=moment(row.created_at + row.max_lifetime) if row.state != "ended" else None,
        metadata=row.metadata,
        owner=row.owner,
        tenant=row.tenant,
        kernel_id=kernel_id,
        setup_command=row.setup_command,
        isolation=row.isolation,
        endpoints=Endpoints(
            execute=f"{base}/execute",
            files=f"{base}/files",
            websocket=f"{base}/stream",
            kernel=f"/api/kernels/{kernel_id}" if kernel_id is not None else None,
        ),
    )


def uptime(row: SandboxRow) -> float:
    """How long a sandbox has lived, or did live."""
    return max(0.0, (row.ended_at or time.time()) - row.created_at)


def file_answer(info: FileInfo) -> FileAnswer:
    """A file as the API shows it."""
    return FileAnswer(
        path=info.path,
        size=info.size,
        created_at=moment(info.created_at),
        modified_at=moment(info.modified_at),
        is_directory=info.is_directory,
        etag=info.etag,
        mode=info.mode,
    )


def command_answer(info: CommandInfo) -> CommandAnswer:
    """A command without its output."""
    return CommandAnswer(
        id=info.id,
        command=info.command,
        pid=info.pid,
        running=info.running,
        started_at=moment(info.started_at),
        completed_at=moment(info.completed_at) if info.completed_at is not None else None,
        exit_code=info.exit_code,
        end=info.end,
    )


def pool_spec(pool: dict[str, Any]) -> WarmPoolSpec:
    """A pool of the configuration, in the shape of POST /warmpools, that serves all tenants.

    Raises ApiError(invalid_request), naming the field.
    """
    spec = pool_request(decode(msgspec.json.encode(pool), WarmPoolCreate))
    check(spec)
    return spec


def pool_request(body: WarmPoolCreate) -> WarmPoolSpec:
    """The pool that a request asks for, nobody's yet. Raises ApiError(invalid_request)."""
    scaling = body.auto_scaling or AutoScaling()
    return WarmPoolSpec(
        name=body.name,
        runtime=body.runtime,
        min_size=body.min_size,
        max_size=body.max_size,
        security_level=body.security_level,
        resources=resources(body.resources, _POOL_DEFAULTS),
        preload_packages=tuple(body.preload_packages),
        preload_scripts=_scripts(body.preload_scripts),
        ttl=body.ttl,
        published=body.published,
        **_scaling(scaling),
    )


def pool_changes(body: WarmPoolPatch) -> dict[str, Any]:
    """The fields of a pool that a request changes."""
    changes = sent(body, "min_size", "max_size", "ttl", "published")
    if isinstance(body.preload_packages, list):
        changes["preload_packages"] = tuple(body.preload_packages)
    if isinstance(body.preload_scripts, list):
        changes["preload_scripts"] = _scripts(body.preload_scripts)
    if isinstance(body.auto_scaling, AutoScaling):
        changes |= _scaling(body.auto_scaling)
    return changes


def sent(body: msgspec.Struct, *fields: str) -> dict[str, Any]:
    """Those of the fields that a PATCH has."""
    return {name: value for name in fields if (value := getattr(body, name)) is not msgspec.UNSET}


def _scaling(scaling: AutoScaling) -> dict[str, Any]:
    return {
        "auto_scaling": scaling.enabled,
        "target_utilization": scaling.target_utilization,
        "scale_down_delay": scaling.scale_down_delay,
    }


def _scripts(scripts: list[PreloadScript]) -> tuple[tuple[str, str], ...]:
    return tuple((script.name, script.content) for script in scripts)


def pool_status(status: WarmPoolStatus) -> WarmPoolStatusAnswer:
    """How a pool stands, as the API shows it."""
    return WarmPoolStatusAnswer(
        available_pods=status.available,
        assigned_pods=status.assigned,
        pending_pods=status.pending,
        last_scale_time=moment(status.last_scale_time) if status.last_scale_time is not None else None,
        conditions=[
            ConditionAnswer(
                type=condition.type,
                status=condition.status,
                reason=condition.reason,
                message=condition.message,
                last_transition_time=moment(condition.last_transition_time),
            )
            for condition in status.conditions
        ],
    )


def pool_answer(spec: WarmPoolSpec, status: WarmPoolStatus) -> WarmPoolAnswer:
    """A warm pool as the API shows it."""
    return WarmPoolAnswer(
        name=spec.name,
        runtime=spec.runtime,
        min_size=spec.min_size,
        max_size=spec.max_size,
        security_level=spec.security_level,
        ttl=spec.ttl,
        resources=resources_answer(spec.resources.cpu, spec.resources.memory, spec.resources.storage),
        preload_packages=list(spec.preload_packages),
        preload_scripts=[PreloadScript(name=name, content=text) for name, text in spec.preload_scripts],
        auto_scaling=AutoScaling(
            enabled=spec.auto_scaling,
            target_utilization=spec.target_utilization,
            scale_down_delay=spec.scale_down_delay,
        ),
        tenant=spec.tenant,
        owner=spec.owner,
        published=spec.trusted,
        status=pool_status(status),
    )
