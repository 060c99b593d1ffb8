"""The core tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of access, sandboxes and audit."""
    _access_tables()
    _sandbox_tables()
    _shared_tables()


def downgrade() -> None:
    """Drop them."""
    for table in (
        "audit",
        "warm_pools",
        "grants",
        "sessions",
        "kernels",
        "sandboxes",
        "api_keys",
        "users",
        "tenants",
    ):
        op.drop_table(table)


def _access_tables() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("quota", sa.JSON, nullable=False),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(128), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.UniqueConstraint("tenant", "name", name="uq_users_tenant_name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(64), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53)),
        sa.Column("revoked_at", sa.Float(53)),
        sa.Column("last_used_at", sa.Float(53)),
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])
    op.create_index("ix_api_keys_revoked_at", "api_keys", ["revoked_at"])


def _sandbox_tables() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("backend", sa.String(32), nullable=False),
        sa.Column("runtime", sa.String(128), nullable=False),
        sa.Column("requested_runtime", sa.String(128), nullable=False),
        sa.Column("security_level", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("start_kind", sa.String(16), nullable=False),
        sa.Column("start_reason", sa.Text, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53)),
        sa.Column("end", sa.String(32)),
        sa.Column("end_message", sa.Text),
        sa.Column("cpu", sa.Float(53), nullable=False),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("storage", sa.BigInteger, nullable=False),
        sa.Column("timeout", sa.Float(53)),
        sa.Column("idle_timeout", sa.Float(53)),
        sa.Column("max_lifetime", sa.Float(53), nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("isolation", sa.JSON, nullable=False),
        sa.Column("egress", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(256)),
        sa.Column("request_digest", sa.String(64)),
        sa.Column("setup_command", sa.String(64)),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_sandboxes_owner_idempotency_key"),
    )
    op.create_index("ix_sandboxes_tenant_created_at", "sandboxes", ["tenant", "created_at"])
    op.create_index("ix_sandboxes_state_backend", "sandboxes", ["state", "backend"])
    op.create_table(
        "kernels",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column(
            "sandbox_id", sa.String(64), sa.ForeignKey("sandboxes.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("language", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("last_activity", sa.Float(53), nullable=False),
        sa.Column("execution_state", sa.String(32), nullable=False),
        sa.Column("connections", sa.Integer, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
    )
    op.create_index("ix_kernels_sandbox_id", "kernels", ["sandbox_id"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column(
            "kernel_id", sa.String(128), sa.ForeignKey("kernels.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
    )
    op.create_index("ix_sessions_kernel_id", "sessions", ["kernel_id"])
    op.create_index("ix_sessions_tenant_owner", "sessions", ["tenant", "owner"])


def _shared_tables() -> None:
    op.create_table(
        "grants",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "sandbox_id", sa.String(64), sa.ForeignKey("sandboxes.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("user_id", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.UniqueConstraint("sandbox_id", "user_id", name="uq_grants_sandbox_id_user_id"),
    )
    op.create_index("ix_grants_user_id", "grants", ["user_id"])
    op.create_table(
        "warm_pools",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128)),
        sa.Column("spec", sa.JSON, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("user_id", sa.String(64)),
        sa.Column("tenant", sa.String(128)),
        sa.Column("key_id", sa.String(32)),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(256), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_audit_tenant_id", "audit", ["tenant", "id"])
