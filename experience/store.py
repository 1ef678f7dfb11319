"""The database of one run: traces, insights, and which phases are finished."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import sqlalchemy as sa

from experience.insight import Insight, InsightState
from experience.trace import StopReason, Trace, Turn

SCHEMA_VERSION = 1
APPLICATION_ID = 0x4F504344  # "OPCD", in the SQLite header, so that other programs' files are told apart

metadata = sa.MetaData()

traces_table = sa.Table(
    "traces",
    metadata,
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
turns_table = sa.Table(
    "turns",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.trace_id"), primary_key=True),
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
insights_table = sa.Table(
    "insights",
    metadata,
    sa.Column("insight_id", sa.Text, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("observation", sa.Text),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("support", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
)
evidence_table = sa.Table(
    "evidence",
    metadata,
    sa.Column("insight_id", sa.ForeignKey("insights.insight_id"), primary_key=True),
    sa.Column("trace_id", sa.ForeignKey("traces.trace_id"), primary_key=True),
)
phases_table = sa.Table(
    "finished_phases",
    metadata,
    sa.Column("phase", sa.Text, primary_key=True),
)
schema_table = sa.Table("schema", metadata, sa.Column("version", sa.Integer, primary_key=True))


class StoreError(RuntimeError):
    """A database that cannot be used; the message says why."""


class ExperienceStore:
    """Traces and insights in one SQLite file.

    Every write is one transaction: a killed process leaves whole traces or none. Writing a trace,
    an insight or a finished phase again changes nothing that is already there.
    """

    def __init__(self, path: Path) -> None:
        """Open the database at ``path``; make it if there is none.

        Raises:
            StoreError: The file is no experience store, or a newer version's.
        """
        self.path = path
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": 30}
        )
        sa.event.listen(self._engine, "connect", _set_up_connection)
        try:
            with self._engine.begin() as connection:
                self._check_or_create(connection)
        except sa.exc.DatabaseError as error:
            raise StoreError(f"{path} cannot be opened as an experience store: {error.orig}") from error

    def _check_or_create(self, connection: sa.Connection) -> None:
        application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        tables = sa.inspect(connection).get_table_names()
        if application != APPLICATION_ID and tables:
            raise StoreError(f"{self.path} is a database of another program (tables {', '.join(tables)})")
        # First, so that a kill in the middle leaves a file that is known as ours.
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        metadata.create_all(connection)
        version = connection.execute(sa.select(schema_table.c.version)).scalar()
        if version is None:
            connection.execute(schema_table.insert().values(version=SCHEMA_VERSION))
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} has schema version {version}, this opcd-gym reads {SCHEMA_VERSION}: "
                "use the version that wrote it"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing -----------------------------------------------------------------------------

    def add_traces(self, traces: Sequence[Trace]) -> None:
        """Keep ``traces``, all or none; those that are already there are left as they are."""
        with self._engine.begin() as connection:
            known = self._known_ids(connection, [trace.id for trace in traces])
            new = [trace for trace in traces if trace.id not in known]
            _insert(connection, traces_table, [_trace_row(trace) for trace in new])
            rows = [_turn_row(trace.id, i, turn) for trace in new for i, turn in enumerate(trace.turns)]
            _insert(connection, turns_table, rows)

    def finish_phase(self, phase: str) -> None:
        """Note that every trace of ``phase`` is in the store."""
        with self._engine.begin() as connection:
            if not self._is_finished(connection, phase):
                connection.execute(phases_table.insert().values(phase=phase))

    def set_insights(self, insights: Iterable[Insight], phase: str) -> None:
        """Make ``insights`` the active ones: others retire, with the reason; none is deleted.

        Args:
            insights: All that are to be in use.
            phase: What they were drawn for; the second call for a phase changes nothing.
        """
        marker = f"{phase}/insights"
        with self._engine.begin() as connection:
            if self._is_finished(connection, marker):
                return
            connection.execute(phases_table.insert().values(phase=marker))
            connection.execute(
                insights_table.update()
                .where(insights_table.c.state == InsightState.ACTIVE)
                .values(state=InsightState.RETIRED, reason=f"superseded in {phase}")
            )
            for insight in insights:
                connection.execute(evidence_table.delete().where(evidence_table.c.insight_id == insight.id))
                connection.execute(insights_table.delete().where(insights_table.c.insight_id == insight.id))
                connection.execute(insights_table.insert().values(**_insight_row(insight), phase=phase))
                rows = [{"insight_id": insight.id, "trace_id": trace_id} for trace_id in insight.evidence]
                _insert(connection, evidence_table, rows)

    # --- reading -----------------------------------------------------------------------------

    def is_finished(self, phase: str) -> bool:
        """Whether ``finish_phase`` was called for it."""
        with self._engine.connect() as connection:
            return self._is_finished(connection, phase)

    def traces(self, *, phase: str | None = None) -> pd.DataFrame:
        """One row per trace, in the order of phase and seed; see ``traces_table`` for the columns."""
        query = sa.select(traces_table).order_by(traces_table.c.phase, traces_table.c.seed)
        return self._frame(query if phase is None else query.where(traces_table.c.phase == phase))

    def turns(
        self, *, phases: Sequence[str] | None = None, trace_id: str | None = None, tokens: bool = False
    ) -> pd.DataFrame:
        """One row per turn, with the trace's split, and what followed.

        Args:
            phases: Of these phases only.
            trace_id: Of this trace only.
            tokens: Add the columns insight_ids, prompt_tokens, token_ids and logprobs (slow to read).

        Returns:
            The columns trace_id, turn, split, observation, reply, action, reward, next_observation,
            terminated (whether the episode terminated with this turn).
        """
        query = sa.select(
            turns_table.c.trace_id,
            turns_table.c.turn,
            traces_table.c.split,
            turns_table.c.observation,
            turns_table.c.reply,
            turns_table.c.action,
            turns_table.c.reward,
            traces_table.c.final_observation,
            traces_table.c.stop_reason,
        ).join(traces_table)
        if tokens:
            columns = turns_table.c
            query = query.add_columns(
                columns.insight_ids, columns.prompt_tokens, columns.token_ids, columns.logprobs
            )
        if phases is not None:
            query = query.where(traces_table.c.phase.in_(phases))
        if trace_id is not None:
            query = query.where(traces_table.c.trace_id == trace_id)
        frame = self._frame(query.order_by(turns_table.c.trace_id, turns_table.c.turn))
        following = frame.groupby("trace_id")["observation"].shift(-1)
        last = following.isna()
        frame["next_observation"] = following.where(~last, frame["final_observation"])
        frame["terminated"] = last & (frame["stop_reason"] == StopReason.TERMINATED)
        return frame.drop(columns=["final_observation", "stop_reason"])

    def insights(self) -> pd.DataFrame:
        """One row per insight, with the number of traces behind it as ``traces``."""
        count = sa.func.count(evidence_table.c.trace_id).label("traces")
        query = (
            sa.select(insights_table, count).outerjoin(evidence_table).group_by(insights_table.c.insight_id)
        )
        return self._frame(query.order_by(insights_table.c.state, insights_table.c.text))

    def evidence(self) -> pd.DataFrame:
        """One row per insight and trace behind it: insight_id, trace_id."""
        return self._frame(sa.select(evidence_table).order_by(*evidence_table.c))

    def _frame(self, query: sa.Select[Any]) -> pd.DataFrame:
        with self._engine.connect() as connection:
            return pd.read_sql_query(query, connection)

    @staticmethod
    def _is_finished(connection: sa.Connection, phase: str) -> bool:
        query = sa.select(phases_table.c.phase).where(phases_table.c.phase == phase)
        return connection.execute(query).first() is not None

    @staticmethod
    def _known_ids(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
        query = sa.select(traces_table.c.trace_id).where(traces_table.c.trace_id.in_(ids))
        return set(connection.execute(query).scalars())


def _set_up_connection(connection: Any, _: object) -> None:
    """WAL: a reader never waits for the writer, and a killed writer leaves no half transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def _trace_row(trace: Trace) -> dict[str, Any]:
    return {
        "trace_id": trace.id,
        "phase": trace.phase,
        "split": trace.split,
        "seed": trace.seed,
        "env_id": trace.env_id,
        "policy_id": trace.policy_id,
        "context_id": trace.context_id,
        "stop_reason": trace.stop_reason,
        "success": trace.success,
        "total_reward": trace.total_reward,
        "num_turns": len(trace.turns),
        "invalid_replies": trace.invalid_replies,
        "prompt_tokens": sum(turn.prompt_tokens for turn in trace.turns),
        "final_observation": trace.final_observation,
        "error": trace.error,
    }


def _turn_row(trace_id: str, index: int, turn: Turn) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "turn": index,
        "observation": turn.observation,
        "insight_ids": turn.insight_ids,
        "prompt_tokens": turn.prompt_tokens,
        "reply": turn.reply,
        "token_ids": turn.token_ids,
        "logprobs": turn.logprobs,
        "action": turn.action,
        "reward": turn.reward,
    }


def _insight_row(insight: Insight) -> dict[str, Any]:
    return {
        "insight_id": insight.id,
        "text": insight.text,
        "observation": insight.observation,
        "score": insight.score,
        "support": insight.support,
        "state": insight.state,
        "reason": insight.reason,
    }
