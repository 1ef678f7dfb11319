"""The store: on SQLite and on PostgreSQL, filled by many, killed, migrated, exported and shown."""

import dataclasses
import json
import multiprocessing
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experience import database, exchange, show, tables
from experience.database import APPLICATION_ID, VERSION_TABLE, VERSIONS, Database
from experience.exchange import export_runs, import_runs
from experience.insight import Insight, InsightState
from experience.score import ContextScore
from experience.store import ExperienceStore, StoreError
from experience.text import printable
from experience.trace import StopReason, Trace
from tests.benchmarks import store as benchmark
from tests.postgres import new_database
from tests.store_worker import fill, make_trace, make_turn

MIGRATIONS = Path(database.__file__).parent / "migrations"


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "experience.db")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(location: str) -> Iterator[ExperienceStore]:
    with ExperienceStore(location) as opened:
        yield opened


def two_traces() -> list[Trace]:
    return [
        make_trace(3, make_turn("a", "left"), make_turn("b", None), make_turn("b", "up", 1.0), final="goal"),
        make_trace(6, make_turn("a", "left"), final="b", stop_reason=StopReason.TRUNCATED),
    ]


FIRST, SECOND = "round1/play0/3", "round1/play0/6"
FULL_INSIGHT = Insight(
    text="go left",
    observation="a",
    score=0.5,
    support=2,
    evidence=(SECOND, FIRST),
    against=(FIRST,),
    source="llm",
    writer="step30",
    prompt_version="v3",
    is_instance_specific=True,
    reason="it helps",
)
SCORE = ContextScore(
    phase="round1/gate",
    context_id="round1/insights",
    insight_ids=("i1", "i2"),
    policy_id="base",
    seeds=(1, 4, 7),
    successes=3,
    successes_without=1,
    p_value=0.25,
    verdict="admitted",
)


# --- one run -------------------------------------------------------------------------------------


def test_traces_come_back(store: ExperienceStore) -> None:
    store.add_traces(two_traces())
    [first, second] = store.traces().to_dict("records")
    assert first["trace_id"] == FIRST
    assert (first["num_turns"], first["invalid_replies"], first["total_reward"]) == (3, 1, 1.0)
    assert (first["success"], first["prompt_tokens"], second["success"]) == (True, 21, False)
    turns = store.turns(phases=["round1/play0"])
    assert turns["next_observation"].tolist() == ["b", "b", "goal", "b"]
    assert turns["terminated"].tolist() == [False, False, True, False]
    assert turns["success"].tolist() == [True, True, True, False]
    assert turns["action"].tolist()[0] == "left"
    assert pd.isna(turns["action"].tolist()[1])
    assert len(store.turns(trace_id=SECOND)) == 1
    assert store.turns(phases=["other"]).empty
    assert store.turns(trace_id=FIRST, tokens=True)["logprobs"].tolist() == [[-0.5, -0.25]] * 3


def test_adding_again_changes_nothing(store: ExperienceStore) -> None:
    store.add_traces([make_trace(3, make_turn("a", "left"))])
    again = make_trace(3, make_turn("z", "up"), make_turn("z", "up"))
    store.add_traces([again, make_trace(6, make_turn("a", "up"))])
    store.add_traces([])
    assert store.traces()["num_turns"].tolist() == [1, 1]
    assert store.turns()["observation"].tolist() == ["a", "a"]


def test_a_finished_phase_keeps_its_result(store: ExperienceStore) -> None:
    assert not store.is_finished("p")
    with pytest.raises(KeyError):
        store.result("p")
    store.finish_phase("p", {"admitted": ["i1"], "p": float("inf"), "note": "NUL \0, lone \ud800"})
    store.finish_phase("p", "something else")
    store.finish_phase("play")
    assert store.is_finished("p")
    assert store.result("p") == {"admitted": ["i1"], "p": float("inf"), "note": "NUL \0, lone \ud800"}
    assert store.result("play") is None


def test_a_trace_is_kept_whole_or_not_at_all(store: ExperienceStore) -> None:
    unwritable = dataclasses.replace(make_turn("a", "left"), token_ids=(b"bytes",))  # type: ignore[arg-type]
    bad = make_trace(6, make_turn("a", "left"), unwritable)
    with pytest.raises(Exception, match="not JSON serializable"):
        store.add_traces([make_trace(3, make_turn("a", "left")), bad])
    assert store.traces().empty
    assert store.turns().empty


def test_insights_retire_and_return(store: ExperienceStore) -> None:
    store.add_traces(two_traces())
    one = Insight(text="go left", observation="a", score=0.5, support=2, evidence=(FIRST,))
    two = Insight(text="go up", observation="a", score=0.1, support=0)
    bad = Insight(
        text="go", observation="a", score=0.0, support=0, state=InsightState.RETIRED, reason="vague"
    )
    store.set_insights([one, bad], "p1")
    store.set_insights([two], "p2")
    store.set_insights([one], "p2")  # a phase sets them once
    rows = store.insights().set_index("insight_id")
    assert list(rows.loc[one.id, ["state", "reason", "traces"]]) == ["retired", "superseded in p2", 1]
    assert list(rows.loc[bad.id, ["state", "reason", "updated_in"]]) == ["retired", "vague", "p1"]
    assert list(rows.loc[two.id, ["state", "traces", "traces_against"]]) == ["active", 0, 0]
    store.set_insights([dataclasses.replace(one, evidence=(), against=(FIRST, SECOND))], "p3")
    row = store.insights().set_index("insight_id").loc[one.id]
    assert list(row[["state", "phase", "updated_in"]]) == ["active", "p1", "p3"]
    assert list(row[["traces", "traces_against"]]) == [0, 2]
    assert store.evidence()["supports"].tolist() == [False, False]


def test_insights_come_back_as_they_were(store: ExperienceStore) -> None:
    store.add_traces(two_traces())
    other = Insight(text="a first one", observation=None, score=-1.0, support=0, state=InsightState.RETIRED)
    store.set_insights([FULL_INSIGHT, other], "p")
    assert store.load_insights() == [FULL_INSIGHT, other]
    store.set_insights([other, FULL_INSIGHT], "p2")
    assert store.load_insights() == [FULL_INSIGHT, other]


def test_evidence_must_exist(store: ExperienceStore) -> None:
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)foreign key"):
        store.set_insights([Insight(text="x", observation=None, score=0, support=1, evidence=("nope",))], "p")
    assert store.insights().empty
    assert not store.is_finished("p/insights")


def test_scores(store: ExperienceStore) -> None:
    later = dataclasses.replace(SCORE, phase="a/gate")
    store.add_scores([SCORE])
    store.add_scores([dataclasses.replace(SCORE, verdict="changed"), later])
    rows = store.scores().to_dict("records")
    assert [row["phase"] for row in rows] == ["round1/gate", "a/gate"]
    expected = dataclasses.asdict(SCORE) | {"insight_ids": ["i1", "i2"], "seeds": [1, 4, 7]}
    assert rows[0] == expected


def test_text_that_databases_refuse_is_replaced(store: ExperienceStore) -> None:
    odd = "NUL \0, lone \ud800, \x1b[31m, \u202e, 🙂"
    insight = Insight(text=odd, observation=odd, score=0, support=0)
    store.add_traces([make_trace(3, make_turn(odd, odd), phase=odd)])
    store.set_insights([insight], "p")
    kept = odd.replace("\0", "\ufffd").replace("\ud800", "\ufffd")
    assert store.turns(phases=[odd])["observation"].tolist() == [kept]
    assert store.insights()["insight_id"].tolist() == [insight.id]
    assert [i.id for i in store.load_insights()] == [insight.id]


def test_the_order_is_that_of_code_points(store: ExperienceStore) -> None:
    phases = ["A", "Z", "_", "a", "é"]
    store.add_traces(make_trace(seed, phase=phase) for phase in reversed(phases) for seed in (10, 9))
    assert store.traces()["phase"].tolist() == [phase for phase in phases for _ in range(2)]
    assert store.traces()["seed"].tolist() == [9, 10] * 5
    assert store.turns().empty


# --- many runs -----------------------------------------------------------------------------------


def test_runs_share_a_database_and_see_themselves_only(location: str) -> None:
    with ExperienceStore(location) as only, ExperienceStore(location, "b") as other:
        for store in (only, other):
            store.add_traces(two_traces()[: 2 if store is only else 1])
            store.finish_phase("p", len(store.traces()))
        other.set_insights([dataclasses.replace(FULL_INSIGHT, evidence=(FIRST,))], "p")
        only.add_scores([SCORE])
        assert (only.result("p"), other.result("p")) == (2, 1)
        assert (len(only.turns()), len(other.turns())) == (4, 3)
        assert (len(only.insights()), len(only.evidence()), only.load_insights()) == (0, 0, [])
        assert (len(other.insights()), len(other.evidence())) == (1, 2)
        assert (len(only.scores()), len(other.scores())) == (1, 0)
        runs = only.runs().to_dict("records")
        assert [(r["run"], r["traces"], r["successes"]) for r in runs] == [("run", 2, 1), ("b", 1, 1)]
        assert runs[0]["begun"] <= runs[1]["begun"]
    with pytest.raises(StoreError, match="holds 2 runs, say which: b, run"):
        ExperienceStore(location)
    with ExperienceStore(location, "b") as again:
        assert len(again.traces()) == 1


def test_the_only_run_needs_no_name(location: str) -> None:
    ExperienceStore(location, "named").close()
    with ExperienceStore(location) as store:
        assert store.runs()["run"].tolist() == ["named"]


def test_where_the_database_knows_no_upsert(tmp_path: Path) -> None:
    with patch.object(database, "_INSERTS", {}), ExperienceStore(tmp_path / "e.db") as store:
        store.add_traces([make_trace(3, make_turn("a", "left"))])
        store.add_traces(two_traces())
        store.finish_phase("p", 1)
        store.finish_phase("p", 2)
        assert store.traces()["num_turns"].tolist() == [1, 1]
        assert (len(store.turns()), store.result("p")) == (2, 1)


@pytest.mark.parametrize(("backend", "count", "kills"), [("sqlite", 500, 24), ("postgresql", 60, 6)])
def test_many_writers_that_are_killed(
    backend: str, count: int, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What was acknowledged is there, whole, however the processes ended."""
    sqlite = tmp_path / "e.db"
    where = str(sqlite) if backend == "sqlite" else request.getfixturevalue("postgres_url")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.store_worker"])
    logs = [tmp_path / f"{worker}.log" for worker in range(8)]
    chance = random.Random(0)

    def begin(worker: int) -> Any:
        process = context.Process(target=fill, args=(where, worker, count, 5, logs[worker]))
        process.start()
        return process

    processes = [begin(worker) for worker in range(8)]  # all of them make the database
    killed = 0
    while any(process.exitcode != 0 for process in processes):
        time.sleep(chance.uniform(0.01, 0.1))
        running = [worker for worker, process in enumerate(processes) if process.is_alive()]
        if killed < kills and running and (killed % 2 or any(log.exists() for log in logs)):
            processes[chance.choice(running)].kill()
            killed += 1
        for worker, process in enumerate(processes):
            if process.exitcode not in (None, 0):
                assert process.exitcode == -9
                processes[worker] = begin(worker)
    assert killed >= kills // 2
    with ExperienceStore(where) as store:
        traces, turns = store.traces(), store.turns()
        assert traces.groupby("phase")["seed"].agg(list).to_dict() == {
            phase: list(range(count)) for phase in ("common", *(f"worker{worker}" for worker in range(8)))
        }
        assert (
            turns.groupby("trace_id").size().to_dict() == traces.set_index("trace_id")["num_turns"].to_dict()
        )
    if backend == "sqlite":
        with sqlite3.connect(sqlite) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_writers_load_no_heavy_library() -> None:
    code = (
        "import sys, tests.store_worker\n"
        "print({'pandas', 'torch', 'alembic', 'pyarrow', 'scipy'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# --- versions ------------------------------------------------------------------------------------

V1 = """
CREATE TABLE traces (
    trace_id TEXT NOT NULL, phase TEXT NOT NULL, split TEXT NOT NULL, seed BIGINT NOT NULL,
    env_id TEXT NOT NULL, policy_id TEXT NOT NULL, context_id TEXT NOT NULL, stop_reason TEXT NOT NULL,
    success BOOLEAN NOT NULL, total_reward FLOAT NOT NULL, num_turns INTEGER NOT NULL,
    invalid_replies INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, final_observation TEXT NOT NULL,
    error TEXT, PRIMARY KEY (trace_id)
);
CREATE INDEX ix_traces_phase ON traces (phase);
CREATE TABLE turns (
    trace_id TEXT NOT NULL, turn INTEGER NOT NULL, observation TEXT NOT NULL, insight_ids JSON NOT NULL,
    prompt_tokens INTEGER NOT NULL, reply TEXT NOT NULL, token_ids JSON NOT NULL, logprobs JSON NOT NULL,
    action TEXT, reward FLOAT NOT NULL, PRIMARY KEY (trace_id, turn),
    FOREIGN KEY(trace_id) REFERENCES traces (trace_id)
);
CREATE TABLE insights (
    insight_id TEXT NOT NULL, text TEXT NOT NULL, observation TEXT, score FLOAT NOT NULL,
    support INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, phase TEXT NOT NULL,
    PRIMARY KEY (insight_id)
);
CREATE TABLE evidence (
    insight_id TEXT NOT NULL, trace_id TEXT NOT NULL, PRIMARY KEY (insight_id, trace_id),
    FOREIGN KEY(insight_id) REFERENCES insights (insight_id),
    FOREIGN KEY(trace_id) REFERENCES traces (trace_id)
);
CREATE TABLE finished_phases (phase TEXT NOT NULL, PRIMARY KEY (phase));
CREATE TABLE schema (version INTEGER NOT NULL, PRIMARY KEY (version));
INSERT INTO schema VALUES (1);
INSERT INTO traces VALUES
    ('round1/play0/3', 'round1/play0', 'train', 3, 'E', 'base', 'none', 'terminated', 1, 1.0, 3, 1, 21,
     'goal', NULL),
    ('round1/play0/6', 'round1/play0', 'train', 6, 'E', 'base', 'none', 'truncated', 0, 0.0, 1, 0, 7,
     'b', NULL);
INSERT INTO turns VALUES
    ('round1/play0/3', 0, 'a', '["i1"]', 7, 'I move left', '[1, 2]', '[-0.5, -0.25]', 'left', 0.0),
    ('round1/play0/3', 1, 'b', '["i1"]', 7, 'I move None', '[1, 2]', '[-0.5, -0.25]', NULL, 0.0),
    ('round1/play0/3', 2, 'b', '["i1"]', 7, 'I move up', '[1, 2]', '[-0.5, -0.25]', 'up', 1.0),
    ('round1/play0/6', 0, 'a', '["i1"]', 7, 'I move left', '[1, 2]', '[-0.5, -0.25]', 'left', 0.0);
INSERT INTO insights VALUES ('3fd282462b21', 'go left', 'a', 0.5, 2, 'active', 'best', 'p');
INSERT INTO evidence VALUES ('3fd282462b21', 'round1/play0/6'), ('3fd282462b21', 'round1/play0/3');
INSERT INTO finished_phases VALUES ('p/insights'), ('round1/play0');
"""
"""A file as version 1 made it, with ``two_traces``; frozen."""


def make_v1(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA journal_mode = WAL; {V1}")
    connection.close()
    return path


def test_version_1_opens_and_loses_nothing(tmp_path: Path) -> None:
    insight = Insight(
        text="go left", observation="a", score=0.5, support=2, evidence=(FIRST, SECOND), reason="best"
    )
    with (
        ExperienceStore(make_v1(tmp_path / "old.db")) as old,
        ExperienceStore(tmp_path / "new.db") as new,
    ):
        new.add_traces(two_traces())
        new.set_insights([insight], "p")
        new.finish_phase("round1/play0")
        assert old.load_insights() == new.load_insights() == [insight]
        assert old.is_finished("p/insights")
        assert old.is_finished("round1/play0")
        for frame in ("traces", "insights", "evidence", "scores"):
            # Ids of insights then came from their text alone; old databases keep them.
            as_now = getattr(old, frame)().replace("3fd282462b21", insight.id)
            pd.testing.assert_frame_equal(as_now, getattr(new, frame)())
        pd.testing.assert_frame_equal(old.turns(tokens=True), new.turns(tokens=True))
        assert old.runs()[["run", "traces"]].values.tolist() == [["run", 2]]
        old.add_traces([make_trace(9, make_turn("a", "left"))])
    with ExperienceStore(tmp_path / "old.db") as again:
        assert len(again.traces()) == 3


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = make_v1(tmp_path / "old.db")
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO evidence VALUES ('3fd282462b21', 'nowhere')")
        before = list(connection.iterdump())
    with pytest.raises(StoreError, match="contradicts itself, it stays as it is: FOREIGN KEY"):
        ExperienceStore(path)
    with sqlite3.connect(path) as connection:
        assert list(connection.iterdump()) == before


def schema_differences(url: str) -> list[Any]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        differences = list(compare_metadata(context, tables.metadata))
    engine.dispose()
    return differences


def reflected(url: str) -> Any:
    """Everything that a database knows about its tables."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    known = {
        name: [
            [(c["name"], repr(c["type"]), c["nullable"]) for c in inspector.get_columns(name)],
            inspector.get_pk_constraint(name)["constrained_columns"],
            sorted(str(sorted(k.items())) for k in map(_without_name, inspector.get_foreign_keys(name))),
            inspector.get_indexes(name) if name == "traces" else [],
        ]
        for name in sorted(inspector.get_table_names())
    }
    engine.dispose()
    return known


def _without_name(key: Any) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name != "name"}


def test_a_migrated_schema_is_the_fresh_one(tmp_path: Path, postgres_server: str) -> None:
    fresh, migrated = (f"sqlite:///{tmp_path}/{name}.db" for name in ("fresh", "migrated"))
    make_v1(tmp_path / "migrated.db")
    for url in (fresh, migrated):
        ExperienceStore(url).close()
        assert schema_differences(url) == []
    assert reflected(fresh) == reflected(migrated)
    postgres_url = new_database(postgres_server)
    # On a server nobody has version 1, but the steps from nothing have to lead to the same.
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) PRIMARY KEY)")
        database._migrate(connection, "")
    engine.dispose()
    assert schema_differences(postgres_url) == []
    fresh = new_database(postgres_server)
    ExperienceStore(fresh).close()
    assert schema_differences(fresh) == []
    assert reflected(fresh) == reflected(postgres_url)
    with ExperienceStore(postgres_url) as store:
        store.add_traces(two_traces())


def test_the_last_version_is_the_present_one() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    assert tuple(sorted(revision.revision for revision in script.walk_revisions())) == VERSIONS
    assert script.get_heads() == [VERSIONS[-1]]


# --- what cannot be used -------------------------------------------------------------------------


def test_other_databases_are_refused(tmp_path: Path, postgres_url: str) -> None:
    other = tmp_path / "other.db"
    for url in (f"sqlite:///{other}", postgres_url):
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE songs (title TEXT)")
        engine.dispose()
        with pytest.raises(StoreError, match=r"another program .tables songs.: name another"):
            ExperienceStore(url)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database, but long enough to be read as a header of one" * 20)
    with pytest.raises(StoreError, match="no SQLite file: name another"):
        ExperienceStore(garbage)
    with pytest.raises(StoreError, match="its folder must exist"):
        ExperienceStore(tmp_path / "missing" / "e.db")


def test_newer_and_unfinished_databases_are_refused(location: str, tmp_path: Path) -> None:
    ExperienceStore(location).close()
    url = location if "://" in location else f"sqlite:///{location}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    engine.dispose()
    with pytest.raises(
        StoreError, match="version 0099, this opcd-gym knows those up to 0002: use the version"
    ):
        ExperienceStore(location)
    old = make_v1(tmp_path / "old.db")
    for statement, complaint in [
        ("UPDATE schema SET version = 7", "schema version 0007"),
        ("DELETE FROM schema", "holds nothing: delete it"),
        ("DROP TABLE schema", "holds nothing: delete it"),
    ]:
        with sqlite3.connect(old) as connection:
            connection.execute(statement)
        with pytest.raises(StoreError, match=complaint):
            ExperienceStore(old)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with ExperienceStore(path) as store:
        store.add_traces(make_trace(seed, make_turn("a" * 2000, "left")) for seed in range(50))
    content = bytearray(path.read_bytes())
    content[4096 * 20 :] = b"\xff" * (len(content) - 4096 * 20)
    path.write_bytes(content)
    with ExperienceStore(path) as store, pytest.raises(StoreError, match="damaged: take a copy"):
        store.turns()


def test_a_locked_file(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with patch.object(database, "BUSY_SECONDS", 0.1), ExperienceStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process is writing to it: wait"):
            store.add_traces(two_traces())
        assert store.traces().empty  # who only reads does not wait
        other.execute("ROLLBACK")
        store.add_traces(two_traces())
        other.close()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with ExperienceStore(path) as store:
        store.add_traces(two_traces())
    with ExperienceStore(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert len(store.traces()) == 2
        with pytest.raises(StoreError, match="make the file and its folder writable"):
            store.finish_phase("p")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (
            "postgresql+psycopg://me:hush@127.0.0.1:1/db",
            r"me:\*\*\*@127.0.0.1:1/db: .*see that the server runs",
        ),
        ("postgresql+psycopg://127.0.0.1:1/db?user=me&password=hush", "see that the server runs"),
        ("postgresql+psycopg://me:hush@nowhere.invalid/db", "see that the server runs"),
        ("postgresql+psycopg2://me:hush@host/db", "driver psycopg2: pip install 'psycopg2-binary'"),
        ("postgres://me:hush@host/db", "postgres://... is no database URL"),
        ("postgresql://me:hu@sh:hush/x@host/db", "postgresql://... is no database URL"),
        ("://", "is no database URL"),
    ],
)
def test_servers_that_cannot_be_used(url: str, complaint: str) -> None:
    with pytest.raises(StoreError, match=complaint) as caught:
        ExperienceStore(url)
    assert "hush" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with (
        patch.dict(sys.modules, {"psycopg": None}),
        pytest.raises(StoreError, match=r"install 'psycopg.binary.'"),
    ):
        ExperienceStore("postgresql+psycopg://me@host/db")


def test_a_wrong_password_is_said_and_not_shown(postgres_url: str) -> None:
    with pytest.raises(
        StoreError, match=r"password authentication failed.*user, password and database"
    ) as caught:
        ExperienceStore(postgres_url.replace("open%20sesame", "hush"))
    assert "hush" not in str(caught.value)


# --- export and import ---------------------------------------------------------------------------

texts = st.text(st.characters(codec=None), max_size=8)  # NUL, control characters, lone surrogates
numbers = st.floats(allow_nan=False)
turn_lists = st.lists(
    st.builds(
        make_turn,
        texts,
        st.none() | texts,
        numbers,
    ),
    max_size=3,
)


def everything(store: ExperienceStore) -> list[Any]:
    frames = [store.traces(), store.turns(tokens=True), store.insights(), store.evidence(), store.scores()]
    return [store.load_insights(), *(frame.to_json() for frame in frames), store.result("p")]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@given(
    lives=st.lists(turn_lists, min_size=1, max_size=3),
    lessons=st.lists(st.tuples(texts, st.none() | texts, numbers, texts), max_size=3),
    result=st.recursive(
        st.none() | numbers | texts, lambda inner: st.dictionaries(texts, inner), max_leaves=3
    ),
    name=texts.filter(bool),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_changes_nothing(
    format: exchange.Format, lives: Any, lessons: Any, result: Any, name: str, tmp_path: Path
) -> None:
    for entry in tmp_path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    folder, again = tmp_path / "folder", tmp_path / "again"
    with ExperienceStore(tmp_path / "from.db", name) as store:
        store.add_traces(make_trace(seed, *turns, phase=name) for seed, turns in enumerate(lives))
        ids = tuple(store.traces()["trace_id"])
        insights = [
            Insight(
                text=text, observation=about, score=score, support=1, evidence=ids, against=ids, writer=by
            )
            for text, about, score, by in lessons
        ]
        store.set_insights(insights, "i")
        store.finish_phase("p", result)
        store.add_scores([SCORE])
        before = everything(store)
        with Database(tmp_path / "from.db") as source:
            assert export_runs(source, folder, format=format) == len(lives)
    with Database(tmp_path / "to.db") as target:
        assert import_runs(folder, target) == len(lives)
        assert import_runs(folder, target) == 0
        export_runs(target, again, format=format)
    with ExperienceStore(tmp_path / "to.db", name) as store:
        assert everything(store) == before
        assert len(store.runs()) == 1
    if format == "jsonl":
        for file in folder.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes()


def filled(location: str | Path, run: str = "run") -> None:
    with ExperienceStore(location, run) as store:
        store.add_traces(two_traces())
        store.set_insights([FULL_INSIGHT], "p")
        store.add_scores([SCORE])
        store.finish_phase("p", {"a": [1, None]})


def test_one_run_of_several_moves_between_servers(location: str, tmp_path: Path) -> None:
    for run in ("a", "b"):
        filled(location, run)
    exchange.main(["export", location, str(tmp_path / "folder"), "--run", "b"])
    exchange.main(["import", str(tmp_path / "folder"), str(tmp_path / "to.db"), "--run", "c"])
    with ExperienceStore(location, "b") as source, ExperienceStore(tmp_path / "to.db") as target:
        assert everything(source) == everything(target)
        assert target.runs()["run"].tolist() == ["c"]
    exchange.main(["import", str(tmp_path / "folder"), location, "--run", "c"])
    with ExperienceStore(location, "c") as copy:
        assert copy.runs()["traces"].tolist() == [2, 2, 2]
        assert copy.load_insights() == [FULL_INSIGHT]


def test_what_is_there_stays(tmp_path: Path) -> None:
    filled(tmp_path / "from.db")
    with Database(tmp_path / "from.db") as source:
        export_runs(source, tmp_path / "folder")
    shutil.copy(tmp_path / "from.db", tmp_path / "to.db")
    with ExperienceStore(tmp_path / "to.db") as store:
        store.set_insights([dataclasses.replace(FULL_INSIGHT, evidence=(), score=9.0)], "later")
        before = everything(store)
        with Database(tmp_path / "to.db") as target:
            assert import_runs(tmp_path / "folder", target) == 0
        assert everything(store) == before
    filled(tmp_path / "other.db")
    with (
        Database(tmp_path / "other.db") as other,
        pytest.raises(StoreError, match=r"another run called run, begun .* with --run"),
    ):
        import_runs(tmp_path / "folder", other)


def spoil(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("store.json", "{", "[", "not what an export writes"),
        ("store.json", "0002", "0009", "schema 0009, .* with the version that wrote it"),
        ("turns.jsonl", "{", "", "no JSON Lines file"),
        ("turns.jsonl", "I move", "\\ud8zz", "no JSON Lines file"),
        ("turns.jsonl", "reply", "replies", "line 1 is no row of turns"),
        ("turns.jsonl", '"reward": 0.0', '"reward": "0"', "line 1: reward cannot be '0'"),
        ("traces.jsonl", '"seed": 3', f'"seed": {1 << 70}', "line 1: seed cannot be"),
        ("traces.jsonl", '"num_turns": 3', '"num_turns": 4', "has 3 of the 4 turns of round1/play0/3"),
        ("traces.jsonl", '"split": "train"', '"split": "trial"', "line 1: split cannot be 'trial'"),
        ("traces.jsonl", '"run": "run"', '"run": "b"', "the run b is not in runs.jsonl"),
        ("evidence.jsonl", "play0/6", "play0/7", "names what is not in the folder"),
        ("context_scores.jsonl", '"seeds": [1, 4, 7]', '"seeds": null', "line 1: seeds cannot be None"),
        ("insights.jsonl", "{", "\n{", "no JSON Lines file"),
    ],
)
def test_garbage_is_not_imported(file: str, old: str, new: str, complaint: str, tmp_path: Path) -> None:
    filled(tmp_path / "from.db")
    with Database(tmp_path / "from.db") as source:
        export_runs(source, tmp_path / "folder")
    spoil(tmp_path / "folder", file, old, new)
    with Database(tmp_path / "to.db") as target:
        with pytest.raises(StoreError, match=complaint):
            import_runs(tmp_path / "folder", target)
        with target.reading() as connection:
            assert connection.execute(sa.select(tables.runs)).all() == []


def test_folders_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "from.db")
    folder = tmp_path / "folder"
    with Database(tmp_path / "from.db") as source, Database(tmp_path / "to.db") as target:
        with pytest.raises(StoreError, match="has no run b; it has: run"):
            export_runs(source, folder, run="b")
        with (
            patch.dict(sys.modules, {"pyarrow": None}),
            pytest.raises(StoreError, match=r"opcd-gym.parquet."),
        ):
            export_runs(source, folder, format="parquet")
        assert not folder.exists()
        export_runs(source, folder, format="parquet")
        with pytest.raises(StoreError, match="is there already"):
            export_runs(source, folder)
        (folder / "turns.parquet").write_bytes(b"PAR1 or not")
        with pytest.raises(StoreError, match="no Parquet file of a store"):
            import_runs(folder, target)
        (folder / "turns.parquet").unlink()
        with pytest.raises(StoreError, match=r"turns.parquet cannot be read"):
            import_runs(folder, target)
    for arguments in (["export", "missing.db", "x"], ["import", str(tmp_path), str(tmp_path / "new.db")]):
        with pytest.raises(SystemExit, match=r"error: .*(no store at missing|is no exported store)"):
            exchange.main(arguments)
    assert not (tmp_path / "new.db").exists()


# --- show, and how fast it is --------------------------------------------------------------------


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with ExperienceStore(tmp_path / "experience.db") as store:
        evil = make_turn("[red]markup[/] \x1b[31mred \x1b]0;title\x07 \x9b5m \u202e!", "left")
        store.add_traces([*two_traces(), make_trace(9, evil, error="[/broken]")])
        old = Insight(text="old", observation=None, score=2.0, support=0)
        store.set_insights([old], "p1")
        store.set_insights([FULL_INSIGHT], "p2")
        store.add_scores([SCORE])

    def shown(*arguments: str) -> str:
        show.main([str(tmp_path), *arguments])
        return capsys.readouterr().out

    text = shown()
    assert text.index("go left") < text.index("superseded in p2")
    assert "llm (step30)" in text
    assert "round1/gate" in text
    assert "admitted" in text
    text = shown("--traces", "--success", "no", "--limit", "1")
    assert "1 of 2 traces" in text
    assert SECOND in text
    assert "0 of 0 traces" in shown("--traces", "--phase", "none")
    text = shown("--trace", "round1/play0/9")
    assert "[red]markup[/] red   !" in text
    assert "[/broken]" in text
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    for arguments in (["--trace", "x/1"], ["--run", "b"]):
        with pytest.raises(SystemExit, match=r"error: (there is no trace x/1|.* has no run b; it has: run)"):
            shown(*arguments)
    with pytest.raises(SystemExit, match=r"error: there is no store at .*missing"):
        show.main([str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="no run's folder"):
        show.main([str(Path(__file__).parent)])


def test_show_follows_a_run_to_its_server(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        url = location if "://" in location else f"sqlite:///{location}"
        (folder / "config.json").write_text(json.dumps({"run_id": run, "config": {"store": url}}))
        with ExperienceStore(url, run) as store:
            store.add_traces(two_traces()[: 2 if run == "first" else 1])
    show.main([str(tmp_path / "second"), "--traces"])
    assert "1 of 1 traces" in capsys.readouterr().out


@given(st.text())
def test_printable_text_steers_no_terminal(text: str) -> None:
    assert not set(printable(f"\x1b[{text}")) & {"\x1b", "\x9b", "\x07", "\r", "\0", "\u202e"}


def test_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(300)
    printed = capsys.readouterr().out
    assert "3 traces" in printed
    assert "300 traces" in printed
    assert "load_insights" in printed
