"""An audit entry names its execution, so that each execution has one entry."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Entries that were there name none."""
    op.add_column("audit", sa.Column("execution", sa.String(32)))
    op.create_index("ix_audit_execution", "audit", ["execution"], unique=True)


def downgrade() -> None:
    """The entries stay."""
    op.drop_index("ix_audit_execution", "audit")
    op.drop_column("audit", "execution")
