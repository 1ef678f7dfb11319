"""Where migrations run: on the connection, and in the transaction, that ``database`` opened."""

from alembic import context

from experience.database import VERSION_TABLE
from experience.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
