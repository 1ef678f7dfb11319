"""A finished run that several files look at."""

from pathlib import Path

import pytest

from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from tests.agents.test_self_improve import QUIET, WHOLE, open_gate


@pytest.fixture(scope="session")
def whole(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted or damaged; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with open_gate():
        self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **WHOLE), QUIET)
    return path
