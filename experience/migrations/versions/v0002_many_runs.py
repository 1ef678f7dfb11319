"""Version 2: many runs; who wrote an insight and what speaks against it; scores; what phases came to.

Every primary key changes, which SQLite cannot do in place: the tables are made anew beside the old ones,
filled from them, and take their names. All that was there belongs to a run called ``run``.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COPIES = {
    "traces": """
        INSERT INTO new_traces
        SELECT 1, trace_id, phase, split, seed, env_id, policy_id, context_id, stop_reason, success,
            total_reward, num_turns, invalid_replies, prompt_tokens, final_observation, error
        FROM traces""",
    "turns": """
        INSERT INTO new_turns
        SELECT 1, trace_id, turn, observation, CAST(insight_ids AS TEXT), prompt_tokens, reply,
            CAST(token_ids AS TEXT), CAST(logprobs AS TEXT), action, reward
        FROM turns""",
    # Version 1 wrote an insight again wherever it was in use again: where it was first is not known.
    "insights": """
        INSERT INTO new_insights
        SELECT 1, insight_id, row_number() OVER (ORDER BY phase, insight_id) - 1, text, observation, score,
            support, 'outcomes', '', '', false, state, reason, phase, phase
        FROM insights""",
    "evidence": """
        INSERT INTO new_evidence
        SELECT 1, insight_id, true, trace_id,
            row_number() OVER (PARTITION BY insight_id ORDER BY trace_id) - 1
        FROM evidence""",
    "finished_phases": "INSERT INTO new_finished_phases SELECT 1, phase, NULL FROM finished_phases",
}


def _create(name: str, *items: sa.schema.SchemaItem) -> None:
    op.create_table(
        f"new_{name}", sa.Column("run", sa.Integer, sa.ForeignKey("runs.run"), primary_key=True), *items
    )


def upgrade() -> None:
    """Make the new tables, fill them, and drop the old."""
    op.create_table(
        "runs",
        sa.Column("run", sa.Integer, primary_key=True),
        sa.Column("run_id", TEXT, nullable=False, unique=True),
        sa.Column("begun", TEXT),
    )
    _create(
        "traces",
        sa.Column("trace_id", TEXT, primary_key=True),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("split", TEXT, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("env_id", TEXT, nullable=False),
        sa.Column("policy_id", TEXT, nullable=False),
        sa.Column("context_id", TEXT, nullable=False),
        sa.Column("stop_reason", TEXT, nullable=False),
        sa.Column("success", sa.Boolean, nullable=False),
        sa.Column("total_reward", sa.Float, nullable=False),
        sa.Column("num_turns", sa.Integer, nullable=False),
        sa.Column("invalid_replies", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("final_observation", TEXT, nullable=False),
        sa.Column("error", TEXT),
    )
    _create(
        "turns",
        sa.Column("trace_id", TEXT, primary_key=True),
        sa.Column("turn", sa.Integer, primary_key=True),
        sa.Column("observation", TEXT, nullable=False),
        sa.Column("insight_ids", sa.Text, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("reply", TEXT, nullable=False),
        sa.Column("token_ids", sa.Text, nullable=False),
        sa.Column("logprobs", sa.Text, nullable=False),
        sa.Column("action", TEXT),
        sa.Column("reward", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["run", "trace_id"], ["new_traces.run", "new_traces.trace_id"]),
    )
    _create(
        "insights",
        sa.Column("insight_id", TEXT, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("text", TEXT, nullable=False),
        sa.Column("observation", TEXT),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("support", sa.Integer, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("writer", TEXT, nullable=False),
        sa.Column("prompt_version", TEXT, nullable=False),
        sa.Column("is_instance_specific", sa.Boolean, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("updated_in", TEXT, nullable=False),
    )
    _create(
        "evidence",
        sa.Column("insight_id", TEXT, primary_key=True),
        sa.Column("supports", sa.Boolean, primary_key=True),
        sa.Column("trace_id", TEXT, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["run", "insight_id"], ["new_insights.run", "new_insights.insight_id"]),
        sa.ForeignKeyConstraint(["run", "trace_id"], ["new_traces.run", "new_traces.trace_id"]),
    )
    _create("finished_phases", sa.Column("phase", TEXT, primary_key=True), sa.Column("result", sa.Text))
    op.create_table(
        "context_scores",
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("phase", TEXT, primary_key=True),
        sa.Column("context_id", TEXT, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("insight_ids", sa.Text, nullable=False),
        sa.Column("policy_id", TEXT, nullable=False),
        sa.Column("seeds", sa.Text, nullable=False),
        sa.Column("successes", sa.Integer, nullable=False),
        sa.Column("successes_without", sa.Integer, nullable=False),
        sa.Column("p_value", sa.Float, nullable=False),
        sa.Column("verdict", TEXT, nullable=False),
    )
    op.execute("INSERT INTO runs (run_id) VALUES ('run')")  # gets the key 1, as the first
    for copy in COPIES.values():
        op.execute(copy)
    for name in ("schema", *reversed(COPIES)):
        op.drop_table(name)
    for name in COPIES:
        op.rename_table(f"new_{name}", name)
    op.create_index("ix_traces_phase", "traces", ["run", "phase", "seed", "success"])
