"""A finished run that several files look at."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from evals.forgetting import ForgettingConfig
from tests.agents.test_self_improve import QUIET, TINY, open_gate

LITTLE = partial(ForgettingConfig, tasks=("lake",), episodes=2, max_new_tokens=1)


@pytest.fixture(scope="session")
def lake(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the lake, which has also measured what was forgotten; not to be changed."""
    path = tmp_path_factory.mktemp("lake") / "run"
    config = SelfImproveConfig(model=str(walker_folder), output=path, forgetting=True, **TINY)
    with open_gate(), patch("agents.measurement.ForgettingConfig", LITTLE):
        self_improve(config, QUIET)
    return path
