"""The store: on SQLite and on PostgreSQL, filled by many, killed, exported and shown."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experience import ExperienceError, database, exchange, rows, show
from experience.context import ContextScore
from experience.database import VERSION, VERSION_TABLE
from experience.exchange import export_run, import_run
from experience.insight import Insight, InsightState
from experience.store import ExperienceStore
from experience.text import printable
from experience.trace import StopReason, Trace
from experience.whole import appearing
from tests.benchmarks import store as benchmark
from tests.store_worker import fill, make_trace, make_turn


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "experience.db")
    return str(request.getfixturevalue("postgres_url"))


def url_of(location: str) -> str:
    return location if "://" in location else f"sqlite:///{location}"


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
    admitted=True,
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


def test_a_phase_that_came_to_the_same(store: ExperienceStore) -> None:
    store.add_traces(two_traces())
    store.add_traces([dataclasses.replace(two_traces()[0], phase="round1/play00")])
    for _ in range(2):  # the second changes nothing
        store.copy_phase("round1/play0", "test/after")
    assert store.is_finished("test/after")
    own = ["trace_id", "phase"]
    assert store.traces(phase="test/after")["trace_id"].tolist() == ["test/after/3", "test/after/6"]
    copied, was = store.traces(phase="test/after"), store.traces(phase="round1/play0")
    pd.testing.assert_frame_equal(copied.drop(columns=own), was.drop(columns=own))
    copied, was = (store.turns(phases=[name], tokens=True) for name in ("test/after", "round1/play0"))
    pd.testing.assert_frame_equal(copied.drop(columns="trace_id"), was.drop(columns="trace_id"))
    assert len(store.traces()) == 5


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
    with pytest.raises(ExperienceError, match="holds 2 runs, say which: run, b"):
        ExperienceStore(location)
    with ExperienceStore(location, "b") as again:
        assert len(again.traces()) == 1


def test_the_only_run_needs_no_name(location: str) -> None:
    ExperienceStore(location, "named").close()
    with ExperienceStore(location) as store:
        store.finish_phase("p", 1)
    with ExperienceStore(location, "named") as store:
        assert store.result("p") == 1


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
    code = "import sys, tests.store_worker\nprint({'pandas', 'torch', 'pyarrow', 'scipy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0003", "0099"])
def test_databases_of_other_versions_are_refused(version: str, location: str) -> None:
    ExperienceStore(location).close()
    engine = sa.create_engine(url_of(location))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'")
    with pytest.raises(ExperienceError, match=f"version {version}, this opcd-gym has {VERSION}.*: use the"):
        ExperienceStore(location)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT * FROM {VERSION_TABLE}").scalar() == version
    engine.dispose()


# --- what cannot be used -------------------------------------------------------------------------


def test_other_databases_are_refused(tmp_path: Path, postgres_url: str) -> None:
    other = tmp_path / "other.db"
    for url in (f"sqlite:///{other}", postgres_url):
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE songs (title TEXT)")
        engine.dispose()
        with pytest.raises(ExperienceError, match=r"another program, .* .tables songs.: name another"):
            ExperienceStore(url)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database, but long enough to be read as a header of one" * 20)
    with pytest.raises(ExperienceError, match="not a SQLite file: name another"):
        ExperienceStore(garbage)
    with pytest.raises(ExperienceError, match="its folder must exist"):
        ExperienceStore(tmp_path / "missing" / "e.db")


def test_looking_changes_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    content = other.read_bytes()
    with pytest.raises(ExperienceError, match="another program"):
        ExperienceStore(other, create=False)
    with pytest.raises(ExperienceError, match="no store"):
        ExperienceStore(f"sqlite:///{tmp_path / 'none.db'}?timeout=5", create=False)
    assert other.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize(
    "location",
    [
        *("", ":memory:", Path(":memory:"), "sqlite://", "sqlite:///", "sqlite:///:memory:", "file::memory:"),
        *("sqlite+pysqlite:///file::memory:?cache=shared&uri=true", "sqlite:///file:?uri=true"),
        *("sqlite:///file:x?mode=memory&cache=shared&uri=true", "sqlite:///file:/x?vfs=memdb&uri=true"),
    ],
)
def test_a_store_that_would_be_lost_is_refused(location: str | Path) -> None:
    with pytest.raises(ExperienceError, match="give the path of a file"):
        ExperienceStore(location)


@pytest.mark.parametrize(
    ("seed", "rewards"), [(1 << 63, (1.0,)), (3, (1.0, math.nan)), (3, (math.inf, -math.inf))]
)
def test_a_trace_that_cannot_be_kept_is_named(seed: int, rewards: tuple[float, ...], location: str) -> None:
    bad = make_trace(seed, *[make_turn("a", "left", reward) for reward in rewards])
    with ExperienceStore(location) as store:
        with pytest.raises(ExperienceError, match=f"the trace round1/play0/{seed} cannot be kept"):
            store.add_traces([make_trace(0, make_turn("a", "left")), bad])
        assert store.traces().empty


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.tmp").mkdir()
    with appearing(tmp_path / "mine") as folder:
        folder.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.tmp"]


def test_two_who_write_the_same_take_nothing_from_each_other(tmp_path: Path) -> None:
    target = tmp_path / "[a]*.json"
    with appearing(target) as first:
        first.write_text("half")
        with appearing(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
        first.write_text("first")
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_what_others_left_unfinished_does_not_pile_up(tmp_path: Path) -> None:
    """A killed process's is removed, one's elsewhere only when it is old: nobody knows whether that lives."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    target = tmp_path / "a.json"
    with appearing(target) as own:
        own.touch()
        here, there = own.name.split(".")[3], "0" * 8
        names = [own.name.replace(here, there), own.name.replace(f".{os.getpid()}.", f".{ended.pid}.")]
        elsewhere, left = (tmp_path / name for name in names)
        elsewhere.touch()
        left.mkdir()
        (left / "part").touch()
        with appearing(target) as again:
            again.touch()
        assert own.exists()
        assert elsewhere.exists()
        assert not left.exists()
        os.utime(elsewhere, (0, 0))
        with appearing(target) as again:
            again.touch()
        assert not elsewhere.exists()


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with ExperienceStore(path) as store:
        store.add_traces(make_trace(seed, make_turn("a" * 2000, "left")) for seed in range(50))
    content = bytearray(path.read_bytes())
    content[4096 * 20 :] = b"\xff" * (len(content) - 4096 * 20)
    path.write_bytes(content)
    with ExperienceStore(path) as store, pytest.raises(ExperienceError, match="damaged: take a copy"):
        store.turns()


@pytest.mark.parametrize(
    ("damage", "read", "says"),
    [
        ("turns SET token_ids = '[1'", lambda store: store.turns(tokens=True), "a cell is not JSON"),
        ("turns SET insight_ids = '{}'", lambda store: store.turns(tokens=True), "a cell holds other JSON"),
        ("finished_phases SET result = 'x'", lambda store: store.result("play"), "a cell is not JSON"),
        ("insights SET state = 'odd'", ExperienceStore.load_insights, "'odd' is not one of active, retired"),
        ("traces SET stop_reason = 'odd'", ExperienceStore.traces, "'odd' is not one of "),
        ("traces SET seed = 'x'", ExperienceStore.traces, "'x' is not a number"),
        ("traces SET num_turns = 1.5", ExperienceStore.traces, "1.5 is not a number"),
        ("traces SET success = 'maybe'", ExperienceStore.traces, "'maybe' is not a number"),
        ("traces SET success = 7", ExperienceStore.traces, "7 is neither true nor false"),
        ("turns SET reward = 'x'", ExperienceStore.turns, "'x' is not a number"),
        ("traces SET num_turns = -5", ExperienceStore.traces, "-5 is not a number that can"),
        ("traces SET prompt_tokens = 1 << 31", ExperienceStore.traces, "2147483648 is not a number that can"),
        ("turns SET observation = x'ff'", ExperienceStore.turns, r"b'\\xff' is not text"),
        ("turns SET insight_ids = '[null]'", ExperienceStore.turns, "a cell holds other JSON"),
        ("turns SET logprobs = '[true]'", lambda store: store.turns(tokens=True), "a cell holds other JSON"),
        ("insights SET text = x'ff'", ExperienceStore.insights, r"b'\\xff' is not text"),
        ("context_scores SET insight_ids = '[{}]'", ExperienceStore.scores, "a cell holds other JSON"),
        ("context_scores SET seeds = '[\"0\"]'", ExperienceStore.scores, "a cell holds other JSON"),
        ("context_scores SET successes = 4", ExperienceStore.scores, "more successes than episodes"),
        ("context_scores SET successes_without = 4", ExperienceStore.scores, "more successes than episodes"),
        ("context_scores SET successes = -1", ExperienceStore.scores, "-1 is not a number that can"),
    ],
)
def test_a_damaged_cell(
    damage: str, read: Callable[[ExperienceStore], object], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "experience.db"
    with ExperienceStore(path) as store:
        store.add_traces([make_trace(0, make_turn("here", "left"))])
        store.set_insights([Insight(text="Left.", observation=None, score=1.0, support=1)], "write")
        store.finish_phase("play", 1)
        store.add_scores([SCORE])
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {damage}")
    with ExperienceStore(path) as store, pytest.raises(ExperienceError, match=f"store is damaged .*{says}"):
        read(store)


@pytest.mark.parametrize(
    ("column", "read"),
    [
        ("runs SET run_id", lambda store: None),
        ("traces SET total_reward", ExperienceStore.traces),
        ("turns SET observation", ExperienceStore.turns),
        ("context_scores SET phase", ExperienceStore.scores),
        ("context_scores SET seeds", ExperienceStore.scores),
    ],
)
def test_an_empty_cell(column: str, read: Callable[[ExperienceStore], object], tmp_path: Path) -> None:
    """Where another program has made the tables."""
    path = tmp_path / "experience.db"
    with ExperienceStore(path) as store:
        store.add_traces([make_trace(0, make_turn("here", "left"))])
        store.add_scores([SCORE])
    for statement in ("sqlite_master SET sql = replace(sql, 'NOT NULL', '')", f"{column} = NULL"):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(f"UPDATE {statement}")
    with pytest.raises(ExperienceError, match="store is damaged"), ExperienceStore(path) as store:
        read(store)


def test_a_disk_that_fails_or_is_full(tmp_path: Path) -> None:
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    says = pytest.raises(ExperienceError, match="disk I/O error: see whether its disk is full")
    with ExperienceStore(tmp_path / "e.db") as store, says, store._database.reading():
        raise failure


def test_a_locked_file(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with patch.object(database, "BUSY_SECONDS", 0.1), ExperienceStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ExperienceError, match="another process is writing to it: wait"):
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
        with pytest.raises(ExperienceError, match="make the file and its folder writable"):
            store.finish_phase("p")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://me:hush@host/db", "a store cannot be in mysql: give the path of a SQLite file, or a URL"),
        (
            "postgresql+psycopg://me:hush@127.0.0.1:1/db",
            r"me:\*\*\*@127.0.0.1:1/db: .*see that the server runs",
        ),
        ("postgresql+psycopg://127.0.0.1:1/db?user=me&password=hush", "see that the server runs"),
        ("postgresql+psycopg://me:hush@nowhere.invalid/db", "see that the server runs"),
        ("postgresql+psycopg2://me:hush@host/db", "driver psycopg2: pip install 'psycopg2-binary'"),
        ("postgres://me:hush@host/db", "postgres://... is not a database URL"),
        ("postgresql://me:hu@sh:hush/x@host/db", "postgresql://... is not a database URL"),
        ("://", "is not a database URL"),
    ],
)
def test_servers_that_cannot_be_used(url: str, complaint: str) -> None:
    with pytest.raises(ExperienceError, match=complaint) as caught:
        ExperienceStore(url)
    assert "hush" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with (
        patch.dict(sys.modules, {"psycopg": None}),
        pytest.raises(ExperienceError, match=r"install 'psycopg.binary.'"),
    ):
        ExperienceStore("postgresql+psycopg://me@host/db")


def test_a_wrong_password_is_said_and_not_shown(postgres_url: str) -> None:
    with pytest.raises(
        ExperienceError, match=r"password authentication failed.*user, password and database"
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
).filter(lambda turns: not math.isnan(sum(turn.reward for turn in turns)))  # of both infinities


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
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_changes_nothing(
    format: Literal["jsonl", "parquet"], lives: Any, lessons: Any, result: Any, name: str, tmp_path: Path
) -> None:
    for entry in tmp_path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    source, folder = str(tmp_path / "from.db"), tmp_path / "folder"
    target, again = str(tmp_path / "to.db"), tmp_path / "again"
    with ExperienceStore(source, name) as store:
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
    with patch.object(rows, "SHARD", 2):
        export_run(source, folder, format=format)
    import_run(folder, target)
    with patch.object(rows, "SHARD", 2):
        export_run(target, again, format=format)
    with ExperienceStore(target, name) as store:
        assert everything(store) == before
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def filled(location: str | Path, run: str = "run") -> str:
    with ExperienceStore(location, run) as store:
        store.add_traces(two_traces())
        store.set_insights([FULL_INSIGHT], "p")
        store.add_scores([SCORE])
        store.finish_phase("p", {"a": [1, None]})
    return str(location)


def test_one_run_of_several_moves_between_servers(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("a", "b"):
        filled(location, run)
    exchange.main(["export", location, str(tmp_path / "folder"), "--run", "b"])
    exchange.main(["import", str(tmp_path / "folder"), str(tmp_path / "to.db")])
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "experience.db").write_bytes((tmp_path / "to.db").read_bytes())
    exchange.main(["export", str(tmp_path / "a run"), str(tmp_path / "of its folder")])
    with pytest.raises(SystemExit):
        exchange.main(["export", str(tmp_path / "folder"), str(tmp_path / "of no run")])
    with ExperienceStore(location, "b") as source, ExperienceStore(tmp_path / "to.db", "b") as target:
        assert everything(source) == everything(target)
    with pytest.raises(SystemExit, match="2"):
        exchange.main(["import", str(tmp_path / "folder"), location])
    assert "has a run b already: give another name with --run" in capsys.readouterr().err
    exchange.main(["import", str(tmp_path / "folder"), location, "--run", "c"])
    with ExperienceStore(location, "c") as copy:
        assert len(copy.traces()) == 2
        assert copy.load_insights() == [FULL_INSIGHT]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_datasets_opens_what_is_exported(
    format: Literal["jsonl", "parquet"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first file has nothing in a column in which a later one has text."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    with ExperienceStore(tmp_path / "from.db") as store:
        store.add_traces([*two_traces(), make_trace(9, make_turn("a", None), error="it broke")])
    with patch.object(rows, "SHARD", 2):
        export_run(str(tmp_path / "from.db"), tmp_path / "folder", format=format)

    def opened(table: str) -> Any:
        folder, cache = str(tmp_path / "folder"), str(tmp_path / "cache")
        return datasets.load_dataset(folder, table, split="train", cache_dir=cache).to_list()

    assert [row["error"] for row in opened("traces")] == [None, None, "it broke"]
    assert [row["seed"] for row in opened("traces")] == [3, 6, 9]
    turns = opened("turns")
    assert [row["action"] for row in turns] == ["left", None, "up", "left", None]
    assert turns[0]["token_ids"] == [1, 2]
    assert turns[0]["logprobs"] == [-0.5, -0.25]


def spoil(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    export_run(filled(path / "from.db"), path / "folder")
    return path / "folder"


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("README.md", "opcd_gym", "opcd", "is not an exported run"),
        ("README.md", "---", "[" * 10_000, "is not an exported run"),
        ("README.md", "turns: 4", "turns: four", "is not an exported run"),
        ("README.md", "turns: 4", "turns: '4'", "is not an exported run"),
        ("README.md", "opcd_gym:", "x: &x [1]\ny: *x\nopcd_gym:", "is not an exported run"),
        ("README.md", "run: run", "run: [run]", "is not an exported run"),
        ("README.md", "run: run", f"run: {'x' * 2000}", "is not an exported run"),
        ("README.md", "opcd_gym:", f"# {'x' * (1 << 20)}\nopcd_gym:", "is not an exported run"),
        ("README.md", "turns: 4", "turns: 5", "has 4 rows of turns and should have 5"),
        ("README.md", VERSION, "0009", "of version 0009, this opcd-gym reads"),
        ("turns", "{", "", "row 1 of .*turns-00000.jsonl: all of it: Invalid JSON"),
        ("turns", "{", "[" * 10_000, "row 1 of .*: all of it: Invalid JSON"),
        ("turns", "I move", "\\ud8zz", "row 1 of .*: all of it: Invalid JSON"),
        ("turns", "reply", "replies", "row 1 of .*: reply: Field required"),
        ("turns", '"reward": 0.0', '"reward": 0.0, "r": 1', "row 1 of .*: r: Extra"),
        ("turns", '"reward": 0.0', '"reward": "0"', "row 1 of .*: reward: Input should be a valid number"),
        ("turns", '"reward": 0.0', '"reward": NaN', "turns contradicts the rest: .*turns.reward"),
        ("turns", '"turn": 1', '"turn": 0', "turns contradicts the rest"),
        ("turns", "[1, 2]", '[1, "2"]', "row 1 of .*: token_ids.1: Input should be a valid integer"),
        ("traces", '"seed": 3', f'"seed": {1 << 70}', "traces contradicts the rest: .*int too large"),
        ("traces", '"num_turns": 3', '"num_turns": 4', "has 4 turns, and its traces speak of 5"),
        ("traces", '"split": "train"', '"split": "trial"', "row 1 of .*: split: Input should be 'train'"),
        ("traces", '"success": true', '"success": 1', "row 1 of .*: success: Input should be a valid bool"),
        ("evidence", "play0/6", "play0/7", "evidence contradicts the rest: FOREIGN KEY"),
        ("context_scores", '"seeds": [1, 4, 7]', '"seeds": null', "row 1 of .*: seeds: Input should be"),
        ("finished_phases", '"{', '"[' + "[" * 100_000, "cannot be read: maximum recursion|Invalid JSON"),
        ("finished_phases", '"{', '"', "row 1 of .*: result"),
        ("insights", "{", "\n{", "row 1 of .*: all of it: Invalid JSON"),
    ],
)
def test_garbage_is_not_imported(
    file: str, old: str, new: str, complaint: str, exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    spoil(folder, file if "." in file else f"{file}-00000.jsonl", old, new)
    with pytest.raises(ExperienceError, match=complaint):
        import_run(folder, str(tmp_path / "to.db"))
    if "README" not in file:
        with pytest.raises(ExperienceError, match="has no run; it has: none"):
            ExperienceStore(tmp_path / "to.db", create=False)


@pytest.mark.timeout(30)
def test_what_has_no_end_is_not_read(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    file = folder / "traces-00000.jsonl"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ExperienceError, match="cannot be read: it is no regular file"):
        import_run(folder, str(tmp_path / "to.db"))
    file.unlink()
    with file.open("wb") as endless:
        endless.truncate(1 << 36)
    with pytest.raises(ExperienceError, match="cannot be read: a row has more than 16,777,216"):
        import_run(folder, str(tmp_path / "to.db"))


def test_a_broken_row_is_found_in_its_own_file(tmp_path: Path) -> None:
    with patch.object(rows, "SHARD", 2):
        export_run(filled(tmp_path / "from.db"), tmp_path / "folder")
    spoil(tmp_path / "folder", "turns-00001.jsonl", "reply", "replies")
    with pytest.raises(ExperienceError, match=r"row 1 of .*turns-00001.jsonl: reply: Field required"):
        import_run(tmp_path / "folder", str(tmp_path / "to.db"))


def test_a_folder_steers_no_terminal(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    spoil(folder, "README.md", "run: run", 'run: "r\\e[31mred"')
    exchange.main(["import", str(folder), str(tmp_path / "to.db")])
    spoil(folder, "turns-00000.jsonl", '"reply"', '"\\u001b[31mreply"')
    with pytest.raises(SystemExit, match="2"):
        exchange.main(["import", str(folder), str(tmp_path / "other.db")])
    assert "\x1b" not in "".join(capsys.readouterr())


def test_folders_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder, target = filled(tmp_path / "from.db"), tmp_path / "folder", str(tmp_path / "to.db")
    with pytest.raises(ExperienceError, match="has no run b; it has: run"):
        export_run(source, folder, run="b")
    with (
        patch.dict(sys.modules, {"pyarrow": None}),
        pytest.raises(ExperienceError, match=r"opcd-gym.parquet."),
    ):
        export_run(source, folder, format="parquet")
    assert not folder.exists()
    export_run(source, folder, format="parquet")
    with pytest.raises(ExperienceError, match="is there already"):
        export_run(source, folder)
    (folder / "turns-00000.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ExperienceError, match=r"turns-00000.parquet cannot be read"):
        import_run(folder, target)
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet.write_table(pyarrow.table({"reply": [b"bytes"]}), folder / "turns-00000.parquet")
    with pytest.raises(ExperienceError, match=r"turns-00000.parquet cannot be read: .* bytes"):
        import_run(folder, target)
    (folder / "turns-00000.parquet").unlink()
    with pytest.raises(ExperienceError, match=r"has 0 rows of turns and should have 4"):
        import_run(folder, target)
    for arguments in (["export", "missing.db", "x"], ["import", str(tmp_path), str(tmp_path / "new.db")]):
        with pytest.raises(SystemExit, match="2"):
            exchange.main(arguments)
        assert re.search("error: .*(no store at missing|is not an exported run)", capsys.readouterr().err)
    assert not (tmp_path / "new.db").exists()


# --- show, and how fast it is --------------------------------------------------------------------


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a pipe, so that what is asked for can be searched; a terminal folds it."""
    monkeypatch.delenv("COLUMNS", raising=False)
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
    assert "2 of 2 traces" in shown("--success", "no")
    assert "2 of 2 traces" in shown("--phase", "round1/play0", "--success", "no")
    monkeypatch.setenv("COLUMNS", "40")
    assert SECOND not in shown("--traces")
    monkeypatch.delenv("COLUMNS")
    text = shown("--trace", "round1/play0/9")
    assert "[red]markup[/] red   !" in text
    assert "[/broken]" in text
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    for arguments, said in (
        (["--trace", "x/1"], "there is no trace x/1"),
        (["--run", "b"], ".* has no run b; it has: run"),
        (["--phase", "x"], "there are no traces of x: there are round1/play0"),
        (["--traces", "--limit", "0"], "limit must be at least 1, not 0"),
        (["--traces", "--limit", "-1"], "limit must be at least 1, not -1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            shown(*arguments)
        assert re.search(f"error: {said}", capsys.readouterr().err)
    for place, says in (
        (tmp_path / "missing", "there is no store at"),
        (Path(__file__).parent, "not a run's"),
    ):
        with pytest.raises(SystemExit, match="2"):
            show.main([str(place)])
        assert says in capsys.readouterr().err


def test_show_follows_a_run_to_its_server(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        url = url_of(location)
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
