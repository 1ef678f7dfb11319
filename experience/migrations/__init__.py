"""Alembic's: how a store of an older schema becomes one of the present. ``database`` runs them on opening.

Each version states the tables as they were in its day, in its own words; it must not read ``tables``.
"""
