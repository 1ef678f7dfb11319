"""The first version that is kept (three were never released): the tables as ``experience.tables`` has them.

A new database is made by it as the tables are today, so a later version adds only what is not there yet.
"""

from alembic import op

from experience.tables import metadata

revision = "0004"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    metadata.create_all(op.get_bind())
