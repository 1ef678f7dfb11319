"""What a run lived through and made of it: traces, insights, scores of contexts, finished phases.

python -m experience.store export RUN/experience.db FOLDER
python -m experience.store import FOLDER postgresql+psycopg://user@host/experience
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from experience import ExperienceError, damaged_store, tables
from experience.addresses import store_of
from experience.database import Database, find_run, insert_new
from experience.insight import Insight, InsightState
from experience.text import storable
from experience.trace import StopReason, Trace, Turn

if TYPE_CHECKING:
    import pandas as pd  # only the methods that return frames wait for it

    from experience.context import ContextScore

TRACE_FIELDS = [field.name for field in fields(Trace) if field.name != "turns"]
TURN_FIELDS = [field.name for field in fields(Turn)]
INSIGHT_FIELDS = [field.name for field in fields(Insight) if field.name not in ("evidence", "against")]
"""Each of them is a column as well."""
INSIGHTS = "/insights"
"""What ends the name under which it is noted that a phase's insights are written."""


class ExperienceStore:
    """One run in a database, which many runs and processes may share.

    Every write is one transaction: a killed process leaves whole traces or none. Writing a trace, a score or
    a finished phase again changes nothing that is already there, also where two processes do so at once.
    NUL and lone surrogates, which not every database can keep in text, are written as U+FFFD.
    """

    def __init__(self, location: str | Path, run: str | None = None, *, create: bool = True) -> None:
        """Open the database and find the run.

        Args:
            location: The path of a SQLite file, or an SQLAlchemy URL such as
                ``postgresql+psycopg://user:password@host/database``.
            run: The run's name; by default the only run there is, or ``run`` if there is none.
            create: Whether to make the database, or the run in it, where there is none.

        Raises:
            ExperienceError: The database cannot be used, or holds several runs and ``run`` names none; or
                there is none and ``create`` is off.
        """
        self._database = Database(location, create=create)
        try:
            self._run = self._find(run, create)
        except BaseException:
            self.close()
            raise

    def _find(self, name: str | None, create: bool) -> int:
        """The run's key."""
        with self._database.reading() as connection:
            known = connection.execute(sa.select(tables.runs.c.run_id)).scalars().all()
            if None in known:
                raise damaged_store("a run has no name")
            if not create or (known and (name is None or storable(name) in known)):
                return int(find_run(connection, name, self._database.name).run)
        name = name or "run"
        with self._database.writing() as connection:
            insert_new(connection, tables.runs, [{"run_id": name, "begun": datetime.now(UTC).isoformat()}])
            return int(find_run(connection, name, self._database.name).run)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing -----------------------------------------------------------------------------

    def add_traces(self, traces: Iterable[Trace]) -> None:
        """Keep ``traces``, all or none; those that are already there are left as they are.

        Raises:
            ExperienceError: One has what no database can keep, or the database cannot be used.
        """
        by_id = {storable(trace.id): trace for trace in traces}
        for trace_id, trace in by_id.items():
            if math.isnan(trace.total_reward) or not -(2**63) <= trace.seed < 2**63:
                raise ExperienceError(
                    f"the trace {trace_id} cannot be kept: its rewards, which come to {trace.total_reward}, "
                    "must be numbers with a sum, and its seed must have 64 bits"
                )
        # In the order of ids, so that two processes never wait for each other's.
        rows = [self._row(**_trace_row(by_id[trace_id])) for trace_id in sorted(by_id)]
        with self._database.writing() as connection:
            new = sorted(trace_id for _, trace_id in insert_new(connection, tables.traces, rows))
            turns = [
                self._row(trace_id=trace_id, turn=i, **{name: getattr(turn, name) for name in TURN_FIELDS})
                for trace_id in new
                for i, turn in enumerate(by_id[trace_id].turns)
            ]
            if turns:
                connection.execute(tables.turns.insert(), turns)

    def finish_phase(self, phase: str, result: Any = None) -> None:
        """Note that ``phase`` is done: all its traces are in the store, or it came to ``result``.

        That is anything that goes through JSON. Finishing a phase again changes nothing.
        """
        with self._database.writing() as connection:
            insert_new(connection, tables.finished_phases, [self._row(phase=phase, result=result)])

    def copy_phase(self, source: str, target: str) -> None:
        """Keep the traces of a finished phase once more, as those of ``target``, which ends by that."""
        with self._database.writing() as connection:
            if not insert_new(connection, tables.finished_phases, [self._row(phase=target, result=None)]):
                return
            ids = sa.select(tables.traces.c.trace_id).where(
                tables.traces.c.run == self._run, tables.traces.c.phase == source
            )
            for table in (tables.traces, tables.turns):
                values: dict[str, Any] = dict(table.columns.items())
                seed = sa.func.substr(table.c.trace_id, len(source) + 1)
                values["trace_id"] = sa.literal(target, sa.String) + seed
                if table is tables.traces:
                    values["phase"] = sa.literal(target)
                query = sa.select(*values.values()).where(table.c.run == self._run, table.c.trace_id.in_(ids))
                connection.execute(table.insert().from_select(list(values), query))

    def rename(self, name: str) -> None:
        """Call the run otherwise."""
        with self._database.writing() as connection:
            is_it = tables.runs.c.run == self._run
            connection.execute(tables.runs.update().where(is_it).values(run_id=name))

    def drop_phases(self, is_dropped: Callable[[str], bool]) -> None:
        """Forget finished phases, by their names, and their traces, which are no insight's evidence.

        For a copy of a run, which is to go on in another way.
        """
        phases, traces, turns = tables.finished_phases, tables.traces, tables.turns
        with self._database.writing() as connection:
            names = connection.execute(sa.select(phases.c.phase).where(phases.c.run == self._run)).scalars()
            dropped = [name for name in names if is_dropped(name.removesuffix(INSIGHTS))]
            is_of_them = (traces.c.run == self._run) & traces.c.phase.in_(dropped)
            ids = sa.select(traces.c.trace_id).where(is_of_them)
            connection.execute(turns.delete().where(turns.c.run == self._run, turns.c.trace_id.in_(ids)))
            connection.execute(traces.delete().where(is_of_them))
            connection.execute(phases.delete().where(phases.c.run == self._run, phases.c.phase.in_(dropped)))

    def set_insights(self, insights: Iterable[Insight], phase: str) -> None:
        """Write ``insights`` with the state that each has; other active ones retire, none is deleted.

        They are all that are to be in use, and any that are not. The second call for a phase changes nothing.
        """
        table = tables.insights
        with self._database.writing() as connection:
            marker = self._row(phase=phase + INSIGHTS, result=None)
            if not insert_new(connection, tables.finished_phases, [marker]):
                return
            number = self._next_number(connection, table)
            connection.execute(
                table.update()
                .where(table.c.run == self._run, table.c.state == InsightState.ACTIVE)
                .values(state=InsightState.RETIRED, reason=f"superseded in {phase}", updated_in=phase)
            )
            for insight in insights:
                values = {name: getattr(insight, name) for name in INSIGHT_FIELDS} | {"updated_in": phase}
                is_it = (table.c.run == self._run) & (table.c.insight_id == insight.id)
                if not connection.execute(table.update().where(is_it).values(values)).rowcount:
                    values |= {"insight_id": insight.id, "number": number, "phase": phase}
                    connection.execute(table.insert(), self._row(**values))
                    number += 1
                self._set_evidence(connection, insight)

    def _set_evidence(self, connection: sa.Connection, insight: Insight) -> None:
        table = tables.evidence
        connection.execute(table.delete().where(table.c.run == self._run, table.c.insight_id == insight.id))
        rows = [
            self._row(insight_id=insight.id, supports=supports, trace_id=trace_id, position=position)
            for supports, trace_ids in ((True, insight.evidence), (False, insight.against))
            for position, trace_id in enumerate(dict.fromkeys(trace_ids))
        ]
        if rows:
            connection.execute(table.insert(), rows)

    def add_scores(self, scores: "Iterable[ContextScore]") -> None:
        """Keep ``scores``, all or none; a phase's score of a context that is already there stays."""
        with self._database.writing() as connection:
            first = self._next_number(connection, tables.context_scores)
            rows = [self._row(number=number, **asdict(score)) for number, score in enumerate(scores, first)]
            insert_new(connection, tables.context_scores, rows)

    def _row(self, **values: Any) -> dict[str, Any]:
        return {"run": self._run, **values}

    def _next_number(self, connection: sa.Connection, table: sa.Table) -> int:
        """The number of a table's next row; who else numbers rows of the run waits."""
        is_run = tables.runs.c.run == self._run
        connection.execute(sa.select(tables.runs.c.run).where(is_run).with_for_update(key_share=True))
        query = sa.select(sa.func.max(table.c.number)).where(table.c.run == self._run)
        last: int | None = connection.execute(query).scalar()
        return 0 if last is None else last + 1

    # --- reading -----------------------------------------------------------------------------

    def is_finished(self, phase: str) -> bool:
        """Whether ``finish_phase`` was called for it."""
        return self._finished(phase) is not None

    def result(self, phase: str) -> Any:
        """What ``phase`` was finished with, as JSON gives it back: tuples are lists.

        Raises:
            KeyError: It is not finished.
        """
        row = self._finished(phase)
        if row is None:
            raise KeyError(phase)
        return row.result

    def _finished(self, phase: str) -> "sa.Row[Any] | None":
        table = tables.finished_phases.c
        query = sa.select(table.result).where(table.run == self._run, table.phase == phase)
        with self._database.reading() as connection:
            return connection.execute(query).first()

    def traces(self, *, phase: str | None = None) -> "pd.DataFrame":
        """One row per trace, in the order of phase and seed; see ``tables.traces`` for the columns."""
        query = self._select(tables.traces).order_by(tables.traces.c.phase, tables.traces.c.seed)
        return self._frame(query if phase is None else query.where(tables.traces.c.phase == phase))

    def turns(
        self, *, phases: Sequence[str] | None = None, trace_id: str | None = None, tokens: bool = False
    ) -> "pd.DataFrame":
        """One row per turn, with the trace's split, success and stop_reason, and what followed.

        Args:
            phases: Of these phases only.
            trace_id: Of this trace only.
            tokens: Add the columns prompt_tokens, token_ids and logprobs (slow to read).

        Returns:
            The columns trace_id, turn, split, success, stop_reason, observation, insight_ids, reply, action,
            reward, left_out, next_observation, terminated (whether the episode terminated with this turn).
        """
        traces, turns = tables.traces.c, tables.turns.c
        query = (
            sa.select(
                turns.trace_id,
                turns.turn,
                traces.split,
                traces.success,
                traces.stop_reason,
                turns.observation,
                turns.insight_ids,
                turns.reply,
                turns.action,
                turns.reward,
                turns.left_out,
                traces.final_observation,
            )
            .join_from(tables.traces, tables.turns)
            .where(turns.run == self._run)
        )
        if tokens:
            query = query.add_columns(turns.prompt_tokens, turns.token_ids, turns.logprobs)
        if phases is not None:
            # Not as a condition of the join: SQLite would read the turns of the whole run first.
            chosen = sa.select(traces.trace_id).where(traces.run == self._run, traces.phase.in_(phases))
            query = query.where(turns.trace_id.in_(chosen))
        if trace_id is not None:
            query = query.where(turns.trace_id == trace_id)
        frame = self._frame(query.order_by(turns.trace_id, turns.turn))
        following = frame.groupby("trace_id")["observation"].shift(-1)
        last = following.isna()
        frame["next_observation"] = following.where(~last, frame["final_observation"])
        frame["terminated"] = last & (frame["stop_reason"] == StopReason.TERMINATED)
        return frame.drop(columns="final_observation")

    def observations(self, *, phases: Sequence[str]) -> list[str]:
        """The distinct observations of the phases' turns, sorted."""
        traces, turns = tables.traces.c, tables.turns.c
        query = (
            sa.select(turns.observation)
            .distinct()
            .join_from(tables.traces, tables.turns)
            .where(traces.run == self._run, traces.phase.in_(phases))
        )
        with self._database.reading() as connection:
            return sorted(connection.execute(query).scalars())

    def insights(self) -> "pd.DataFrame":
        """One row per insight, with the number of ``traces`` for it and of ``traces_against`` it."""
        supports = tables.evidence.c.supports
        query = (
            self._select(tables.insights)
            .add_columns(
                sa.func.count(sa.case((supports, 1))).label("traces"),
                sa.func.count(sa.case((~supports, 1))).label("traces_against"),
            )
            .outerjoin(tables.evidence)
            .group_by(tables.insights.c.run, tables.insights.c.insight_id)
        )
        return self._frame(query.order_by(tables.insights.c.state, tables.insights.c.text))

    def active_insights(self) -> list[Insight]:
        """Those in use."""
        return [insight for insight in self.load_insights() if insight.state == InsightState.ACTIVE]

    def load_insights(self) -> list[Insight]:
        """All insights, in the order in which they were first written."""
        insights, evidence = tables.insights.c, tables.evidence.c
        cited: dict[tuple[str, bool], list[str]] = {}
        with self._database.reading() as connection:
            query = (
                sa.select(evidence.insight_id, evidence.supports, evidence.trace_id)
                .where(evidence.run == self._run)
                .order_by(evidence.insight_id, evidence.supports, evidence.position)
            )
            for insight_id, supports, trace_id in connection.execute(query):
                cited.setdefault((insight_id, supports), []).append(trace_id)
            rows = connection.execute(
                self._select(tables.insights).order_by(insights.number, insights.insight_id)
            ).all()
        return [
            Insight(
                **{name: getattr(row, name) for name in INSIGHT_FIELDS if name != "state"},
                state=InsightState(row.state),
                evidence=tuple(cited.get((row.insight_id, True), ())),
                against=tuple(cited.get((row.insight_id, False), ())),
            )
            for row in rows
        ]

    def evidence(self) -> "pd.DataFrame":
        """One row per insight and trace: insight_id, supports (for it or against it), trace_id, position."""
        table = tables.evidence.c
        return self._frame(
            self._select(tables.evidence).order_by(table.insight_id, table.supports.desc(), table.position)
        )

    def scores(self) -> "pd.DataFrame":
        """One row per ``ContextScore``, in the order of writing."""
        frame = self._frame(self._select(tables.context_scores).order_by(tables.context_scores.c.number))
        if (frame[["successes", "successes_without"]].max(axis=1) > frame["seeds"].map(len)).any():
            raise damaged_store("a context has more successes than episodes")
        return frame

    def _select(self, table: sa.Table) -> sa.Select[Any]:
        """The run's rows of a table, without the columns that only the database needs."""
        shown = [column for column in table.columns if column.name not in ("run", "number")]
        return sa.select(*shown).where(table.c.run == self._run)

    def _frame(self, query: sa.Select[Any]) -> "pd.DataFrame":
        import pandas as pd

        with self._database.reading() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        names = [column.name for column in query.selected_columns]
        flags = [column.name for column in query.selected_columns if isinstance(column.type, sa.Boolean)]
        full = [column.name for column in query.selected_columns if not getattr(column, "nullable", True)]
        frame = pd.DataFrame.from_records(rows, columns=names)
        if (empty := frame[full].isna().any()).any():
            raise damaged_store(f"a cell of {empty.idxmax()} is empty")
        return frame.astype(dict.fromkeys(flags, bool))


def open_run(where: str | Path, run: str | None = None, *, location: str | None = None) -> ExperienceStore:
    """The store of a run that is there.

    Args:
        where: A run's folder, the path of a database, or its URL.
        run: The run's name; by default the folder's, or else the only one.
        location: The database, where a folder does not say it or keeps its password to itself.

    Raises:
        ExperienceError: There is no such run.
    """
    place, own = store_of(where, location)
    return ExperienceStore(place, run or own, create=False)


def _trace_row(trace: Trace) -> dict[str, Any]:
    return {
        **{name: getattr(trace, name) for name in TRACE_FIELDS},
        "trace_id": trace.id,
        "total_reward": trace.total_reward,
        "num_turns": len(trace.turns),
        "invalid_replies": trace.invalid_replies,
        "prompt_tokens": sum(turn.prompt_tokens for turn in trace.turns),
    }


if __name__ == "__main__":
    from experience.exchange import main

    main()
