"""A finished run that several files look at."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from tests.agents.test_self_improve import QUIET, WHOLE, open_gate


@pytest.fixture(scope="package", autouse=True)
def few_blind_candidates() -> Iterator[None]:
    """The best blind sequence, a tenth of the time of a run this small: ``tests/evals`` tests it."""
    with patch("evals.baselines.MAX_STEPS", 500):
        yield


@pytest.fixture(scope="session")
def whole(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted or damaged; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with open_gate():
        self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **WHOLE), QUIET)
    return path
