"""The benchmark on a tiny walker: cells, resuming, failures; and suite files that are wrong."""

import csv
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from agents.asked import SettingError, check, config_of
from agents.config import SelfImproveConfig
from agents.run.resume import finish
from agents.self_improve import self_improve
from evals import agent_process
from evals.agent_process import Settings
from evals.benchmark import _over_seeds, main, print_table, run_suite
from evals.command import EvalError
from evals.finished_run import FinishedRun
from evals.suite import METHODS, SHIPPED, Cell, SuiteError, read_suite
from experience.terminal import Terminal
from experience.text import printable
from tests.agents.test_self_improve import QUIET, TINY, open_gate

SETTINGS = {**TINY, "rounds": 1, "steps": 2, "eval_temperature": [0.5]}
del SETTINGS["env_kwargs"]


def run_here(settings: Settings, _: object = ()) -> None:
    """In this process."""
    with open_gate():
        finish(config_of(settings), Path(settings["output"]), lambda config: self_improve(config, QUIET))


def read(suite: str) -> list[Cell]:
    """The cells of a suite that is checked in this process."""
    return read_suite(suite, check)


def benchmark(
    cells: list[Cell], output: Path, run: Callable[[Settings, Sequence[str]], object]
) -> tuple[Any, str]:
    """The table, and what was said."""
    said = StringIO()
    console = Console(file=said, width=200)
    table = run_suite(cells, output, console, run=run, check=check)
    return table, said.getvalue()


def write_suite(path: Path, **parts: Any) -> str:
    """Write a suite of the walker on the dry lake with some parts replaced; returns its path."""
    suite = {
        "settings": SETTINGS,
        "envs": [{"env": "FrozenLake-v1", "name": "dry", "env_kwargs": TINY["env_kwargs"]}],
        "models": ["smollm2"],
        "methods": ["none", "in-context", "off-policy", "opcd"],
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump(suite | parts, sort_keys=False))
    return str(path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    return lambda **parts: write_suite(tmp_path / "suite.yaml", **parts)


def test_a_suite_becomes_cells_that_share_runs(write: Callable[..., str]) -> None:
    cells = read(write(methods=["none", "opcd", "off-policy", {"method": "lora", "lora_rank": 2}]))
    assert len(cells) == 8
    first = {cell.method: cell for cell in cells[:4]}
    assert first["none"].run == first["opcd"].run == Path("dry/smollm2/opcd/seed0")
    assert first["none"].arm == "before"
    assert first["off-policy"].run == Path("dry/smollm2/off-policy/seed0")
    assert (first["off-policy"].settings["data"], first["off-policy"].settings["direction"]) == (
        "teacher",
        "forward",
    )
    assert first["lora"].settings["lora_rank"] == 2
    assert config_of(first["lora"].settings).eval_temperature == (0.5,)
    assert {cell.settings["seed"] for cell in cells} == {0, 1}
    [alone] = read(write(methods=["in-context"], seeds=[3]))
    assert alone.settings["steps"] == 0
    assert alone.run == Path("dry/smollm2/untrained/seed3")


def test_settings_of_an_entry_go_before_the_common_ones(write: Callable[..., str]) -> None:
    [math, lake] = read(
        write(
            settings={"steps": 7, "test_episodes": 9},
            envs=[{"env": "Math-v0", "env_kwargs": {"task": "chain_sum"}, "steps": 8}, "FrozenLake-v1"],
            methods=["opcd"],
            seeds=[0],
        )
    )
    of_math, of_lake = config_of(math.settings), config_of(lake.settings)
    assert (of_math.steps, of_math.test_episodes) == (8, 9)
    assert of_math.waves == 1  # as the env wants it
    assert (of_lake.steps, of_lake.waves) == (7, SelfImproveConfig().waves)


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.yaml")])
def test_suites_that_come_with_the_toolkit_are_in_order(name: str) -> None:
    assert read(name)


def test_the_two_by_two_is_all_ways() -> None:
    of_one_seed = [cell for cell in read("two-by-two") if cell.seed == 0 and cell.arm == "after"]
    ways = {(cell.settings["data"], cell.settings["direction"]) for cell in of_one_seed}
    assert len(of_one_seed) == len(ways) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the suite is a mapping of"),
        ("- 1", "line 1: the suite is a mapping of"),
        ("envs: [a]\nmodel: [b]", "line 2: model is not known here: did you mean models?"),
        ("envs: [a", "line 1: "),
        ("envs: [a]\nseeds: [0]\nenvs: [b]", "line 3: envs stands there twice"),
        ("{envs}\nmodels: []", "line 8: models cannot be []: list should have at least 1 item"),
        ("{envs}\nmodels: [m]", "methods is needed"),
        (
            "{envs}\nmodels: [m]\nmethods: [opc]\nseeds: [0]",
            "line 9: methods[0] is not one of none, in-context",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0, -1]",
            "line 10: seeds[1] cannot be -1: input should be greater than or equal to 0",
        ),
        ("{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0, 0]", "line 10: seeds[1] stands there twice"),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd, opcd]\nseeds: [0]",
            "line 9: methods[1] is called opcd, and shares its path with opcd",
        ),
        (
            "{envs}\nmodels: [{{name: m}}]\nmethods: [opcd]\nseeds: [0]",
            "line 8: models[0] needs a",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [{{method: none, lr: 1}}]\nseeds: [0]",
            "line 9: methods[0] takes no settings",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]\nsettings:\n  lr: 1\n  step: 3",
            "line 13: settings.step is not known here: did you mean steps?",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]\nsettings: {{output: here}}",
            "line 11: settings.output is not known here",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]\nsettings:\n  lr: fast",
            "line 12: settings.lr cannot be: input should be a valid number",
        ),
        (
            "{envs}\nmodels: [m]\nmethods:\n- method: mine\n  loss: none\nseeds: [0]",
            "line 11: methods[0].loss cannot be: input should be 'truncated'",
        ),
        (
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]\nsettings:\n  rounds: 1000",
            "line 12: settings.rounds cannot be: rounds x episodes must be at most 1000000",
        ),
        (
            "{envs}seeds: [0]\nmodels: [m]\nmethods:\n- {{method: lr/1, lr: 1}}\n- {{method: lr-1, lr: 2}}",
            "line 11: methods[1] is called lr-1, and shares its path with lr/1",
        ),
        (
            "{envs}- {{env: FrozenLake-v1, name: frozenlake-V1}}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]",
            "line 7: envs[1] is called frozenlake-V1, and shares its path with FrozenLake-v1",
        ),
        (
            "{envs}- {{env: FrozenLake-v1, name: Benchmark.json}}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]",
            "line 7: envs[1] is called Benchmark.json, and shares its path with a file of the benchmark",
        ),
        (
            "{envs}models: [m]\nmethods: [opcd]\nseeds: [0]\nsettings: {{eval_temperature: 0.7}}",
            "line 10: settings.eval_temperature cannot be: input should be a list",
        ),
        (
            f"{{envs}}models: [m]\nmethods: [opcd]\nseeds: [0x{'F' * 5000}]",
            "line 9: a number has more than 100",
        ),
        (
            f"{{envs}}models: [m]\nmethods: [opcd]\nseeds: [{'9:' * 500}1.5]",
            "line 9: a number has more than 100",
        ),
        (
            "envs: [{{env: e, env_kwargs: !!set {{a}}}}]\nmodels: [m]\nmethods: [opcd]\nseeds: [0]{envs}",
            "line 1: envs[0].env_kwargs is neither a mapping nor a list: leave its tag out",
        ),
        (
            "envs: [{{env: e, env_kwargs: {{a: !!omap [b: 1]}}}}]\n{envs}",
            "line 1: envs[0].env_kwargs.a is neither a mapping nor a list",
        ),
        *(
            (
                f"{{envs}}models: [{{{{model: m, name: {name}}}}}]\nmethods: [opcd]\nseeds: [0]",
                "models[0] needs a",
            )
            for name in ("null", "true", "[1]", "1")
        ),
        ("a: &a [1]\nb: *a", "line 2: no aliases, please"),
        ("{envs}models: [m]\nmethods: [opcd]\nseeds: 2026-05-01", "line 9: seeds is neither text nor"),
        ("{envs}models: [m]\nmethods: [opcd]\nseeds: [0]\nsettings: {{no: 1}}", "settings.no is not text"),
        ('{envs}models: [m]\nmethods: [opcd]\nseeds: [0]\n"\\e[2J\\u202e": 1', "line 10: is not known here"),
        (
            '{envs}models: ["m\\e]0;x\\a"]\nmethods: [opcd]\nseeds: [0]',
            "line 7: models[0] needs a",
        ),
        (
            f"{{envs}}models: [{'m' * 201}]\nmethods: [opcd]\nseeds: [0]",
            "line 7: models[0] needs a",
        ),
        (f"{{envs}}models: [m]\nmethods: [opcd]\nseeds: {[*range(10001)]}", "has more than 10000 cells"),
    ],
)
def test_what_is_wrong_with_a_suite_is_said_with_line_and_key(text: str, says: str, tmp_path: Path) -> None:
    envs = "# a comment\n\nenvs:\n- env: FrozenLake-v1\n  env_kwargs:\n    is_slippery: false\n"
    path = tmp_path / "bad.yaml"
    path.write_text(text.format(envs=envs.rstrip("\n") + "\n") if "{envs}" in text else text)
    with pytest.raises(SuiteError) as error:
        read(str(path))
    assert says in str(error.value)
    assert str(error.value).startswith("bad.yaml, line ")
    assert str(error.value).isprintable()


def test_a_suite_is_as_long_as_it_looks(tmp_path: Path) -> None:
    """Nine times ten aliases of aliases would be a thousand million nodes."""
    names = "abcdefghi"
    lines = ["a: &a [x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in itertools.pairwise(names)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(SuiteError, match=r"bomb\.yaml, line 2: no aliases"):
        read(str(tmp_path / "bomb.yaml"))
    for long in ("#" * (1 << 21), "# é" + "#" * ((1 << 20) - 3)):  # by one byte, with as many characters
        (tmp_path / "long.yaml").write_text(long, encoding="utf-8")
        with pytest.raises(SuiteError, match="more than 1048576 bytes"):
            read(str(tmp_path / "long.yaml"))


KEYS = st.sampled_from(
    [
        "envs",
        "env",
        "models",
        "model",
        "methods",
        "method",
        "seeds",
        "settings",
        "name",
        "steps",
        "env_kwargs",
        "lr",
    ]
) | st.text(max_size=3)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*METHODS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "envs": st.just(["FrozenLake-v1"]) | VALUES,
        "models": st.just(["m"]) | VALUES,
        "methods": st.just(["opcd"]) | VALUES,
        "seeds": st.just([0]) | VALUES,
        "settings": st.dictionaries(KEYS, VALUES, max_size=2) | VALUES,
    },
)


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "any.yaml"


@settings(max_examples=200)
@given(st.text() | PARTS.map(lambda parts: yaml.safe_dump(parts, sort_keys=False)))
def test_any_file_is_a_suite_or_one_clear_error(anywhere: Path, text: str) -> None:
    anywhere.write_bytes(text.encode("utf-8", "surrogatepass"))
    problem = ""
    try:
        assert read(str(anywhere))
    except SuiteError as error:
        problem = str(error)
    assert len(problem.encode().splitlines()) <= 1
    assert printable(problem) == problem


def test_a_suite_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["no-suite", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "there is no suite no-suite" in error
    assert "default, held-out, main, memory, paper-lake, " in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell], str]:
    """The folder of a benchmark that was stopped in its third run and went on; its cells; what was said."""
    folder = tmp_path_factory.mktemp("benchmark")
    models = [{"model": str(walker_folder), "name": "walker"}]
    cells = read(write_suite(folder / "suite.yaml", models=models))
    begun: list[str] = []

    def stopped(settings: Settings, _: object) -> None:
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(settings["output"])
        run_here(settings)

    with pytest.raises(KeyboardInterrupt):
        benchmark(cells, folder / "out", stopped)
    assert len(json.loads((folder / "out" / "benchmark.json").read_text())["cells"]) == 4

    def going_on(settings: Settings, _: object) -> None:
        assert settings["output"] not in begun, "a finished run is not run again"
        run_here(settings)

    _, said = benchmark(cells, folder / "out", going_on)
    return folder / "out", cells, said


def never(settings: Settings, _: object) -> None:
    pytest.fail("a finished run is not run again")


FIGURE = {"ci_low": 0.0, "ci_high": 1.0, "n": 4}


@pytest.mark.parametrize(
    ("rows", "found", "error"),
    [
        (
            [
                {"measure": "sums", "before": FIGURE | {"mean": 0.25}, "after": FIGURE | {"mean": 0.5}}
                | {"after_against_before": FIGURE | {"difference": 0.25, "p_value": 0.5}}
            ],
            {"sums": [0.25, 0.5]},
            None,
        ),
        ([{"measure": "sums"}], None, "is damaged: forgetting.json: rows.0.before: Field required"),
        ("nothing", None, "is damaged: "),
    ],
)
def test_what_else_changed_stands_beside_what_was_gained(
    finished: tuple[Path, list[Cell], str], rows: object, found: object, error: str | None
) -> None:
    output, cells, _ = finished
    file = output / "dry/walker/opcd/seed1/forgetting.json"
    file.write_text(json.dumps({"rows": rows}))
    try:
        benchmark(cells, output, never)
        *others, last = json.loads((output / "benchmark.json").read_text())["cells"]
    finally:
        file.unlink()
        benchmark(cells, output, never)
    assert last["what_else"] == found if error is None else error in last["error"]
    assert all(row["what_else"] is None for row in others if row["error"] is None)


def test_one_table_that_goes_on_where_it_was_stopped(
    finished: tuple[Path, list[Cell], str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, cells, said = finished
    table = json.loads((output / "benchmark.json").read_text())
    (output / "dry/walker/opcd/seed1/report.html").unlink()  # as by a kill just before it
    assert benchmark(cells, output, never)[0] == table
    assert (output / "dry/walker/opcd/seed1/report.html").exists()

    lines = [line for line in said.splitlines() if ", walker, " in line]
    assert len(lines) == 8
    assert re.fullmatch(r"dry, walker, none, seed 0: \d+\.\d% \[\d+\.\d%, \d+\.\d%\]", lines[0])
    assert re.search(r"opcd, seed 1: .* in \d+ s", lines[-1])

    with (output / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows[:4]] == ["none", "in-context", "off-policy", "opcd"]
    assert len(rows) == 8
    run = FinishedRun.read(output / "dry/walker/opcd/seed1")
    assert float(rows[-1]["success_rate"]) == run.results["arms"]["after"]["success_rate"]
    assert all(row["error"] == "" for row in rows)
    assert all(
        row["git_revision"] and "thread" in row["machine"] and float(row["random"]) >= 0 for row in rows
    )

    assert [row["method"] for row in table["methods"]] == ["none", "in-context", "off-policy", "opcd"]
    assert {row["n"] for row in table["methods"]} == {12}  # both seeds
    assert len(table["pairs"]) == 6
    rates = {row["method"]: row["success_rate"] for row in table["methods"]}
    for pair in table["pairs"]:
        difference = rates[pair["first"]] - rates[pair["second"]]
        assert pair["difference"] == pytest.approx(difference)
        assert pair["seeds"] == [0, 1]
    table["methods"][0]["method"] = "raw[bold]"  # as it is: no markup
    print_table(table, Terminal(width=200))
    printed = capsys.readouterr().out
    assert "opcd - off-policy" in printed
    assert " raw[bold] " in printed
    assert printed.count("dry") == 4 + 6


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    finished: tuple[Path, list[Cell], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cells, _ = finished
    output = shutil.copytree(whole, tmp_path / "out")
    for seed in (0, 1):
        shutil.rmtree(output / f"dry/walker/off-policy/seed{seed}")

    def failing(settings: Settings, _: object) -> None:
        assert settings["data"] == "teacher"
        raise ZeroDivisionError("a bug\x1b[2J\nof several lines")

    table, said = benchmark(cells, output, failing)
    errors = {cell["method"]: cell["error"] for cell in table["cells"]}
    # The first trained method's run is the one that none and in-context are arms of.
    assert {method for method, error in errors.items() if error} == {"none", "in-context", "off-policy"}
    assert errors["off-policy"] == "ZeroDivisionError: a bug"
    assert [row["method"] for row in table["methods"]] == ["opcd"]
    assert "off-policy, seed 0: FAILED: ZeroDivisionError: a bug" in said
    assert "Traceback" in said  # a bug, not a user's error
    print_table(table, Terminal(width=200))  # hours later, maybe
    assert "off-policy, seed 1: FAILED: ZeroDivisionError: a bug" in capsys.readouterr().out
    # Mended, the rest is run.

    def mended(settings: Settings, _: object) -> None:
        path = Path(settings["output"])
        shutil.copytree(whole / path.relative_to(output), path, dirs_exist_ok=True)

    table, _ = benchmark(cells, output, mended)
    assert table == json.loads((whole / "benchmark.json").read_text())


@pytest.mark.parametrize("damage", [{"arms": {}}, {"arms": {"before": {}}}, {"wall_seconds": None}])
def test_a_damaged_run_takes_no_other_along(
    finished: tuple[Path, list[Cell], str], tmp_path: Path, damage: dict[str, Any]
) -> None:
    whole, cells, _ = finished
    output = shutil.copytree(whole, tmp_path / "out")
    file = output / "dry/walker/opcd/seed0/results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    table, said = benchmark(cells, output, never)
    failed = {(cell["method"], cell["seed"]) for cell in table["cells"] if cell["error"]}
    assert failed == {("opcd", 0)}
    assert "results.json: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            "DELETE FROM traces WHERE {} AND seed % 2",
            "has 3 of the 6 traces of test/after@0.5 that metrics.jsonl",
        ),
        ("DELETE FROM traces WHERE {}", "has 0 of the 6 traces of test/after@0.5 that metrics.jsonl"),
        (
            "UPDATE traces SET stop_reason = 'not_judged' WHERE {}",
            "has 0 of the 6 judged traces of test/after@0.5 that results.json",
        ),
    ],
)
def test_of_lost_traces_nothing_is_computed(
    finished: tuple[Path, list[Cell], str], tmp_path: Path, damage: str, says: str
) -> None:
    whole, cells, _ = finished
    output = shutil.copytree(whole, tmp_path / "out")
    with closing(sqlite3.connect(output / "dry/walker/opcd/seed0/experience.db")) as store, store:
        store.execute(damage.format("phase = 'test/after@0.5'"))
    table, said = benchmark(cells, output, never)
    failed = {(cell["method"], cell["seed"]) for cell in table["cells"] if cell["error"]}
    assert failed == {("opcd", 0)}
    assert f"opcd, seed 0: FAILED: ExperienceError: the store {says}" in said
    assert {row["method"]: row["n"] for row in table["methods"]}["opcd"] == 6  # the other seed's


def test_other_settings_are_not_mixed_with_finished_runs(
    finished: tuple[Path, list[Cell], str], walker_folder: Path, write: Callable[..., str], tmp_path: Path
) -> None:
    whole, _, _ = finished
    output = shutil.copytree(whole, tmp_path / "out")
    (output / "dry/walker/opcd/seed0/results.json").unlink()  # this one had not come to its end
    changed = write(
        models=[{"model": str(walker_folder), "name": "walker"}],
        methods=["opcd"],
        settings=SETTINGS | {"lr": 0.5},
    )
    for _ in range(2):
        with pytest.raises(EvalError, match=r"seed\d was begun with lr 0\.001, not 0\.5: take another"):
            benchmark(read(changed), output, never)
        shutil.rmtree(output / "dry/walker/opcd/seed0", ignore_errors=True)
    for name in ("benchmark.json", "cells.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), "the table is as it was"


def test_one_benchmark_at_a_time_in_a_folder(write: Callable[..., str], tmp_path: Path) -> None:
    cells, output = read(write(methods=["none"], seeds=[0])), tmp_path / "out"

    def another(settings: Settings, _: object) -> None:
        with pytest.raises(EvalError, match="another benchmark is running in "):
            benchmark(cells, output, never)
        raise agent_process.AgentError("the first is at work")

    for _ in range(2):  # it lets go when it ends
        table, _ = benchmark(cells, output, another)
        assert table["cells"][0]["error"] == "AgentError: the first is at work"
        assert json.loads((output / "benchmark.json").read_text()) == table


def test_a_benchmark_with_a_failed_run_fails(write: Callable[..., str], tmp_path: Path) -> None:
    def failing(what: str, question: Any) -> Any:
        if what == "run":
            raise agent_process.AgentError("no \x1b[2Jmodel", "ModelError")
        return check(question)

    suite = write(methods=["in-context"], seeds=[0])
    with patch.object(agent_process, "ask", failing):
        assert main([suite, "--output", str(tmp_path / "out")]) == 1
    [cell] = json.loads((tmp_path / "out" / "benchmark.json").read_text())["cells"]
    assert cell["error"] == "ModelError: no model"


def test_settings_are_checked_in_one_process() -> None:
    good = {"env": "Math-v0", "lr": "2e-4", "eval_temperature": [0.0], "env_kwargs": {"task": "chain_sum"}}
    assert agent_process.check([good, {"lr": "fast"}, {"step": 1}]) == [
        None,
        {
            "setting": "lr",
            "problem": "cannot be: input should be a valid number, unable to parse string as a number",
        },
        {"setting": "step", "problem": "is not known here: did you mean steps?"},
    ]
    assert agent_process.check([]) == []


def test_settings_are_those_of_the_command_line() -> None:
    assert config_of({"env": "Math-v0", "lr": 1}) == SelfImproveConfig.for_env("Math-v0", lr=1.0)
    with pytest.raises(SettingError, match="loss cannot be: input should be 'truncated'"):
        config_of({"loss": "none"})


def test_methods_differ() -> None:
    assert len({str(settings) for _, settings in METHODS.values()}) == len(METHODS) - 1


def traces_of(
    method: str, seeds: range, successes: Iterable[bool], *, run_seed: int = 0, is_sampled: bool = False
) -> pd.DataFrame:
    """Episodes of a method."""
    values: dict[str, Any] = {
        "env": "lake",
        "model": "m",
        "method": method,
        "run_seed": run_seed,
        "is_sampled": is_sampled,
        "total_reward": 1.0,
        "num_turns": 1,
        "invalid_replies": 0,
        "prompt_tokens": 1,
    }
    return pd.DataFrame({"seed": seeds, "success": [*successes]}).assign(**values)


def test_methods_are_compared_on_the_episodes_that_both_have() -> None:
    def arm(method: str, seeds: range, *, is_sampled: bool = False) -> pd.DataFrame:
        return traces_of(method, seeds, (seed % 2 == 0 for seed in seeds), is_sampled=is_sampled)

    frames = [arm("none", range(12)), arm("quick", range(4)), arm("other", range(90, 94))]
    frames.append(arm("unknown", range(12)).assign(stop_reason="not_judged"))
    table = _over_seeds([*frames, arm("quick", range(5), is_sampled=True)])
    assert {row["method"]: row["sampled"] and row["sampled"]["n"] for row in table["methods"]} == {
        "none": None,
        "quick": 5,
        "other": None,
    }
    assert {row["method"]: row["n"] for row in table["methods"]} == {"none": 12, "quick": 4, "other": 4}
    assert [(row["first"], row["second"], row["n"]) for row in table["pairs"]] == [("quick", "none", 4)]
