"""The benchmark on a tiny walker: cells, resuming, failures; and suite files that are wrong."""

import csv
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from agents.config import SelfImproveConfig
from agents.run.run import Run
from agents.self_improve import self_improve
from envs.words import EnvError
from evals import benchmark
from evals.benchmark import BrokenRunError, _over_seeds, in_a_process, main, print_table, run_suite
from evals.finished_run import FinishedRun
from evals.suite import AXES, METHODS, SHIPPED, SuiteError, read_suite
from tests.agents.test_self_improve import QUIET, TINY, open_gate

SETTINGS = {**TINY, "rounds": 1, "steps": 2, "eval_temperature": [0.5]}
del SETTINGS["env_kwargs"]


def in_this_process(config: SelfImproveConfig) -> None:
    with open_gate():
        self_improve(config, QUIET)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a suite of the walker on the dry lake with some parts replaced; returns its path."""

    def write(**parts: Any) -> str:
        suite = {
            "settings": SETTINGS,
            "envs": [{"env": "FrozenLake-v1", "name": "dry", "env_kwargs": {"is_slippery": False}}],
            "models": ["smollm2"],
            "methods": ["none", "in-context", "off-policy", "opcd"],
            "seeds": [0, 1],
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(suite | parts, sort_keys=False))
        return str(path)

    return write


def test_a_suite_becomes_cells_that_share_runs(write: Callable[..., str]) -> None:
    cells = read_suite(write(methods=["none", "opcd", "off-policy", {"method": "lora", "lora_rank": 2}]))
    assert len(cells) == 8
    first = {cell.method: cell for cell in cells[:4]}
    assert first["none"].run == first["opcd"].run == Path("dry/smollm2/opcd/seed0")
    assert first["none"].arm == "before"
    assert first["off-policy"].run == Path("dry/smollm2/off-policy/seed0")
    assert (first["off-policy"].config.data, first["off-policy"].config.direction) == ("teacher", "forward")
    assert first["lora"].config.lora_rank == 2
    assert first["lora"].config.eval_temperature == (0.5,)
    assert {cell.config.seed for cell in cells} == {0, 1}
    [alone] = read_suite(write(methods=["in-context"], seeds=[3]))
    assert alone.config.steps == 0
    assert alone.run == Path("dry/smollm2/untrained/seed3")


def test_settings_of_an_entry_go_before_the_common_ones(write: Callable[..., str]) -> None:
    [math, lake] = read_suite(
        write(
            settings={"steps": 7, "test_episodes": 9},
            envs=[{"env": "Math-v0", "env_kwargs": {"task": "chain_sum"}, "steps": 8}, "FrozenLake-v1"],
            methods=["opcd"],
            seeds=[0],
        )
    )
    assert (math.config.steps, math.config.test_episodes) == (8, 9)
    assert math.config.waves == 1  # as the env wants it
    assert (lake.config.steps, lake.config.waves) == (7, SelfImproveConfig().waves)


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.yaml")])
def test_suites_that_come_with_the_toolkit_are_in_order(name: str) -> None:
    assert read_suite(name)


def test_the_two_by_two_is_all_four_ways() -> None:
    cells = read_suite("two-by-two")
    ways = {(cell.config.data, cell.config.direction) for cell in cells}
    assert len(cells) == len(ways) == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the suite is a mapping of"),
        ("- 1", "line 1: the suite is a mapping of"),
        ("envs: [a]\nmodel: [b]", "line 2: model is not known here: did you mean models?"),
        ("envs: [a", "line 1: "),
        ("envs: [a]\nseeds: [0]\nenvs: [b]", "line 3: envs stands there twice"),
        ("{envs}\nmodels: []", "line 8: models is needed: a list of at least one, not []"),
        ("{envs}\nmodels: [m]", "methods is needed"),
        ("{envs}\nmodels: [m]\nmethods: [opc]\nseeds: [0]", "line 9: methods[0] is none of none, in-context"),
        ("{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0, -1]", "line 10: seeds[1] is a whole number"),
        ("{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0, 0]", "line 10: seeds[0] is a whole number"),
        ("{envs}\nmodels: [m]\nmethods: [opcd, opcd]\nseeds: [0]", "one of several opcd"),
        ("{envs}\nmodels: [{{name: m}}]\nmethods: [opcd]\nseeds: [0]", "line 8: models[0] needs a name"),
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
            "{envs}\nmodels: [m]\nmethods: [opcd]\nseeds: [0]\nsettings:\n  waves: 7",
            "line 12: settings.waves cannot be: episodes (768) must be a multiple of waves (7)",
        ),
    ],
)
def test_what_is_wrong_with_a_suite_is_said_with_line_and_key(text: str, says: str, tmp_path: Path) -> None:
    envs = "# a comment\n\nenvs:\n- env: FrozenLake-v1\n  env_kwargs:\n    is_slippery: false\n"
    path = tmp_path / "bad.yaml"
    path.write_text(text.format(envs=envs.rstrip("\n") + "\n") if "{envs}" in text else text)
    with pytest.raises(SuiteError) as error:
        read_suite(str(path))
    assert says in str(error.value)
    assert str(error.value).startswith("bad.yaml, line ")
    assert "\n" not in str(error.value)


KEYS = st.sampled_from([*AXES, *AXES.values(), "seeds", "settings", "name", "steps", "env_kwargs", "lr"])
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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | PARTS.map(lambda parts: yaml.safe_dump(parts, sort_keys=False)))
def test_any_file_is_a_suite_or_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    problem = ""
    try:
        assert read_suite(str(path))
    except SuiteError as error:
        problem = str(error)
    assert "\n" not in problem


def test_a_suite_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["no-suite", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "there is no suite no-suite" in error
    assert "default, paper-lake, seed-efficiency, two-by-two" in error
    assert not (tmp_path / "out").exists()


def test_one_table_that_goes_on_where_it_was_stopped(
    walker_folder: Path, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, said = tmp_path / "out", StringIO()
    console = Console(file=said, width=200)
    cells = read_suite(write(models=[{"model": str(walker_folder), "name": "walker"}]))
    begun: list[Path | None] = []

    def stopped(config: SelfImproveConfig) -> None:
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(config.output)
        in_this_process(config)

    with pytest.raises(KeyboardInterrupt):
        run_suite(cells, output, console, stopped)
    assert len(json.loads((output / "benchmark.json").read_text())["cells"]) == 4
    table = run_suite(cells, output, console, in_this_process)
    with patch.object(Run, "play", side_effect=AssertionError("a finished cell is not run again")):
        assert run_suite(cells, output, QUIET, in_this_process) == table
    assert json.loads((output / "benchmark.json").read_text()) == table

    lines = [line for line in said.getvalue().splitlines() if ", walker, " in line]
    assert len(lines) == 4 + 8  # the first attempt got through two runs
    assert re.fullmatch(r"dry, walker, none, seed 0: \d+\.\d% \[\d+\.\d%, \d+\.\d%\]", lines[0])
    assert re.search(r"opcd, seed 1: .* in \d+ s", lines[-1])

    with (output / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows[:4]] == ["none", "in-context", "off-policy", "opcd"]
    assert len(rows) == 8
    run = FinishedRun.read(output / "dry/walker/opcd/seed1")
    assert float(rows[-1]["success_rate"]) == run.results["arms"]["after"]["success_rate"]
    assert all(row["error"] == "" for row in rows)

    assert [row["method"] for row in table["methods"]] == ["none", "in-context", "off-policy", "opcd"]
    assert {row["n"] for row in table["methods"]} == {12}  # both seeds
    assert len(table["pairs"]) == 6
    rates = {row["method"]: row["success_rate"] for row in table["methods"]}
    for pair in table["pairs"]:
        difference = rates[pair["first"]] - rates[pair["second"]]
        assert pair["difference"] == pytest.approx(difference)
        assert pair["seeds"] == [0, 1]
    print_table(table, Console(width=200))
    printed = capsys.readouterr().out
    assert "opcd - off-policy" in printed
    assert printed.count("dry") == 4 + 6


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    walker_folder: Path, write: Callable[..., str], tmp_path: Path
) -> None:
    suite = write(models=[{"model": str(walker_folder), "name": "walker"}], seeds=[0])
    said = StringIO()

    def failing(config: SelfImproveConfig) -> None:
        if config.data == "teacher":
            raise ZeroDivisionError("a bug\nof several lines")
        in_this_process(config)

    console = Console(file=said, width=200)
    table = run_suite(read_suite(suite), tmp_path / "out", console, failing)
    errors = {cell["method"]: cell["error"] for cell in table["cells"]}
    # The first trained method's run is the one that none and in-context are arms of.
    assert {method for method, error in errors.items() if error} == {"none", "in-context", "off-policy"}
    assert errors["off-policy"] == "ZeroDivisionError: a bug"
    assert [row["method"] for row in table["methods"]] == ["opcd"]
    assert "off-policy, seed 0: FAILED: ZeroDivisionError: a bug" in said.getvalue()
    assert "Traceback" in said.getvalue()  # a bug, not a user's error
    # Mended, the rest is run.
    table = run_suite(read_suite(suite), tmp_path / "out", QUIET, in_this_process)
    assert not any(cell["error"] for cell in table["cells"])


def test_other_settings_are_not_mixed_with_finished_runs(
    walker_folder: Path, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [{"model": str(walker_folder), "name": "walker"}]
    output = str(tmp_path / "out")
    with patch.object(benchmark, "in_a_process", in_this_process):
        assert main([write(models=models, methods=["in-context"], seeds=[0]), "--output", output]) == 0
        changed = write(models=models, methods=["in-context"], seeds=[0], settings=SETTINGS | {"lr": 0.5})
        assert main([changed, "--output", output]) == 1
    assert "begun with lr 0.001, not 0.5" in " ".join(capsys.readouterr().err.split())


def die(config: SelfImproveConfig) -> None:
    os._exit(9)


def test_a_run_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvError, match="did you mean FrozenLake-v1"):
        in_a_process(SelfImproveConfig(env="FrozenLak-v1", output=tmp_path / "run"))
    monkeypatch.setattr(benchmark, "_self_improve", die)
    with pytest.raises(BrokenRunError, match="process died"):
        in_a_process(SelfImproveConfig())


def wait(config: SelfImproveConfig) -> None:
    """Says that it has begun, and that it was interrupted."""
    assert config.output is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (config.output / "begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (config.output / "interrupted").touch()
        raise


def test_an_interruption_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_self_improve", wait)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_a_process(SelfImproveConfig(output=tmp_path))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "interrupted").exists()


def test_methods_differ() -> None:
    assert len({str(settings) for _, settings in METHODS.values()}) == len(METHODS) - 1


def test_methods_are_compared_on_the_episodes_that_both_have() -> None:
    def arm(method: str, seeds: range) -> pd.DataFrame:
        frame = pd.DataFrame({"seed": seeds, "success": [seed % 2 == 0 for seed in seeds]})
        values = {
            "run_seed": 0,
            "total_reward": 1.0,
            "num_turns": 1,
            "invalid_replies": 0,
            "prompt_tokens": 1,
        }
        return frame.assign(env="e", model="m", method=method, **values)

    table = _over_seeds([arm("none", range(12)), arm("quick", range(4)), arm("other", range(90, 94))])
    assert {row["method"]: row["n"] for row in table["methods"]} == {"none": 12, "quick": 4, "other": 4}
    assert [(row["first"], row["second"], row["n"]) for row in table["pairs"]] == [("quick", "none", 4)]
