"""A run that begins where a finished one was before its training: methods to compare share what they can."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.config import SelfImproveConfig
from agents.run.folder import clear_errors, new_run_id, provenance
from agents.run.inputs import inputs
from agents.run.resume import differences, may_differ, saved_config, settled
from evals.finished_run import FinishedRun
from experience.phase import Phase
from experience.store import ExperienceStore
from experience.whole import appearing

TRAINING = (
    "steps",
    "batch_size",
    "lr",
    "optimizer",
    "data",
    "direction",
    "off_policy_steps",
    "loss",
    "top_k",
    "eval_every",
)
"""Settings that nothing depends on before the first optimiser step."""
CODE = ("git_revision", "machine", "packages", "inputs")
"""What has to be the same for figures of one code, and of the same files."""


def branch(config: SelfImproveConfig, path: Path, finished: Iterable[Path]) -> bool:
    """Begin the run of ``config`` in ``path``, which is to be resumed, with what a finished one has of it.

    That is all that does not depend on the training: play, insights, the gate, the untrained agent on
    validation and test episodes. It takes what it took: its seconds are the new run's as well. The first of
    the runs that fits is taken, if any does: one of this very code, with one round, a store of its own, the
    same settings but for ``TRAINING``, and the same in the files that they name.

    Returns:
        Whether there was one.

    Raises:
        RunFolderError: The folder cannot be written.
        UnfinishedRunError: A run is not finished.
    """
    is_free = not path.exists() or not any(path.iterdir())  # else a kill has left something
    now = {**provenance(), "inputs": inputs(config)}
    source = next((run for run in map(FinishedRun.read, finished) if _is_shared(config, run, now)), None)
    if source is None or not is_free:
        return False
    changes = {name: getattr(config, name) for name in TRAINING}
    run_id = new_run_id(path)
    about = {**source.about, **now, "run_id": run_id, "config": source.config | changes}
    with clear_errors(path), appearing(path) as folder:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        (folder / "metrics.jsonl").write_text(_untrained_metrics(source), "utf-8")
        with (
            closing(sqlite3.connect(source.path / "experience.db")) as theirs,
            closing(sqlite3.connect(folder / "experience.db")) as ours,
        ):
            theirs.backup(ours)
        with ExperienceStore(folder / "experience.db", create=False) as store:
            store.rename(run_id)  # or else they would be one where both are put into one store
            store.drop_phases(lambda name: Phase.parse(name).is_trained)
    return True


def _is_shared(config: SelfImproveConfig, run: FinishedRun, now: Mapping[str, Any]) -> bool:
    saved = saved_config(run.path)
    asked = replace(config, **settled(config, saved))
    differing = [
        name
        for name, was, wanted in differences(saved, asked)
        if name not in TRAINING and not may_differ(name, was, wanted)
    ]
    is_same_code = all(run.about.get(name) == now[name] for name in CODE)
    is_changed = str(now["git_revision"]).endswith("+")  # then who knows what it was
    is_alone = saved.rounds == 1 and saved.minutes is None and saved.store is None is config.store
    return is_alone and is_same_code and not is_changed and not differing


def _untrained_metrics(run: FinishedRun) -> str:
    """The lines of what does not depend on the training, as if nothing else had taken time."""
    took, seconds, lines = run.phase_seconds(), 0.0, []
    for entry in run.metrics:
        if not Phase.parse(entry["key"]).is_trained:
            seconds += took[entry["key"]]
            lines.append(json.dumps(entry | {"seconds": round(seconds, 3)}) + "\n")
    return "".join(lines)
