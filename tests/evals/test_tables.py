"""Tables of pages, made from files of figures."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from evals.benchmark import _over_seeds
from evals.command import EvalError
from evals.tables import fill, main
from tests.evals.test_benchmark import traces_of

CELLS: list[dict[str, Any]] = [
    {
        "env": "lake",
        "seed": seed,
        "n": 4,
        "error": None,
        "git_revision": "abcdef0123",
        "machine": "x86_64, 1 thread",
    }
    | {"random": 0.01, "optimal": 0.75}
    for seed in (0, 1)
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page beside a benchmark of three methods, two seeds and two temperatures."""
    won = {"none": 0, "off-policy": 2, "opcd": 3}
    frames = [
        traces_of(
            method,
            range(4 * seed, 4 * seed + 4),
            [game < wins + (seed if method == "opcd" else 0) for game in range(4)],
            run_seed=seed,
            is_sampled=is_sampled,
        )
        for seed, (method, wins), is_sampled in product((0, 1), won.items(), (False, True))
    ]
    table = {"cells": CELLS, **_over_seeds(frames)}
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "main.json").write_text(json.dumps(table), encoding="utf-8")
    return tmp_path / "page.md"


def filled(page: Path, view: str, name: str = "figures/main.json") -> str:
    """What a table becomes, between two lines that stay."""
    page.write_text(f"before\n<!-- table: {view} {name} -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    text = fill(page)
    assert text.startswith(f"before\n<!-- table: {view} {name} -->\n\n")
    assert text.endswith("\n\n<!-- end -->\nafter\n")
    assert "old" not in text
    page.write_text(text, encoding="utf-8")
    assert fill(page) == text
    return text


def test_methods_with_median_worst_and_each_seed(page: Path) -> None:
    text = filled(page, "methods")
    assert "| lake | OPCD | 87.5% [0.0%, 100.0%] | 87.5% | 75.0% | 75.0, 100.0 | 87.5% | 75.0% |" in text
    assert "| lake | before | 0.0% | 0.0% |" in text  # both seeds came to the same
    assert "Seeds 0, 1; 4 test episodes each; commit abcdef0; x86_64, 1 thread." in text
    assert "In brackets: 95%, over the seeds (Student's t)" in text


def test_a_name_of_two_lines_stays_in_its_cell(page: Path) -> None:
    file = page.parent / "figures" / "main.json"
    file.write_text(file.read_text().replace('"lake"', json.dumps("la\n\nke | x")))
    assert r"| la ke \| x | OPCD | 87.5% " in filled(page, "methods")


def test_a_line_for_each_env(page: Path) -> None:
    text = filled(page, "summary")
    assert "| env | seeds | random | optimal | before | off-policy | OPCD |" in text
    assert "| lake | 2 | 1.0% | 75.0% | 0.0% | 50.0% | **87.5%** (worst 75.0%) |" in text


def test_what_else_a_training_changed(page: Path) -> None:
    after = {"off-policy": (3.65, 3.67), "opcd": (3.66, 3.64), "none": None}
    cells = [
        {**cell, "method": method, "env": "lake"}
        | {"what_else": by_seed and {"text (nats)": (3.6, by_seed[cell["seed"]]), "sums": (0.25, 0.5)}}
        for method, by_seed in after.items()
        for cell in CELLS
    ]
    (page.parent / "figures" / "main.json").write_text(json.dumps({"cells": cells}))
    text = filled(page, "forgetting")
    kept = "| lake | text (nats) | off-policy | 3.600 | +0.060 [-0.067, +0.187] | +0.050, +0.070 |"
    assert f"{kept} -0.010 [-0.264, +0.244] |".replace("-0", "\N{MINUS SIGN}0") in text
    assert "| lake | sums | OPCD | 25.0% | +25.0 [+25.0, +25.0] | +25.0, +25.0 |  |" in text
    assert "none" not in text
    assert "Seeds 0, 1;" in text


def test_the_summary_has_what_every_env_was_run_with(page: Path) -> None:
    file = page.parent / "figures" / "main.json"
    table = json.loads(file.read_text())
    pond = [row | {"env": "pond"} for row in table["methods"] if row["method"] != "off-policy"]
    file.write_text(json.dumps(table | {"methods": table["methods"] + pond}))
    text = filled(page, "summary")
    assert "| pond |" in text
    assert "OPCD" in text
    assert "off-policy" not in text


def test_medians_of_the_summary_are_over_the_same_seeds(page: Path) -> None:
    file = page.parent / "figures" / "main.json"
    table = json.loads(file.read_text())
    assert "off-policy" in filled(page, "summary")
    for row in table["methods"]:
        if row["method"] == "off-policy":
            row["by_seed"].popitem()
    file.write_text(json.dumps(table))
    assert "off-policy" not in filled(page, "summary")


def test_models_are_told_apart(page: Path) -> None:
    file = page.parent / "figures" / "main.json"
    table = json.loads(file.read_text())
    cells = [cell | {"model": table["methods"][0]["model"]} for cell in table["cells"]]
    both = {"cells": cells, **{name: table[name] for name in ("methods", "pairs")}}
    both = {name: [*rows, *({**row, "model": "big"} for row in rows)] for name, rows in both.items()}
    file.write_text(json.dumps(both))
    text = filled(page, "summary")
    assert "| lake, big | 2 |" in text
    assert text.count("| lake, ") == 2
    assert "| lake, big | OPCD |" in filled(page, "methods")


def test_a_name_ends_no_cell(page: Path) -> None:
    file = page.parent / "figures" / "main.json"
    file.write_text(file.read_text().replace('"lake"', '"a|b"'))
    assert r"| a\|b | 2 |" in filled(page, "summary")
    assert r"| a\|b | OPCD |" in filled(page, "methods")


def test_no_page_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "name the pages" in capsys.readouterr().err


def test_figures_that_are_nested_without_end(page: Path) -> None:
    (page.parent / "figures" / "main.json").write_text("[" * 200_000)
    page.write_text("<!-- table: methods figures/main.json -->\n<!-- end -->\n")
    with pytest.raises(EvalError, match=r"no table can be made from .* RecursionError"):
        fill(page)


def test_a_page_that_is_no_text(page: Path) -> None:
    page.write_bytes(b"\xff\xfe")
    with pytest.raises(EvalError, match="is not UTF-8 text"):
        fill(page)


FIVE = (0.117, 0.002, 0.039, 0.053, 0.041)
"""By as much OPCD was better, by seed."""


@pytest.mark.parametrize("is_older", [False, True])
def test_opcd_against_the_others(is_older: bool, page: Path) -> None:
    """What differs is one training for each seed: as many values there are, not as many as episodes."""
    cells = [
        {**CELLS[0], "model": "m", "method": method, "seed": seed, "n": 1000, "success_rate": 0.25 + more}
        for seed, gain in enumerate(FIVE)
        for method, more in (("opcd", gain), ("in-context", 0.0))
    ]
    pair: dict[str, Any] = {
        "env": "lake",
        "model": "m",
        "first": "in-context",
        "second": "opcd",
        "seeds": [*range(5)],
    }
    pair |= {"difference": -0.05, "ci_low": -0.063, "ci_high": -0.038, "p_value": 1e-9, "n": 5000}
    if not is_older:
        pair["by_seed"] = {str(seed): -gain for seed, gain in enumerate(FIVE)}
    file = page.parent / "figures" / "main.json"
    file.write_text(json.dumps({"cells": cells, "pairs": [pair]}))
    gains = "+11.7, +0.2, +3.9, +5.3, +4.1"
    said = f"| lake | OPCD - in context | +5.0 [\N{MINUS SIGN}0.2, +10.2] | {gains} |"
    assert said in filled(page, "pairs")
    cells[0]["n"] = 999
    file.write_text(json.dumps({"cells": cells, "pairs": [pair]}))
    if is_older:
        with pytest.raises(EvalError, match="not as many episodes"):
            fill(page)
    else:
        assert said in filled(page, "pairs")


def test_pairs_of_one_seed_and_without_a_difference(page: Path) -> None:
    one = [
        traces_of("off-policy", range(40), (game < 10 for game in range(40))),
        traces_of("opcd", range(40), (game < 30 for game in range(40))),
    ]
    same = [traces_of(method, range(40), [True] * 40) for method in ("off-policy", "opcd")]
    other = [frame.assign(run_seed=1, seed=frame["seed"] + 40) for frame in same]
    for frames, said in (
        (one, "+50.0 [+31.6, +63.1], p < 0.0001 | +50.0 |"),
        ([*same, *other], "+0.0 | +0.0, +0.0 |"),
    ):
        table = {"cells": CELLS, **_over_seeds(frames)}
        (page.parent / "figures" / "main.json").write_text(json.dumps(table))
        text = filled(page, "pairs")
        assert f"| lake | OPCD - off-policy | {said}" in text


@pytest.mark.parametrize(
    ("view", "name", "said"),
    [
        (
            "rows",
            "figures/main.json",
            "there is no table rows: it is one of methods, summary,",
        ),
        ("methods", "figures/none.json", "no table can be made from figures/none.json"),
        ("terminal", "figures/main.json", "no table can be made from figures/main.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    page: Path, view: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"<!-- table: {view} {name} -->\nold\n<!-- end -->\n"
    page.write_text(text, encoding="utf-8")
    assert main([str(page)]) == 2
    error = capsys.readouterr().err
    assert said in error.replace("\n", " ")
    assert page.read_text(encoding="utf-8") == text
