"""Version 1: the traces and insights of one run, as shipped before there were migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "traces",
        sa.Column("trace_id", sa.Text, primary_key=True),
        sa.Column("phase", sa.Text, nullable=False, index=True),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("env_id", sa.Text, nullable=False),
        sa.Column("policy_id", sa.Text, nullable=False),
        sa.Column("context_id", sa.Text, nullable=False),
        sa.Column("stop_reason", sa.Text, nullable=False),
        sa.Column("success", sa.Boolean, nullable=False),
        sa.Column("total_reward", sa.Float, nullable=False),
        sa.Column("num_turns", sa.Integer, nullable=False),
        sa.Column("invalid_replies", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("final_observation", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "turns",
        sa.Column("trace_id", sa.Text, sa.ForeignKey("traces.trace_id"), primary_key=True),
        sa.Column("turn", sa.Integer, primary_key=True),
        sa.Column("observation", sa.Text, nullable=False),
        sa.Column("insight_ids", sa.JSON, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("reply", sa.Text, nullable=False),
        sa.Column("token_ids", sa.JSON, nullable=False),
        sa.Column("logprobs", sa.JSON, nullable=False),
        sa.Column("action", sa.Text),
        sa.Column("reward", sa.Float, nullable=False),
    )
    op.create_table(
        "insights",
        sa.Column("insight_id", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("observation", sa.Text),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("support", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
    )
    op.create_table(
        "evidence",
        sa.Column("insight_id", sa.Text, sa.ForeignKey("insights.insight_id"), primary_key=True),
        sa.Column("trace_id", sa.Text, sa.ForeignKey("traces.trace_id"), primary_key=True),
    )
    op.create_table("finished_phases", sa.Column("phase", sa.Text, primary_key=True))
    op.create_table("schema", sa.Column("version", sa.Integer, primary_key=True))
