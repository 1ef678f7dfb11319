"""The report and the comparison, as text and in a browser."""

import dataclasses
import errno
import functools
import itertools
import json
import math
import operator
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest

from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from envs import register_text
from evals.finished_run import FinishedRun, part_of
from evals.page import duration, p_text, plural, points, write_page, write_whole
from evals.plots import curves_plot
from evals.replay import MAX_FRAMES, Frame, _thinned, replay_pairs
from evals.report import _candidates, _insights, main, print_summary, ways, write_report
from evals.result import judged
from experience.context import ContextScore
from experience.insight import Insight
from experience.show import main as show
from experience.store import ExperienceStore
from experience.terminal import Terminal
from tests.agents.test_self_improve import QUIET, TINY
from tests.browser import needs_chromium, screenshot, visit


class Corridor(gym.Env[Any, Any]):
    """Three squares in a row; it draws itself."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(4)
    drawn = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.at = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self.at, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.at += 1
        return self.at, float(action == 2), self.at == 3, False, {}

    def render(self) -> Any:
        Corridor.drawn += 1
        return np.full((300, 400, 3), 60 * self.at, dtype=np.uint8)


@pytest.fixture(scope="module")
def corridor(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in an env that draws itself."""
    gym.register("Corridor-v0", entry_point="tests.evals.test_report:Corridor", max_episode_steps=9)
    register_text(
        "Corridor-v0",
        rules="Go <on> & win.",
        actions=("left", "down", "right", "up"),
        reply_prefix="I move",
        describe=lambda at: f"<b>Square</b> {at}.",
        advise=lambda situation, action: f"{situation} Move {action}.",
    )
    path = tmp_path_factory.mktemp("corridor") / "run"
    config = SelfImproveConfig(
        env="Corridor-v0", model=str(walker_folder), output=path, **(TINY | {"env_kwargs": {}, "rounds": 1})
    )
    self_improve(config, QUIET)
    return path


def text_of(path: Path) -> str:
    """The words of a page, without its scripts, in one line."""
    html = re.sub(r"<(script|style|svg).*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_story_comes_first(lake: Path) -> None:
    text = text_of(lake / "report.html")
    headings = ["What it learned", "What it does now", "What it cost", "How it went", "What the gate tried"]
    assert [text.index(heading) for heading in headings] == sorted(text.index(h) for h in headings)
    results = json.loads((lake / "results.json").read_text())
    rate = f"{results['arms']['after']['success_rate']:.1%}"
    assert f"succeeds in {rate} now" in text
    assert "Of 6 test episodes" in text
    assert "An episode succeeds when " in text
    assert "6 optimiser steps with 8 completions" in text
    with ExperienceStore(lake / "experience.db") as store:
        states = store.insights()["state"].value_counts()
    kept, others = states["active"], states["retired"]
    assert min(kept, others) > 1
    assert f"{kept} insights went into the weights; {others} others were drawn" in text
    assert not re.search(r"\b1 (insights|moves|turns|episodes|others)\b", text)


def test_a_run_that_trained_nothing_says_so(corridor: Path) -> None:
    text = text_of(corridor / "report.html")
    assert "Nothing was trained into the weights: no context passed the gate." in text
    assert "0 insights went into the weights" in text
    assert "There was nothing to train." in text
    assert "In the prompt or in the weights?" not in text


def test_weights_and_context_at_equal_cost(lake: Path) -> None:
    text = text_of(lake / "report.html")
    (name, prompt, weights), _ = ways(FinishedRun.read(lake))
    assert name == "greedy"
    for way, arm in ((prompt, "before_with_experience"), (weights, "after")):
        with ExperienceStore(lake / "experience.db") as store:
            traces = store.traces(phase=f"test/{arm}@0")
        assert way.tokens == pytest.approx(traces["prompt_tokens"].mean())
        assert way.arm == results_of(lake)["arms"][arm]
        assert 0 < way.seconds < 60
    bought = 1e6 * weights.arm["success_rate"] / weights.tokens
    assert f"a million prompt tokens buy {bought:,.0f} successes from the weights" in text
    assert "Seconds are those of this run's machine" in text
    assert "seconds" not in json.dumps(results_of(lake)["arms"])  # figures that others can reproduce


def test_what_self_distillation_alone_would_do(lake: Path) -> None:
    results = results_of(lake)
    assert results["arms"]["empty_context"] == results["arms"]["before"]  # greedily the same is said
    with ExperienceStore(lake / "experience.db") as store:
        assert store.traces(phase="test/empty_context@0").empty
        control = store.traces(phase="test/empty_context@0.7")
    assert set(control["policy_id"]) == {"base"}
    assert set(control["context_id"]) == {"none"}
    assert results["sampled_arms"]["empty_context"]["successes"] == control["success"].sum()
    assert "Against this empty-context teacher the trained agent's success differs by" in text_of(
        lake / "report.html"
    )


def results_of(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((path / "results.json").read_text())
    return results


def test_success_is_what_the_run_says_it_is(lake: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lake, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"success_means": "it is a <dry> crossing"}))
    assert "An episode succeeds when it is a &lt;dry&gt; crossing." in write_report(run).read_text()


def test_what_was_forgotten_is_shown_where_it_was_measured(lake: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lake, tmp_path / "run")
    (run / "forgetting.json").unlink()
    assert "What else it can do" not in text_of(write_report(run))
    mean = {"mean": 0.5, "ci_low": 0.25, "ci_high": 0.75, "n": 9}
    change = {"difference": -0.125, "ci_low": -0.25, "ci_high": 0.0, "p_value": 0.04, "n": 9}
    rows = [
        {"measure": measure, "before": mean, "after": mean, "after_against_before": change}
        for measure in ("task: sums", "held-out text, nats per token")
    ]
    (run / "forgetting.json").write_text(json.dumps({"models": {}, "rows": rows}))
    text = text_of(write_report(run))
    assert "task: sums 50.0% 25.0% to 75.0%, n = 9" in text
    assert "-12.5% -25.0% to 0.0%, p = 0.04" in text
    assert "held-out text, nats per token 0.500 0.250 to 0.750, n = 9" in text


def test_what_could_not_be_judged_is_shown_as_no_failure(lake: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lake, tmp_path / "run")
    with closing(sqlite3.connect(run / "experience.db")) as store, store:
        store.execute(
            "UPDATE traces SET stop_reason = 'not_judged', success = 0 WHERE phase = 'test/before@0'"
            " AND seed % 2"
        )
    results = results_of(run)
    with ExperienceStore(run / "experience.db") as experience:
        left = judged(experience.traces(phase="test/before@0"))
        results["arms"]["before"]["n"] = len(left)
        (run / "results.json").write_text(json.dumps(results))
        pairs = replay_pairs(FinishedRun.read(run), experience)
    assert pairs
    assert {pair[0].seed for _, pair in pairs} <= {*left["seed"]}
    assert all(pair[0].ending != "not judged" for _, pair in pairs)


def test_the_lake_is_drawn_by_its_own_board(lake: Path) -> None:
    with ExperienceStore(lake / "experience.db") as store:
        pairs = replay_pairs(FinishedRun.read(lake), store)
    assert pairs
    for _, (before, after) in pairs:
        assert before.seed == after.seed
        for replay in (before, after):
            assert replay.board == ("SFFF", "FHFH", "FFFH", "HFFG")
            for frame in replay.frames:
                row, column = map(int, re.findall(r"\d+", frame.observation))
                assert frame.place == 4 * (row - 1) + column - 1
            assert replay.frames[-1].reply is None


def test_the_papers_lake_has_the_board_of_its_episode(walker_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    config = SelfImproveConfig(
        env="OPCD/RandomFrozenLake-v0",
        model=str(walker_folder),
        output=path,
        **(TINY | {"env_kwargs": {}, "rounds": 1, "memory": "last-2"}),
    )
    self_improve(config, QUIET)
    with ExperienceStore(path / "experience.db") as store:
        pairs = replay_pairs(FinishedRun.read(path), store)
    for replay in (replay for _, pair in pairs for replay in pair):
        assert replay.board is not None
        assert replay.board[0][0] == "S"
        for frame in replay.frames:
            squares = re.findall(r"\b[PFHG]\b", frame.observation)
            assert frame.place == squares.index("P")


def test_an_env_that_draws_itself_is_shown(corridor: Path) -> None:
    with ExperienceStore(corridor / "experience.db") as store:
        [(_, pair), *_] = replay_pairs(FinishedRun.read(corridor), store)
    for replay in pair:
        assert replay.board is None
        assert all((frame.image or "").startswith("data:image/png;base64,") for frame in replay.frames)
        assert len({frame.image for frame in replay.frames}) > 1
    html = (corridor / "report.html").read_text()
    assert "<b>Square</b>" not in html  # what an env says is text
    assert "Square" in html


def test_an_env_that_does_not_repeat_itself_is_told_in_words(
    corridor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(self: Corridor, **_: Any) -> tuple[int, dict[str, Any]]:
        self.at = 1
        return self.at, {}

    monkeypatch.setattr(Corridor, "reset", elsewhere)
    with ExperienceStore(corridor / "experience.db") as store:
        [(_, pair), *_] = replay_pairs(FinishedRun.read(corridor), store)
    assert all(frame.image is None for replay in pair for frame in replay.frames)


def test_long_episodes_are_thinned_evenly() -> None:
    frames = [Frame(turn=i, observation="", reply="", reward="") for i in range(1000)]
    shown = [frame.turn for frame in _thinned(frames)]
    assert len(shown) <= MAX_FRAMES
    assert shown[-1] == 999
    assert len({b - a for a, b in itertools.pairwise(shown)}) == 1
    heavy = [dataclasses.replace(frame, image="x" * 100_000) for frame in frames[:50]]
    assert 1 <= len(_thinned(heavy)) <= 6


def test_every_moment_belongs_to_a_part(lake: Path) -> None:
    run = FinishedRun.read(lake)
    assert sum(run.seconds().values()) == pytest.approx(run.metrics[-1]["seconds"])
    parts = {name: part_of(name) for name in ("round1/play0", "round2/start", "gate/none", "round1/gate/a/0")}
    assert list(parts.values()) == ["play", "play", "gate", "gate"]
    assert [part_of(n) for n in ("step3", "validation3@0.7", "validation3", "stop4", "test/after@0")] == [
        *("training", "validation", "validation", "training", "test")
    ]


def test_numbers_are_written_as_people_write_them() -> None:
    assert [plural(n, "insight") for n in (0, 1, 2, 1200)] == [
        *("0 insights", "1 insight", "2 insights", "1,200 insights")
    ]
    assert plural(2, "reply", "replies") == "2 replies"
    assert [duration(s) for s in (4.6, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 5 min"]
    assert [p_text(p) for p in (0.0312, 1e-9)] == ["p = 0.031", "p < 0.0001"]
    assert points(-0.125) == "\N{MINUS SIGN}12.5"
    assert points(-0.0001) == "+0.0"


def test_runs_side_by_side(
    lake: Path, corridor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(lake, tmp_path / "the $other$_{run")  # no formula
    about = json.loads((other / "config.json").read_text())
    about["config"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(about))
    page = tmp_path / "page.html"
    main([str(lake), str(other), str(corridor), "--output", str(page)])
    assert capsys.readouterr().out.strip() == str(page)
    text = text_of(page)
    assert "3 runs compared" in text
    assert " lr " in text
    assert "0.5" in text
    assert " batch_size " not in text  # the same in all
    # The second was tested on the first one's seeds, the third in another env.
    rows = re.findall(r"<tr><td>.*?</tr>", page.read_text(), re.DOTALL)
    assert [row.count("</span>") for row in rows] == [4, 5, 4]
    assert page.read_text().count("<svg") == 2
    assert "lowest to highest" not in text
    main([str(other)])
    assert capsys.readouterr().out.strip() == str(other / "report.html")


@pytest.mark.filterwarnings("error")
def test_a_plot_of_nothing_has_no_legend(corridor: Path) -> None:
    assert "<svg" in curves_plot({"untrained": FinishedRun.read(corridor)}, "Success")


def test_seeds_side_by_side_show_their_spread(lake: Path, tmp_path: Path) -> None:
    runs = [lake]
    for seed, rate in ((8, 0.9), (9, 0.4)):
        runs.append(shutil.copytree(lake, tmp_path / f"seed{seed}"))
        about, results = (json.loads((lake / name).read_text()) for name in ("config.json", "results.json"))
        about["config"]["seed"], results["arms"]["after"]["success_rate"] = seed, rate
        (runs[-1] / "config.json").write_text(json.dumps(about))
        (runs[-1] / "results.json").write_text(json.dumps(results))
    rate = json.loads((lake / "results.json").read_text())["arms"]["after"]["success_rate"]
    low, middle, high = sorted((rate, 0.9, 0.4))
    main([*map(str, runs), "--output", str(tmp_path / "page.html")])
    text = " ".join(text_of(tmp_path / "page.html").split())
    assert "3 seeds: median lowest to highest" in text
    assert f"{middle:.1%} {100 * low:.1f} to {high:.1%}" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name the folder"),
        (["/no/such/run"], "/no/such/run is not the folder of a finished run"),
        (["{lake}", "{lake}"], "named twice"),
    ],
)
def test_bad_folders_are_clear_errors(
    args: list[str], says: str, lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([arg.format(lake=lake) for arg in args])
    assert says in capsys.readouterr().err.replace("\n", "")


def damaged(run: Path, name: str, damage: Any) -> None:
    """Damage a run's store by an UPDATE, or change what a JSON file or the metrics of a kind hold."""
    if name == "experience.db":
        with closing(sqlite3.connect(run / name)) as store, store:
            store.execute(f"UPDATE {damage}")
        return
    file, _, kind = name.partition(" ")
    lines = (run / file).read_text().splitlines() if kind else [(run / file).read_text()]
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        for place, value in damage.items() if entry.get("kind", "") == kind else ():
            *way, key = place.split(".")
            functools.reduce(operator.getitem, way, entry)[key] = value
    (run / file).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (
            "experience.db",
            "traces SET phase = 'x y z' WHERE phase = 'gate/none'",
            "traces of gate/none",
        ),
        ("experience.db", "context_scores SET phase = 'x y z'", "'x y z' is not a phase of a run"),
        ("experience.db", "context_scores SET successes = 1000", "more successes than episodes"),
        ("experience.db", "context_scores SET insight_ids = '[{}]'", "holds other JSON than it should"),
        ("experience.db", "turns SET observation = x'ff'", "is not text"),
        ("experience.db", "runs SET run_id = x'ff'", "is not text"),
        ("results.json", {"arms.after.endings": {"terminated": 0}}, "endings are of fewer episodes than n"),
        ("results.json", {"arms.after.prompt_tokens_per_turn": 1e308}, "less than or equal to"),
        ("results.json", {"arms.x\ny": {}}, "arms.x y.success_rate: Field required"),
        ("config.json", {"run_id": "x\ny"}, "has no run x y; it has: "),
        ("results.json", {"arms.after.n": 1}, "judged traces of test/after@0 that results.json tells of"),
        ("results.json", {"arms.after.endings": {"a": 2**53}}, "less than 9007199254740992"),
        ("results.json", {"comparison.difference": 1e308}, "Input should be between"),
        ("results.json", {"eval_temperature": [0.0, 1e308]}, "less than or equal to"),
        ("results.json", {"env_kwargs": json.loads("[" * 200 + "]" * 200)}, "nested more than 100 deep"),
        ("config.json", {"config.top_k": -1}, "greater than or equal to 0"),
        ("config.json", {"config.chat_template_kwargs": 5}, "valid dictionary"),
        ("metrics.jsonl train", {"kl": 1e308}, "Input should be between"),
        ("metrics.jsonl train", {"entropy": -1e308}, "Input should be between"),
        ("metrics.jsonl play", {"key": "validation1@nan"}, "is not a phase of a run"),
        ("metrics.jsonl play", {"key": "step" + "9" * 5000}, "is not a phase of a run"),
        # What says little is shown all the same.
        ("experience.db", "traces SET total_reward = 9e999", None),
        ("experience.db", "turns SET reward = 9e999", None),
        ("results.json", {"env": "\ud800\x00", "env_kwargs": {"\udfff": "\ud800"}}, None),
        ("results.json", {"arms.after.prompt_tokens_per_turn": 1e-300}, None),
        ("results.json", {"arms.after.turns_per_episode": 5e-324}, None),
        ("metrics.jsonl train", {"entropy": math.nan, "student_mass": math.inf}, None),
    ],
)
def test_what_is_damaged_is_said_in_a_line(
    name: str,
    damage: Any,
    says: str | None,
    lake: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(lake, tmp_path / "run", ignore=shutil.ignore_patterns("model", "*.safetensors"))
    damaged(run, name, damage)
    comparison = ["--output", str(tmp_path / "page.html")]
    codes = []
    for command, args in (
        *((main, []), (main, [str(lake), *comparison])),
        *((show, []), (show, ["--traces"]), (show, ["--trace", "round1/play0/0"])),
    ):
        try:
            command([str(run), *args])
        except SystemExit as error:
            codes.append(error.code)
    errors = capsys.readouterr().err.splitlines()
    assert codes == [2] * len(errors)
    assert bool(errors) == (says is not None)
    assert all(line.startswith("error: ") and (says or "") in line for line in errors)
    if says is None:  # and a browser can read it
        page = (run / "report.html").read_text(encoding="utf-8")
        for data in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
            json.loads(data, parse_constant=pytest.fail)


def test_names_steer_no_terminal(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((lake / "results.json").read_text()) | {"env": "L[bold]ake\x1b]0;title\x07\u202e"}
    print_summary(results, lake, Terminal(width=200))
    printed = capsys.readouterr().out
    assert "L[bold]ake: success on test" in printed
    assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    with pytest.raises(SystemExit, match="2"):
        main(["/no/\x1b[2Jrun"])
    assert "error: /no/run is not the folder" in capsys.readouterr().err


def test_the_summary_says_what_the_table_does_not(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That nothing was kept, and that the agent did not act."""
    results = json.loads((lake / "results.json").read_text())
    for best_step, rate in ((2, 0.01), (0, 0.27)):
        results["best_step"] = best_step
        results["arms"]["before"]["invalid_rate"] = rate
        results["arms"]["after"]["invalid_rate"] = 0.0
        print_summary(results, lake, Terminal(width=200))
        printed = capsys.readouterr().out
        assert ("nothing went into the weights" in printed) == (best_step == 0)
        assert ("replies without an action or an answer, greedy: before 27%" in printed) == (rate > 0.05)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(Exception, match="undefined"):
        write_page(target, "report.html.j2")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_for_which_there_is_no_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=full))
    with pytest.raises(OSError, match=r"No space left on device: .*page\.html'"):
        write_whole(tmp_path / "page.html", "new")


def test_the_gate_shows_its_candidates(tmp_path: Path) -> None:
    insights = [
        Insight(text=f"Advice {i}.", observation=None, score=0.5, support=1, source="llm") for i in range(3)
    ]
    with ExperienceStore(tmp_path / "experience.db") as store:
        store.set_insights(insights, "round1/write")
        store.add_scores(
            ContextScore(
                phase="round1/gate",
                context_id=f"context{i}",
                insight_ids=(insights[i].id,) if i < 2 else tuple(insight.id for insight in insights),
                policy_id="base",
                seeds=tuple(range(n)),
                successes=successes,
                successes_without=1,
                p_value=0.01,
                admitted=admitted,
                verdict="why",
            )
            for i, (n, successes, admitted) in enumerate([(2, 1, False), (16, 12, True), (2, 2, False)])
        )
        [(round_number, plot, rows)] = _candidates(store, _insights(store))
    assert round_number == 1
    assert [row["text"] for row in rows] == ["Advice 1.", "3 insights together", "Advice 0."]
    assert [row["success_rate"] for row in rows] == [0.75, 1.0, 0.5]
    assert [row["is_admitted"] for row in rows] == [True, False, False]
    assert plot.startswith("<figure><figcaption>Round 1")


# --- in a browser -----------------------------------------------------------------------------------

PLAY = """
const card = document.querySelector(".episode"), seen = new Set();
const look = () => seen.add(card.querySelector(".turn").textContent + (card.querySelector(".here, .look") ?
  [...card.querySelectorAll(".cell")].findIndex(c => c.classList.contains("here")) : ""));
look();
card.querySelector("button").click();
setInterval(() => { look(); document.body.dataset.seen = seen.size; }, 100);
"""


@needs_chromium
@pytest.mark.parametrize("which", ["lake", "corridor"])
def test_the_replay_moves(which: str, request: pytest.FixtureRequest) -> None:
    seen = visit(request.getfixturevalue(which) / "report.html", PLAY)
    assert seen.errors == []
    found = re.search(r'<body data-seen="(\d+)"', seen.html)
    assert found
    assert int(found[1]) >= 3


@needs_chromium
def test_an_error_in_the_console_is_seen(lake: Path) -> None:
    """That the tests above could fail."""
    assert visit(lake / "report.html", "nonsense()").errors
    # The page may ask nobody for anything.
    assert visit(lake / "report.html", "new Image().src = 'http://localhost:9/x.png'").errors


@needs_chromium
@pytest.mark.parametrize("width", [390, 1000])
def test_the_page_is_not_blank_in_light_and_dark(width: int, lake: Path, tmp_path: Path) -> None:
    light, dark = (
        screenshot(lake / "report.html", tmp_path / f"{is_dark}.png", width=width, dark=is_dark)
        for is_dark in (False, True)
    )
    for pixels in (light, dark):
        assert pixels.shape[1] == width
        assert pixels.std() > 10
    assert light.mean() > 200 > 80 > dark.mean()


THINK = """
const card = document.querySelector(".episode"), thought = card.querySelector(".thought");
thought.hidden = false;
thought.open = true;
thought.querySelector(".says").textContent = "I think. ".repeat(2000);
const [reply, below] = [".reply", ".controls"].map(name => card.querySelector(name).getBoundingClientRect());
document.body.dataset.room = Math.round(below.top - reply.bottom);
"""


@needs_chromium
def test_a_long_thought_does_not_push_the_action_out_of_sight(lake: Path) -> None:
    found = re.search(r'data-room="(-?\d+)"', visit(lake / "report.html", THINK).html)
    assert found
    assert int(found[1]) >= 0


def test_a_run_of_one_temperature_or_without_the_control_has_a_report_too(lake: Path, tmp_path: Path) -> None:
    for missing in ("sampled_against_empty_context", "against_empty_context"):
        run = shutil.copytree(lake, tmp_path / missing)
        results = json.loads((run / "results.json").read_text())
        del results[missing]
        (run / "results.json").write_text(json.dumps(results))
        write_report(run)
        assert ("Without any experience?" in text_of(run / "report.html")) == (missing.startswith("sampled"))


def test_a_report_needs_no_setting_that_may_be_missing(lake: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lake, tmp_path / "run")
    about, results = (json.loads((run / name).read_text()) for name in ("config.json", "results.json"))
    for name in ("env_timeout", "steps"):
        del about["config"][name]
    (run / "config.json").write_text(json.dumps(about))
    (run / "results.json").write_text(json.dumps(results | {"best_step": 0}))
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace('"admitted": false', '"admitted": true'))
    text = text_of(write_report(run))
    assert "no checkpoint beat the untrained model" in text
    assert "its time limit of" not in text
