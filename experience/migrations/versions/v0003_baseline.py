"""The first version that is kept (two were never released): the tables as ``experience.tables`` has them.

Who changes those states here first what they were, and adds the step from them as the next version.
"""

from alembic import op

from experience.tables import metadata

revision = "0003"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    metadata.create_all(op.get_bind())
