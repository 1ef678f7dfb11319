"""What the documentation shows is run."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

from agents.asked import check
from agents.cli import parse_args
from agents.self_improve import SelfImproveConfig, self_improve
from envs import check_text_env
from evals.suite import read_suite
from evals.tables import fill

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(page: str | Path, language: str = r"\w*") -> list[str]:
    """Its blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_loss_alone() -> None:
    _, script = blocks("docs/distill.md", "python")
    tensors = {
        "student_hidden_TD": torch.randn(5, 4, requires_grad=True),
        "student_head_VD": torch.randn(20, 4, requires_grad=True),
        "teacher_hidden_TD": torch.randn(5, 6),
        "teacher_head_VD": torch.randn(20, 6),
    }
    exec(compile(script, "docs/distill.md", "exec"), tensors)
    assert tensors["student_hidden_TD"].grad is not None


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    [suite] = blocks("docs/usage.md", "yaml")
    (tmp_path / "suite.yaml").write_text(suite)
    assert len(read_suite(str(tmp_path / "suite.yaml"), check)) == 2 * 5 * 3


@pytest.mark.parametrize(
    ("page", "env", "success"),
    [
        ("docs/environments.md", "my_env:Corridor-v0", "the right end is reached"),
        ("README.md", "hall:Hall-v0", "its return is positive"),
    ],
)
def test_an_environment_of_ones_own(
    page: str,
    env: str,
    success: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    walker_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [script] = blocks(page, "python")
    (tmp_path / f"{env.partition(':')[0]}.py").write_text(script, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_text_env(env) == []
    config = SelfImproveConfig(
        env=env,
        model=str(walker_folder),
        output=tmp_path / "run",
        rounds=1,
        episodes=64,
        waves=2,
        steps=2,
        lr=1e-3,
        validation_episodes=32,
        test_episodes=16,
    )
    results = self_improve(config)
    assert results["success_means"] == success
    assert (tmp_path / "run" / "report.html").exists()

    monkeypatch.setattr("agents.self_improve.self_improve", lambda _: results)
    capsys.readouterr()
    [python] = blocks("docs/usage.md", "python")  # reads the results of a run
    exec(compile(python, "docs/usage.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


def commands() -> list[str]:
    """Every command of the method in the documentation's blocks of code."""
    text = "\n".join(block.replace("\\\n", " ") for page in PAGES for block in blocks(page))
    return sorted({line for line in text.splitlines() if line.startswith("python -m agents.self_improve")})


@pytest.mark.parametrize("command", commands())
def test_commands_have_settings_that_there_are(command: str) -> None:
    arguments = shlex.split(command, comments=True)[3:]
    assert "--resume" in arguments or parse_args(arguments).env


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_figures(page: Path) -> None:
    assert fill(page) == page.read_text(encoding="utf-8"), "make results writes them"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_no_table_of_results_is_typed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    made = re.findall(r"^<!-- table: .*?^<!-- end -->$", text, re.DOTALL | re.MULTILINE)
    assert made
    assert text.count("\n|") == sum(table.count("\n|") for table in made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_wrap_at_100(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 100] == []


def test_the_readme_is_read_to_the_end() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    if page.name in ("results.md", "earlier.md", "speed.md", "tried.md"):  # they name what was there then
        return
    for name in re.findall(r"`((?:agents|distill|docs|envs|evals|experience|tests)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:agents|evals|experience|tests)\.[\w.]*\w)", text):
        assert importlib.util.find_spec(module), module
