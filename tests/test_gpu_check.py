"""The GPU check works on the day: the same code with tiny shapes."""

import json
from pathlib import Path

from tests.gpu_check import SECTIONS, main


def test_every_section_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    assert main(["--tiny", "--json", str(tmp_path / "figures.json")]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {row["section"] for row in rows} == set(SECTIONS)
