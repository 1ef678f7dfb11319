"""The tables of the store.

Each row belongs to a run, whose integer key comes first in every primary key, so that many runs share a
database and what one of them reads lies together.
"""

import json
import math
from collections.abc import Callable
from typing import Any, get_args, get_origin

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from experience import damaged_store
from experience.insight import InsightState
from experience.seeds import Split
from experience.text import storable
from experience.trace import StopReason


class _Typed(sa.TypeDecorator[Any]):
    """Text in the database that is more in Python."""

    impl = sa.Text

    def __init__(self, kind: Any = str) -> None:
        """Say what: ``python_type``."""
        super().__init__()
        self.kind = kind

    @property
    def python_type(self) -> Any:
        """What it is in Python, such as ``list[int]``; ``object`` for any JSON."""
        return self.kind


class Text(_Typed):
    """Text, in the same order in every database; see also ``storable``."""

    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """In the order of code points, as in SQLite, whatever a server's locale is."""
        return postgresql.TEXT(collation="C") if dialect.name == "postgresql" else sa.Text()

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """To the database; a plain ``str``, since drivers have ideas of their own about enums."""
        return None if value is None else storable(str(value))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """From the database: SQLite keeps whatever it is given."""
        if value is not None and type(value) is not str:
            raise damaged_store(f"{value!r:.40} is not text")
        return value


class Word(Text):
    """One of a few words."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """From the database."""
        if value not in tuple(self.kind):
            raise damaged_store(f"{value!r} is not one of {', '.join(self.kind)}")
        return value


class Json(_Typed):
    """JSON as text: ``Infinity`` and the escape of NUL pass, which PostgreSQL's own type refuses."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        """To the database; ``None`` is NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """From the database."""
        if value is None:
            return None
        try:
            found = json.loads(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged_store(f"a cell is not JSON: {error}") from error
        if not (isinstance(found, get_origin(self.kind) or self.kind) and self._has_its_items(found)):
            raise damaged_store("a cell holds other JSON than it should")
        return found

    def _has_its_items(self, found: Any) -> bool:
        """Whether a list is of what it should be; JSON has whole numbers for others, too."""
        return all(
            set(map(type, found)) <= {kind, int if kind is float else kind} for kind in get_args(self.kind)
        )


class _Number:
    """What is a number or a truth in the database, too: SQLite keeps whatever it is given."""

    kinds: tuple[type, ...] = (int,)
    least, most = -math.inf, math.inf

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any]:
        """From the database."""

        def process(value: Any) -> Any:
            if value is not None and (
                type(value) not in self.kinds or value < self.least or value > self.most
            ):
                raise damaged_store(f"{value!r:.40} is not a number that can stand there")
            return value

        return process


class Integer(_Number, sa.Integer):
    """A whole number of 4 bytes that counts something."""

    least, most = 0, (1 << 31) - 1


class BigInteger(_Number, sa.BigInteger):
    """A whole number of 8 bytes."""


class Float(_Number, sa.Float[float]):
    """A number."""

    kinds = (int, float)


class Boolean(_Number, sa.Boolean):
    """Yes or no."""

    kinds = (bool, int)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any]:
        """From the database."""
        number = super().result_processor(dialect, coltype)

        def process(value: Any) -> bool | None:
            if number(value) not in (0, 1, None):
                raise damaged_store(f"{value!r:.40} is neither true nor false")
            return None if value is None else bool(value)

        return process


metadata = sa.MetaData()


def _table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """A table of rows that belong to a run."""
    return sa.Table(name, metadata, sa.Column("run", sa.ForeignKey("runs.run"), primary_key=True), *items)


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run", Integer, primary_key=True),
    sa.Column("run_id", Text, nullable=False, unique=True),
    # UTC, ISO 8601
    sa.Column("begun", Text, nullable=False),
)
traces = _table(
    "traces",
    sa.Column("trace_id", Text, primary_key=True),
    sa.Column("phase", Text, nullable=False),
    sa.Column("split", Word(Split), nullable=False),
    sa.Column("seed", BigInteger, nullable=False),
    sa.Column("env_id", Text, nullable=False),
    sa.Column("policy_id", Text, nullable=False),
    sa.Column("context_id", Text, nullable=False),
    sa.Column("stop_reason", Word(StopReason), nullable=False),
    sa.Column("success", Boolean, nullable=False),
    sa.Column("total_reward", Float, nullable=False),
    sa.Column("num_turns", Integer, nullable=False),
    sa.Column("invalid_replies", Integer, nullable=False),
    sa.Column("prompt_tokens", Integer, nullable=False),
    sa.Column("final_observation", Text, nullable=False),
    sa.Column("error", Text),
    # a phase in the order of its seeds
    sa.Index("ix_traces_phase", "run", "phase", "seed"),
)
turns = _table(
    "turns",
    sa.Column("trace_id", Text, primary_key=True),
    sa.Column("turn", Integer, primary_key=True),
    sa.Column("observation", Text, nullable=False),
    sa.Column("insight_ids", Json(list[str]), nullable=False),
    sa.Column("prompt_tokens", Integer, nullable=False),
    sa.Column("reply", Text, nullable=False),
    sa.Column("token_ids", Json(list[int]), nullable=False),
    sa.Column("logprobs", Json(list[float]), nullable=False),
    sa.Column("action", Text),
    sa.Column("reward", Float, nullable=False),
    sa.Column("left_out", Integer, nullable=False, server_default="0"),
    sa.ForeignKeyConstraint(["run", "trace_id"], ["traces.run", "traces.trace_id"]),
)
insights = _table(
    "insights",
    sa.Column("insight_id", Text, primary_key=True),
    # counts a run's insights in the order of first writing
    sa.Column("number", Integer, nullable=False),
    sa.Column("text", Text, nullable=False),
    sa.Column("observation", Text),
    sa.Column("score", Float, nullable=False),
    sa.Column("support", Integer, nullable=False),
    sa.Column("source", Text, nullable=False),
    sa.Column("writer", Text, nullable=False),
    sa.Column("prompt_version", Text, nullable=False),
    sa.Column("is_instance_specific", Boolean, nullable=False),
    sa.Column("state", Word(InsightState), nullable=False),
    sa.Column("reason", Text, nullable=False),
    # where it was first written, and where it last changed
    sa.Column("phase", Text, nullable=False),
    sa.Column("updated_in", Text, nullable=False),
)
evidence = _table(
    "evidence",
    sa.Column("insight_id", Text, primary_key=True),
    # whether the trace speaks for the insight or against it
    sa.Column("supports", Boolean, primary_key=True),
    sa.Column("trace_id", Text, primary_key=True),
    # its place in ``Insight.evidence`` or ``Insight.against``
    sa.Column("position", Integer, nullable=False),
    sa.ForeignKeyConstraint(["run", "insight_id"], ["insights.run", "insights.insight_id"]),
    sa.ForeignKeyConstraint(["run", "trace_id"], ["traces.run", "traces.trace_id"]),
)
context_scores = _table(
    "context_scores",
    sa.Column("phase", Text, primary_key=True),
    sa.Column("context_id", Text, primary_key=True),
    # counts a run's scores in the order of writing
    sa.Column("number", Integer, nullable=False),
    sa.Column("insight_ids", Json(list[str]), nullable=False),
    sa.Column("policy_id", Text, nullable=False),
    sa.Column("seeds", Json(list[int]), nullable=False),
    sa.Column("successes", Integer, nullable=False),
    sa.Column("successes_without", Integer, nullable=False),
    sa.Column("p_value", Float, nullable=False),
    sa.Column("admitted", Boolean, nullable=False),
    sa.Column("verdict", Text, nullable=False),
)
finished_phases = _table(
    "finished_phases",
    sa.Column("phase", Text, primary_key=True),
    # what it came to; NULL for a phase of play, which came to its traces
    sa.Column("result", Json(object)),
)
