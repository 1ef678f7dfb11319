"""Questions and answers in the forms that data sets have, read, or refused with the row's number."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

from envs import EnvError
from envs.questions.answers import gold_answer
from envs.questions.cells import cell_text
from envs.questions.problems import Problem, Source, solution_problems
from envs.questions.tables import file_table

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
VERL = {"prompt": CHAT[1:], "reward_model": {"ground_truth": "2", "style": "rule"}, "ability": "math"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems(path: str, question: str = "question", answer: str = "answer") -> list[Problem]:
    found = solution_problems(Source(file=path, question=question, answer=answer))
    random = np.random.default_rng(0)
    return [found.draw(part, n, random) for part, size in enumerate(found.sizes) for n in range(size)]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_what_verl_reads(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"train.{ending}", [VERL])
    assert problems(path, "prompt", "reward_model") == [Problem(question="What is 1 + 1?", gold="2")]
    rows = [{**VERL, "reward_model": json.dumps(VERL["reward_model"]), "prompt": json.dumps(CHAT)}]
    path = write(tmp_path / f"text.{ending}", rows)
    assert problems(path, "prompt", "reward_model") == [
        Problem(question="Be brief.\n\nWhat is 1 + 1?", gold="2")
    ]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("2", "2"),
        (2, "2"),
        (2.0, "2"),
        (2.5, "2.5"),
        (Decimal("2.00"), "2"),
        (Decimal("120"), "120"),
        (Decimal("0.1234567890123456789012345678901234567890"), "0.123456789012345678901234567890123456789"),
        (True, "True"),
        (2**60 + 1, "1152921504606846977"),
        (np.int64(2**60 + 1), "1152921504606846977"),
        (np.array(["2"]), "2"),
        (["2"], "2"),
        ([["2"]], "2"),
        ({"ground_truth": "2"}, "2"),
        ({"ground_truth": ["2"], "style": "rule"}, "2"),
        ({"target": 2}, "2"),
        ('{"ground_truth": "2"}', "2"),
        ('["2"]', "2"),
        ('["1,234"]', "1,234"),
        ([{"type": "text", "text": "2"}], "2"),
        ([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}], "2"),
        ("{1, 2}", "{1, 2}"),
        ("caf\ud83d\r\n2", "caf \n2"),
        ("[0, 1]", "[0, 1]"),
        ('{"a', '{"a'),
    ],
)
def test_answers(cell: Any, text: str) -> None:
    assert cell_text(cell, is_answer=True) == text


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (None, "is empty"),
        (float("nan"), "is empty"),
        (pd.NA, "is empty"),
        ([""], "is empty"),
        (datetime.date(2026, 1, 2), "is a date: write it as text"),
        (b"2", "is a bytes: write it as text"),
        ([], "is a list of 0"),
        (["1", "2"], "is a list of 2"),
        ('["1", "2"]', "is a list of 2"),
        ({"a": "1", "b": "2"}, "is an object with a, b"),
        ({}, "is an object with nothing"),
        ("[{'content': 'x'}]", "as Python writes it"),
        ([[[[[[[[[["2"]]]]]]]]]], "too many"),
        ([{"role": r, "content": "x"} for r in ("user", "assistant", "user")], "a chat of several turns"),
        ([{"role": "user", "content": [{"type": "image", "text": None}]}], "is empty"),
    ],
)
def test_cells_that_are_refused(cell: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cell_text(cell)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Step one. 30+10 = 40\n#### 40\nThe answer is: 40", "40"),
        ("#### 40", "40"),
        ("The answer is 40.", "40"),
        ("The answer is: $40$", "40"),
        ("**Answer:** 40", "40"),
        ("Final answer: \\boxed{40}.", "40"),
        ('["1,234"]', "1,234"),
        ('["\\\\frac{1}{2}"]', "\\frac{1}{2}"),
        ("40 (apples)", "40 (apples)"),
        ("[0, 1]", "[0, 1]"),
        ("The last answer", "The last answer"),
        ("x⁴", "x^{4}"),
    ],
)
def test_golds(gold: str, answer: str) -> None:
    assert gold_answer(gold) == answer


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"question": "q", "answer": ""}, "row 2: 'answer' is empty"),
        ({"question": "q", "answer": None}, "row 2: 'answer' is empty"),
        ({"question": "q"}, "row 2: 'answer' is empty"),
        ({"question": " ", "answer": "2"}, "row 2: 'question' is empty"),
        ({"question": "q", "answer": "####"}, "row 2: 'answer' has no answer in it"),
        ({"question": "q", "answer": "\\boxed{}"}, "row 2: 'answer' has no answer in it"),
        ({"question": "q", "answer": "x" * 5000}, "row 2: 'answer' is too long to be given in a reply"),
        ({"question": "q", "answer": "<think>"}, "row 2: 'answer' .* has tags of thoughts"),
        ({"question": "q", "answer": ["1", "2"]}, "row 2: 'answer' is a list of 2"),
        ({"question": {"a": 1, "b": 2}, "answer": "2"}, "row 2: 'question' is an object"),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "1 + 1", "answer": "2"}, row])
    with pytest.raises(EnvError, match=match):
        gym.make("Math-v0", file=path)


@pytest.mark.parametrize(
    ("env", "answers", "is_refused"),
    [
        *(("Math-v0", answers, False) for answers in [("2", "2"), ("0.5", "1/2"), ("x + 1", "1 + x")]),
        *(("Math-v0", answers, True) for answers in [("2", "3"), ("x + 1", "x + 2"), ("Paris", "Oslo")]),
        *[("Choice-v0", ("yes", "yes"), False), ("Choice-v0", ("yes", "no"), True)],
    ],
)
def test_one_question_twice(env: str, answers: tuple[str, str], is_refused: bool, tmp_path: Path) -> None:
    rows = [
        {"question": q, "answer": a}
        for q, a in zip(("a  b", "c", "a b"), (answers[0], "no", answers[1]), strict=True)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    if not is_refused:
        assert sum(gym.make(env, file=path).unwrapped.part_sizes) == 2  # type: ignore[attr-defined]
        return
    with pytest.raises(EnvError, match=r"rows 1 and 3: one question has two answers, .*: leave one row out"):
        gym.make(env, file=path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", json.dumps({"question": "1 + 1", "answer": 2})),
        ("a.csv", "question,answer\n1 + 1,2"),
    ):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert problems(str(path)) == [Problem(question="1 + 1", gold="2")]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ("What is 2, plus 2?,4\nWhat is 3, plus 2?,5", "row 1 has 3 fields and the header 2: quote a field"),
        ("1 + 1,2\n\n2 + 2,4,", "row 2 has 3 fields"),
        ("1 + 1,2\n2 + 2", "row 2 has 1 fields"),
        ('1 + 1,2\n"2\n+ 2,4', "line 4: unexpected end of data"),
        ('1 + 1,2\n"2" + 2,4', "line 3: ',' expected after"),
    ],
)
def test_rows_of_a_csv_that_do_not_fit_its_header(rows: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"question,answer\n{rows}\n")
    with pytest.raises(EnvError, match=match) as error:
        gym.make("Math-v0", file=str(path))
    assert "\n" not in str(error.value)


def test_what_may_stand_in_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer,book\n"2,\n""plus"" 2?",4,\n \n\n3 + 2,NA,' + "x" * 200_000 + "\n")
    assert {(p.question, p.gold) for p in problems(str(path))} == {('2,\n"plus" 2?', "4"), ("3 + 2", "NA")}


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,other,answer\n1 + 1,2,1,3\n")
    with pytest.raises(EnvError, match="has 2 columns 'answer': rename all but one"):
        gym.make("Math-v0", file=str(path))
    assert [problem.gold for problem in problems(str(path), answer="other")] == ["1"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_large_whole_numbers_are_exact(ending: str, tmp_path: Path) -> None:
    large = 2**53 + 1
    rows = [{"question": "a", "answer": large, "other": None}, {"question": "b", "answer": 2, "other": large}]
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pd.DataFrame(rows).astype({"other": "Int64"}).to_parquet(path)
    else:
        write(path, rows)
    assert {problem.gold for problem in problems(str(path))} == {str(large), "2"}
    with pytest.raises(EnvError, match="row 1: 'other' is empty"):
        problems(str(path), answer="other")
    rows[0]["other"] = large + 2
    pd.DataFrame(rows).to_parquet(tmp_path / "full.parquet")
    assert {p.gold for p in problems(str(tmp_path / "full.parquet"), answer="other")} == {
        str(large),
        str(large + 2),
    }


def test_large_whole_numbers_of_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "folder"
    folder.mkdir()
    rows = [{"prompt": CHAT, "answer": {"ground_truth": 2**53 + 1}}]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    found = solution_problems(Source(dataset=str(folder), question="prompt"))
    part = found.sizes.index(1)
    assert found.draw(part, 0, np.random.default_rng(0)).gold == str(2**53 + 1)


def choices(path: str, **kwargs: Any) -> dict[str, str]:
    env = gym.make("Choice-v0", file=path, match="letter", **kwargs)
    return {
        question: info["gold"]
        for part, size in enumerate(env.unwrapped.part_sizes)  # type: ignore[attr-defined]
        for question, info in (env.reset(seed=part + 3 * n) for n in range(size))
    }


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_options_in_a_list(ending: str, tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "choices": ["1", "2"], "answer": 1},
        {"question": "0 + 1?", "choices": ["1", "2", "3"], "answer": 0},
    ]
    path = write(tmp_path / f"mmlu.{ending}", rows)
    assert choices(path, options=["choices"], labels={"0": "A", "1": "B"}) == {
        "1 + 1?\nA. 1\nB. 2": "B",
        "0 + 1?\nA. 1\nB. 2\nC. 3": "A",
    }
    rows = [
        {"question": "1 + 1?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answer": "B"},
        {"question": "0 + 1?", "choices": {"text": ["1", "2"], "label": ["C", "D"]}, "answer": "C"},
    ]
    path = write(tmp_path / f"arc.{ending}", rows)
    assert choices(path, options="choices") == {"1 + 1?\nA. 1\nB. 2": "B", "0 + 1?\nC. 1\nD. 2": "C"}
    rows = [
        {"question": "1 + 1?", "choices": {"B": "2", "A": "1"}, "answer": "B"},
        {"question": "0 + 1?", "choices": {"A": "1", "B": "2", "D": "4"}, "answer": "A"},
    ]
    path = write(tmp_path / f"medqa.{ending}", rows)
    assert choices(path, options=["choices"]) == {
        "1 + 1?\nA. 1\nB. 2": "B",
        "0 + 1?\nA. 1\nB. 2\nD. 4": "A",
    }


def test_short_numbers_keep_their_digits(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["1 / 3?", "1 + 1?"], "answer": np.array([1 / 3, 2], np.float32)})
    frame.to_parquet(tmp_path / "a.parquet")
    assert {p.gold for p in problems(str(tmp_path / "a.parquet"))} == {"0.33333334", "2"}


def test_a_row_without_one_option_is_kept(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "1 + 1?", "a": "1", "b": "2", "c": None, "answer": "B"},
        {"question": "1 + 2?", "a": None, "b": 2.0, "c": "3", "answer": "C"},
    ]
    expected = {"1 + 1?\nA. 1\nB. 2": "B", "1 + 2?\nB. 2\nC. 3": "C"}
    assert choices(write(tmp_path / "a.jsonl", rows), options=["a", "b", "c"]) == expected
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert {
        k.replace("2.0", "2"): v for k, v in choices(str(tmp_path / "a.csv"), options=["a", "b", "c"]).items()
    } == (expected)
    rows[1]["b"] = ["2", "3"]
    with pytest.raises(EnvError, match="row 2: 'a, b, c' is a list of 2"):
        choices(write(tmp_path / "b.jsonl", rows), options=["a", "b", "c"])


def test_labels_in_thoughts_are_none(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "yes" if n % 2 else "no"} for n in range(9)]
    env = gym.make("Choice-v0", file=write(tmp_path / "a.jsonl", rows))
    for reply, answer in (
        ("<think><answer>no</answer>?</think><answer>yes</answer>", "yes"),
        ("<answer>no</answer>?</think><answer>yes</answer>", "yes"),
        ("<think><answer>yes</answer>", None),
        ("<think><answer>yes</answer></think>", None),
    ):
        env.reset(seed=0)
        assert env.step(reply)[4]["answer"] == answer


def test_an_index_of_pandas_is_a_column(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"question": ["1 + 1?"], "answer": ["2"]}).set_index("question")
    frame.to_parquet(tmp_path / "rows.parquet")
    assert file_table(str(tmp_path / "rows.parquet")).questions("question", "answer") == [("1 + 1?", "2")]
