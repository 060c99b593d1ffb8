"""The tables as the newest migration leaves them. Column names are the field names of `rows`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0003"  # the newest migration: a store that has it needs no migration run

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("quota", JSON, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Float(53), nullable=False),
    UniqueConstraint("tenant", "name", name="uq_users_tenant_name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53)),
    Column("revoked_at", Float(53), index=True),
    Column("last_used_at", Float(53)),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("backend", String(32), nullable=False),
    Column("runtime", String(128), nullable=False),
    Column("requested_runtime", String(128), nullable=False),
    Column("security_level", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("start_kind", String(16), nullable=False),
    Column("start_reason", Text, nullable=False),
    Column("start_pool", String(64)),
    Column("start_pool_owner", String(64)),
    Column("warnings", JSON, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("ended_at", Float(53)),
    Column("end", String(32)),
    Column("end_message", Text),
    Column("cpu", Float(53), nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("storage", BigInteger, nullable=False),
    Column("timeout", Float(53)),
    Column("idle_timeout", Float(53)),
    Column("max_lifetime", Float(53), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("isolation", JSON, nullable=False),
    Column("egress", JSON, nullable=False),
    Column("idempotency_key", String(256)),
    Column("request_digest", String(64)),
    Column("setup_command", String(64)),
    UniqueConstraint("owner", "idempotency_key", name="uq_sandboxes_owner_idempotency_key"),
    Index("ix_sandboxes_tenant_created_at", "tenant", "created_at"),
    Index("ix_sandboxes_state_backend", "state", "backend"),
)

kernels = Table(
    "kernels",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("sandbox_id", ForeignKey("sandboxes.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("language", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("last_activity", Float(53), nullable=False),
    Column("execution_state", String(32), nullable=False),
    Column("connections", Integer, nullable=False),
    Column("is_default", Boolean, nullable=False),
    Column("path", Text, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("kernel_id", ForeignKey("kernels.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("owner", String(64), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("path", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("type", String(64), nullable=False),
    Index("ix_sessions_tenant_owner", "tenant", "owner"),
)

grants = Table(
    "grants",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sandbox_id", ForeignKey("sandboxes.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("level", String(16), nullable=False),
    UniqueConstraint("sandbox_id", "user_id", name="uq_grants_sandbox_id_user_id"),
)

warm_pools = Table(
    "warm_pools",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("owner", String(64)),
    Column("published", Boolean, nullable=False),
    Column("spec", JSON, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("user_id", String(64)),
    Column("tenant", String(128)),
    Column("key_id", String(32)),
    Column("action", String(64), nullable=False),
    Column("target", String(256), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("details", JSON, nullable=False),
    Column("execution", String(32)),
    Index("ix_audit_tenant_id", "tenant", "id"),
    Index("ix_audit_execution", "execution", unique=True),
)
