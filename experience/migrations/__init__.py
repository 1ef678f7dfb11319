"""Alembic's: how an empty database, or one of an older schema, comes to the present one."""
