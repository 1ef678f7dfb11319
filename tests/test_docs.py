"""What the documentation shows is run."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.cli import parse_args
from agents.self_improve import SelfImproveConfig, self_improve
from distill.lm.load import load_model
from envs import check_text_env
from evals.suite import read_suite

DOCS = Path(__file__).parent.parent / "docs"


def code_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.model
def test_distilling_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, *_ = code_blocks("distill.md")
    exec(compile(script, "docs/distill.md", "exec"), {"STEPS": 8, "FOLDER": tmp_path / "model"})
    losses = [float(loss) for loss in re.findall(r"StepStats\(kl=([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = load_model("smollm2").model
    assert not torch.equal(trained.lm_head.weight, before.get_output_embeddings().weight)


def test_the_loss_alone() -> None:
    _, script = code_blocks("distill.md")
    tensors = {
        "student_hidden_TD": torch.randn(5, 4, requires_grad=True),
        "student_head_VD": torch.randn(20, 4, requires_grad=True),
        "teacher_hidden_TD": torch.randn(5, 6),
        "teacher_head_VD": torch.randn(20, 6),
    }
    exec(compile(script, "docs/distill.md", "exec"), tensors)
    assert tensors["student_hidden_TD"].grad is not None


def test_the_suite_in_the_readme(tmp_path: Path) -> None:
    [suite] = re.findall(r"```yaml\n(.*?)```", (DOCS.parent / "README.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "suite.yaml").write_text(suite)
    assert len(read_suite(str(tmp_path / "suite.yaml"))) == 2 * 5 * 3


def test_an_environment_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walker_folder: Path
) -> None:
    [module] = code_blocks("environments.md")
    (tmp_path / "my_env.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_text_env("my_env:Corridor-v0") == []
    config = SelfImproveConfig(
        env="my_env:Corridor-v0",
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
    assert results["success_means"] == "the right end is reached"
    assert (tmp_path / "run" / "report.html").exists()


def commands() -> list[str]:
    """Every command of the method in the documentation's blocks of code."""
    pages = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    blocks = [
        b for page in pages for b in re.findall(r"```\w*\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith("python -m agents.self_improve")})


@pytest.mark.parametrize("command", commands())
def test_commands_have_settings_that_there_are(command: str) -> None:
    arguments = shlex.split(command, comments=True)[3:]
    assert "--resume" in arguments or parse_args(arguments).env
