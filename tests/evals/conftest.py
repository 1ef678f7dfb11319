"""A finished run that several files look at."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from agents.asked import exam
from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from evals.forgetting import ForgettingConfig, forgetting, save
from evals.report import write_report
from tests.agents.test_self_improve import QUIET, TINY, open_gate

LITTLE = partial(ForgettingConfig, tasks=("lake",), episodes=2, max_new_tokens=1)


@pytest.fixture(scope="session")
def lake(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the lake, of which was also measured what it forgot; not to be changed."""
    path = tmp_path_factory.mktemp("lake") / "run"
    settings = TINY | {"lr": 1e-2, "eval_temperature": (0.0, 0.7)}  # it learns
    config = SelfImproveConfig(model=str(walker_folder), output=path, **settings)
    with open_gate():
        self_improve(config, QUIET)
    with patch("evals.forgetting.ask", lambda _, question: exam(question)):  # in this process
        little = LITTLE(after=str(path))
        save(little, forgetting(little, QUIET))
    write_report(path)
    return path
