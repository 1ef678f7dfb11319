"""Math-v0: problems, their parts, attempts, sources, and what is said when a source is no good."""

import builtins
import dataclasses
import itertools
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env
from rich.console import Console

from agents.config import SelfImproveConfig
from agents.policies.policy import Prompt, Sampling
from agents.rollout import rollout
from agents.run.run import Run
from agents.self_improve import self_improve
from distill.parallel import Ranks
from envs import EnvError, TextEnv, make_text_env
from envs.any_text import MAX_CHARS, AnyText, clean
from envs.games.frozen_lake import lake_map
from envs.place import vector_env
from envs.questions.problems import Problem, task_problems
from envs.questions.verify import Verdict, Verifier
from envs.text_env import make_env
from evals.baselines import Baselines
from evals.report import print_summary
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split
from experience.trace import StopReason, Trace
from tests.scripted import ScriptedPolicy

SUMS: dict[str, Any] = {"task": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
ROWS = [
    {"question": f"What is {n} + {n}?", "answer": f"Twice {n} is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
    for n in range(60)
]


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return str(path)


def questions(split: Split, size: int, **kwargs: Any) -> list[str]:
    env = gym.make("Math-v0", **kwargs)
    return [env.reset(seed=s)[0] for s in SeedRange(split=split, run_seed=0, start=0, size=size)]


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize("kwargs", [SUMS, {**SUMS, "attempts": 3}])
def test_gymnasium_is_content(kwargs: dict[str, Any]) -> None:
    check_env(gym.make("Math-v0", **kwargs).unwrapped)


def test_right_and_wrong() -> None:
    env = gym.make("Math-v0", **SUMS)
    _, info = env.reset(seed=4)
    gold = info["gold"]
    observation, reward, terminated, truncated, info = env.step(f"The answer is {gold}.")
    assert (observation, reward, terminated, truncated) == ("That is right.", 1.0, True, False)
    assert info == {"gold": gold, "answer": gold, "reason": "the same", "is_success": True}
    env.reset(seed=4)
    observation, reward, terminated, truncated, info = env.step("The answer is 1000.")
    assert (observation, reward, terminated, truncated) == (
        f"1000 is not right. The answer is {gold}.",
        0.0,
        True,
        False,
    )
    assert info == {"gold": gold, "answer": "1000", "reason": "not equal", "is_success": False}
    env.reset(seed=4)
    observation, reward, terminated, _, info = env.step("")
    assert (observation, reward, terminated) == (f"That is not right. The answer is {gold}.", 0.0, True)
    assert (info["answer"], info["reason"]) == (None, "the reply has no answer")


def test_an_answer_that_could_not_be_judged_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(is_correct=False, answer="4", reason="not judged: its judge hangs", is_judged=False)
    monkeypatch.setattr(Verifier, "verify", lambda *_: verdict)
    env = make_text_env("Math-v0", {**SUMS, "attempts": 3})
    gold = env.reset(seed=4)[1]["gold"]
    observation, reward, terminated, truncated, info = env.step("The answer is 4.")
    assert (observation, reward, terminated, truncated) == ("That could not be judged.", 0.0, False, True)
    assert info == {
        "gold": gold, "answer": "4", "reason": verdict.reason, "not_judged": True, "text/action": "4",
    }  # fmt: skip


def test_attempts() -> None:
    env = make_text_env("Math-v0", {**SUMS, "attempts": 3})
    question, info = env.reset(seed=1)
    assert env.step("999")[:4] == (f"{question}\n999 is not right. Try again.", 0.0, False, False)
    assert env.step("")[:4] == (f"{question}\nThat is not right. Try again.", 0.0, False, False)
    assert env.step(info["gold"])[1:4] == (1.0, True, False)
    env.reset(seed=1)
    assert [env.step("999")[2] for _ in range(3)] == [False, False, True]
    env = make_text_env("Math-v0", {**SUMS, "attempts": 32})
    env.reset(seed=1)
    assert [env.step("x")[2:4] for _ in range(32)][-1] == (True, False)


def test_any_reply_is_an_answer() -> None:
    env = make_text_env("Math-v0", SUMS)
    for reply, action in (("", None), ("\x00\ud800", None), ("no idea", "no idea"), ("7" * 10**6, None)):
        env.reset(seed=0)
        observation, reward, terminated, _, info = env.step(reply)
        assert (reward, terminated, info["text/action"]) == (0.0, True, action)
        assert "text/too_many_invalid" not in info
        assert observation in env.observation_space


def test_text_that_reaches_the_env_is_in_its_space() -> None:
    env = make_text_env("Math-v0", SUMS)
    for reply in ("The answer is 4.", "a\x00b\ud800c\nd", "é²π" * 50_000, ""):
        action = env.words.parse(reply)
        assert action is not None
        assert len(action.text) <= MAX_CHARS
        assert action.value in env.env.action_space
    assert "a\x00" not in AnyText()
    assert clean("a\x00b\ud83d\tc\n") == "a b \tc\n"
    assert 3 not in AnyText()


def test_an_env_with_text_actions_and_no_answer_of_its_own() -> None:
    class Echo(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            return action, 0.0, False, False, {}

    env = TextEnv(Echo(gym.make("Math-v0", **SUMS)))
    env.reset(seed=0)
    assert env.step(" hello ")[4] == {"text/action": "hello"}
    long = "B. " + "That is why. " * 999
    assert env.step(long)[0] == long.strip()


@pytest.mark.parametrize("source", ["task", "file"])
def test_the_seed_decides(source: str, jsonl: str) -> None:
    kwargs = SUMS if source == "task" else {"file": jsonl}
    assert questions(Split.TRAIN, 20, **kwargs) == questions(Split.TRAIN, 20, **kwargs)
    env, other = gym.make("Math-v0", **kwargs), gym.make("Math-v0", **kwargs)
    env.reset(seed=2)
    other.reset(seed=0)
    other.reset(seed=2)
    later = [env.reset()[0] for _ in range(10)]
    assert later == [other.reset()[0] for _ in range(10)]
    assert len(set(later)) > 1


def test_splits_share_no_problem(jsonl: str) -> None:
    for kwargs in (SUMS, {"file": jsonl}, {"task": "gcd"}):
        train, validation, test = (set(questions(split, 300, **kwargs)) for split in Split)
        assert train
        assert validation
        assert test
        assert len(train | validation | test) == len(train) + len(validation) + len(test)


def test_without_a_seed_the_part_stays(jsonl: str) -> None:
    env = gym.make("Math-v0", file=jsonl)
    for seed, split in enumerate(Split):
        env.reset(seed=seed)
        assert {env.reset()[0] for _ in range(50)} <= set(questions(split, 60, file=jsonl))
    assert gym.make("Math-v0", file=jsonl).reset()[0] in questions(Split.TRAIN, 60, file=jsonl)


def test_consecutive_seeds_pose_each_problem_of_a_file_once(jsonl: str) -> None:
    parts = []
    for split in Split:
        posed = questions(split, 120, file=jsonl)
        size = len(set(posed))
        assert len(set(posed[:size])) == size
        assert posed[:size] == posed[size : 2 * size]
        parts += posed[:size]
    assert sorted(parts) == sorted(row["question"] for row in ROWS)
    assert parts != sorted(parts)


def test_files_of_every_kind_pose_the_same(jsonl: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS).sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet")
    frame = frame.rename(columns={"question": "problem", "answer": "solution"})
    frame.to_json(tmp_path / "q.jsonl", orient="records", lines=True)
    first = questions(Split.TEST, 30, file=jsonl)
    assert questions(Split.TEST, 30, file=str(tmp_path / "p.csv")) == first
    assert questions(Split.TEST, 30, file=str(tmp_path / "p.parquet")) == first
    columns = {"question": "problem", "answer": "solution"}
    assert questions(Split.TEST, 30, file=str(tmp_path / "q.jsonl"), **columns) == first


def test_golds_of_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "golds.jsonl"
    golds = ["#### 1,234", "so $\\boxed{\\frac{1}{2}}$.", "7", 7]
    rows = [{"question": f"q{n}", "answer": golds[n % 4]} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    env = gym.make("Math-v0", file=str(path))
    for seed in range(20):
        question, info = env.reset(seed=seed)
        assert info["gold"] == ["1,234", "\\frac{1}{2}", "7", "7"][int(question[1:]) % 4]
        assert env.step({"1,234": "1234", "7": "7.0"}.get(info["gold"], "0.5"))[1] == 1.0


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "folder"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "train.parquet")
    env = gym.make("Math-v0", dataset=str(folder), dataset_split="train")
    question, info = env.reset(seed=5)
    assert {"question": question, "answer": info["gold"]} in [
        {**row, "answer": row["answer"].rpartition("#### ")[2]} for row in ROWS
    ]


def test_a_task_with_its_own_scorer() -> None:
    """Many expressions make the number: the task's scorer knows; equality to the gold one is not asked."""
    env = gym.make("Math-v0", task="countdown", min_numbers=2, max_numbers=2, seed=1)
    question, info = env.reset(seed=3)
    gold = info["gold"]
    assert env.step(f"The answer is {gold}")[1] == 1.0
    env.reset(seed=3)
    assert env.step(f"<answer>({gold})</answer>")[1] == 1.0
    env.reset(seed=3)
    target = str(eval(gold))
    assert env.step(target)[1] == 0.0  # the right value, but not with the numbers given
    assert target in question
    for attack in ("__import__('os')._exit(1)", "9**9**9**9", "open('/tmp/x', 'w')", "", "("):
        env.reset(seed=3)
        assert env.step(attack)[1] == 0.0
    env.reset(seed=3)
    assert env.step(gold)[1] == 1.0


def test_words_as_answers() -> None:
    env = gym.make("Math-v0", task="syllogism")
    _, info = env.reset(seed=3)
    assert env.step(f"The answer is {info['gold']}")[1] == 1.0
    _, info = env.reset(seed=3)
    assert env.step("Yes" if info["gold"] == "No" else "No")[1] == 0.0


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({}, "exactly one of task=, file= and dataset="),
        ({"task": "gcd", "file": "x.csv"}, "a task takes no file"),
        ({"file": "x.csv", "dataset": "y"}, "exactly one of file= and dataset="),
        ({"task": "chain_sums"}, "reasoning-gym has no task 'chain_sums'; did you mean chain_sum"),
        ({"task": "zzz"}, "no task 'zzz'; there are ab, "),
        (
            {"task": "chain_sum", "terms": 2},
            "task chain_sum has no setting terms; it has min_terms, max_terms",
        ),
        ({"task": "chain_sum", "min_terms": 9}, "refuses .*AssertionError: max_terms must be >= min_terms"),
        ({"task": "chain_sum", "seed": {1}}, "config of task chain_sum must be JSON"),
        ({"task": "gcd", "attempts": 0}, "attempts must be from 1 to 32, not 0"),
        ({"task": "gcd", "attempts": 33}, "attempts must be from 1 to 32, not 33"),
        ({"file": "/nowhere/x.csv"}, "the file /nowhere/x.csv cannot be read: No such file"),
        ({"file": "{folder}/a.txt"}, "must end in .jsonl, .csv, .parquet"),
        (
            {"file": "{folder}/columns.csv"},
            "has no column 'answer': name one with answer=; it has question, gold",
        ),
        ({"file": "{folder}/columns.csv", "question": "q"}, "no column 'q': name one with question="),
        ({"file": "{folder}/empty.csv"}, "empty.csv is empty"),
        ({"file": "{folder}/empty.jsonl"}, "empty.jsonl is empty"),
        ({"file": "{folder}/header.csv"}, "header.csv is empty"),
        ({"file": "{folder}/broken.jsonl"}, "broken.jsonl cannot be read as jsonl"),
        ({"file": "{folder}/broken.parquet"}, "broken.parquet cannot be read as parquet"),
        ({"file": "{folder}/columns.csv", "min_terms": 2}, "only a task has settings: min_terms"),
        ({"dataset": "{folder}/nothing"}, "the data set .*nothing cannot be had"),
    ],
)
def test_bad_sources_are_clear_errors(kwargs: dict[str, Any], match: str, tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text("question,gold\n1+1,2\n")
    (tmp_path / "header.csv").write_text("question,answer\n")
    (tmp_path / "a.txt").write_text("x")
    for name in ("empty.csv", "empty.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "broken.jsonl").write_text('{"question": ')
    (tmp_path / "broken.parquet").write_bytes(b"PAR0")
    given = {
        key: value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in kwargs.items()
    }
    with pytest.raises(EnvError, match=match) as error:
        make_text_env("Math-v0", given)
    assert "\n" not in str(error.value)


def test_a_part_without_problems(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("question,answer\nWhat is 1 + 1?,2\n")
    env = gym.make("Math-v0", file=str(path))
    part = Problem(question="What is 1 + 1?", gold="2").part
    assert env.reset(seed=part)[0] == "What is 1 + 1?"
    with pytest.raises(EnvError, match=r"has no problem left for (training|validation|the test)"):
        env.reset(seed=part + 1)
    problems, random = task_problems("lcm", {"size": 1}), np.random.default_rng(0)
    only = Problem(question=problems._dataset[0]["question"], gold="").part
    assert problems.draw(only, 0, random).part == only
    with pytest.raises(EnvError, match="makes too few different questions"):
        problems.draw((only + 1) % 3, 0, random)


def test_a_long_question(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("question,answer\n" + "".join(f"{n}{'x' * 60_000},2\n" for n in range(9)))
    with pytest.raises(EnvError, match="60001 characters"):
        gym.make("Math-v0", file=str(path)).reset(seed=0)


@pytest.mark.parametrize(
    ("package", "kwargs", "match"),
    [
        ("reasoning_gym", {"task": "lcm", "seed": 7}, r"pip install 'opcd-gym\[math\]'"),
        ("datasets", {"dataset": "some/where"}, r"pip install 'opcd-gym\[datasets\]'"),
    ],
)
def test_missing_packages(
    package: str, kwargs: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvError, match=match):
        gym.make("Math-v0", **kwargs)


def play(reply: Callable[[Prompt, int], str], kwargs: dict[str, Any], num_envs: int) -> list[Trace]:
    envs = vector_env(lambda: make_text_env("Math-v0", kwargs), num_envs)
    traces = rollout(
        envs,
        make_text_env("Math-v0", kwargs).words,
        ScriptedPolicy(reply),
        {"p": NO_CONTEXT},
        SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=20),
        sampling=Sampling(max_tokens=50),
        policy_id="scripted",
        env_id="Math-v0",
    )
    result = sorted(traces, key=lambda trace: trace.seed)
    envs.close()
    return result


def adds(prompt: Prompt, seed: int) -> str:
    """Works it out; on a first attempt, wrongly in one case of two."""
    text = prompt.messages[-1].content
    problem = text.partition("problem: ")[2].partition("=")[0]
    return f"The answer is {eval(problem) + (seed % 2 if 'not right' not in text else 0)}."


def test_rollout() -> None:
    one, many = (play(adds, SUMS, n) for n in (1, 8))
    assert one == many
    assert {trace.success for trace in one} == {True, False}
    for trace in one:
        assert (trace.stop_reason, len(trace.turns)) == (StopReason.TERMINATED, 1)
        assert trace.turns[0].action == trace.turns[0].reply.removeprefix("The answer is ").rstrip(".")
        assert trace.success == (trace.total_reward == 1.0)


def test_rollout_with_attempts() -> None:
    traces = play(adds, {**SUMS, "attempts": 2}, 8)
    assert all(trace.success for trace in traces)
    assert {len(trace.turns) for trace in traces} == {1, 2}
    assert all("is not right. Try again." in t.turns[1].observation for t in traces if len(t.turns) == 2)
    nothing = play(lambda prompt, seed: "", SUMS, 8)
    assert {trace.stop_reason for trace in nothing} == {StopReason.TERMINATED}
    assert all(trace.turns[0].action is None and not trace.success for trace in nothing)


def test_the_best_constant_answer(tmp_path: Path) -> None:
    path = tmp_path / "mostly.jsonl"
    rows = [{"question": f"question {n}", "answer": "yes" if n % 4 else str(n)} for n in range(300)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    baselines = Baselines("Math-v0", {"file": str(path)})
    validation, test = (SeedRange(split=s, run_seed=0, start=0, size=60) for s in list(Split)[1:])
    constant = baselines.constant(validation, test)
    assert constant is not None
    result, answer = constant
    assert answer == "yes"
    assert result.n == 60
    assert 0.6 < result.success_rate < 0.9
    assert baselines.optimal() is None


def test_a_constant_answer_that_is_not_judged_is_not_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.jsonl"
    rows = [{"question": f"question {n}", "answer": "yes"} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    baselines = Baselines("Math-v0", {"file": str(path)})
    validation, test = (SeedRange(split=s, run_seed=0, start=0, size=10) for s in list(Split)[1:])
    verdicts = itertools.cycle(
        Verdict(is_correct=good, answer="yes", reason="", is_judged=good) for good in (True, False)
    )
    monkeypatch.setattr(Verifier, "verify", lambda *_: next(verdicts))
    constant = baselines.constant(validation, test)
    assert constant is not None
    assert (constant[0].successes, constant[0].n) == (5, 5)
    assert constant[0].endings == {"not_judged": 5, "terminated": 5}
    never = Verdict(is_correct=False, answer="yes", reason="", is_judged=False)
    monkeypatch.setattr(Verifier, "verify", lambda *_: never)
    with pytest.raises(EnvError, match="of 10 baseline episodes none could be judged"):
        baselines.constant(validation, test)


def test_no_constant_answer_where_no_answer_is_told() -> None:
    seeds = SeedRange(split=Split.TEST, run_seed=0, start=0, size=3)
    assert Baselines("FrozenLake-v1", {}).constant(seeds, seeds) is None


def test_a_problem_has_no_map() -> None:
    assert lake_map(make_env("Math-v0", SUMS)) is None


def test_a_whole_run(walker_folder: Path, tmp_path: Path) -> None:
    """Without insights nothing is trained, but everything is measured and reported."""
    config = SelfImproveConfig(
        env="Math-v0",
        env_kwargs=SUMS,
        model=str(walker_folder),
        output=tmp_path / "run",
        precision="float32",
        rounds=1,
        episodes=2,
        waves=1,
        validation_episodes=2,
        test_episodes=2,
        eval_temperature=(0.0,),
        max_new_tokens=1,
    )
    results = self_improve(config, Console(quiet=True))
    assert results["arms"].keys() == {
        "blind", "before", "empty_context", "before_with_experience", "after", "after_with_experience",
    }  # fmt: skip
    assert results["arms"]["after"]["n"] == 2
    assert "best blind" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    print_summary(results, tmp_path / "run", Console(quiet=True))
    with Run(
        dataclasses.replace(config, max_new_tokens=None),
        tmp_path / "other",
        console=Console(quiet=True),
        ranks=Ranks.connect("cpu"),
    ) as run:
        assert run.agent.max_tokens == 64
        assert len(run.seeds.test) == 2


def test_no_problem_is_tested_twice(walker_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"question": f"q {n}", "answer": n}) + "\n" for n in range(30)))
    config = SelfImproveConfig.for_env(
        "Math-v0", env_kwargs={"file": str(path)}, model=str(walker_folder), precision="float32"
    )
    said = StringIO()
    run = Run(config, tmp_path / "run", console=Console(file=said), ranks=Ranks.connect("cpu"))
    seeds = [run.seeds.validation, run.seeds.test]
    questions = [{make_env("Math-v0", {"file": str(path)}).reset(seed=s)[0] for s in part} for part in seeds]
    assert [len(part) for part in seeds] == [len(part) for part in questions]
    assert not questions[0] & questions[1]
    assert f"test: each of {len(questions[1])} problems once" in said.getvalue()
