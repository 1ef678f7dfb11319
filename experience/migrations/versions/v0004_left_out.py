"""Turns say how much of what was to be remembered did not fit the context window."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column, unless the tables were made with it."""
    if "left_out" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("turns")}:
        op.add_column("turns", sa.Column("left_out", sa.Integer, nullable=False, server_default="0"))
