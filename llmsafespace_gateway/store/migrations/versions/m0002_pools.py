"""Warm pools have owners, may be published, and are named per tenant; sandboxes say their pool."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Pools that were there keep their tenant; nobody owns them, so that only admins change them."""
    op.create_table(
        "warm_pools_new",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64)),
        sa.Column("published", sa.Boolean, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
    )
    op.execute(
        "INSERT INTO warm_pools_new (tenant, name, published, spec) "
        "SELECT COALESCE(tenant, ''), name, false, spec FROM warm_pools"
    )
    op.drop_table("warm_pools")
    op.rename_table("warm_pools_new", "warm_pools")
    op.add_column("sandboxes", sa.Column("start_pool", sa.String(64)))
    op.add_column("sandboxes", sa.Column("start_pool_owner", sa.String(64)))


def downgrade() -> None:
    """Of two pools with one name, the first tenant's stays."""
    op.drop_column("sandboxes", "start_pool_owner")
    op.drop_column("sandboxes", "start_pool")
    op.create_table(
        "warm_pools_old",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128)),
        sa.Column("spec", sa.JSON, nullable=False),
    )
    op.execute(
        "INSERT INTO warm_pools_old (name, tenant, spec) "
        "SELECT name, NULLIF(tenant, ''), spec FROM warm_pools AS one WHERE NOT EXISTS "
        "(SELECT 1 FROM warm_pools AS other WHERE other.name = one.name AND other.tenant < one.tenant)"
    )
    op.drop_table("warm_pools")
    op.rename_table("warm_pools_old", "warm_pools")
