"""A finished run, as its folder tells it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from evals.command import EvalError
from evals.result import judged, temperature_text
from evals.run_files import KINDS, About, Entry, Forgetting, Results, check
from evals.stats import wilson_interval
from experience import ExperienceError, damaged_store
from experience.phase import Phase
from experience.store import ExperienceStore

PARTS = ("play", "gate", "training", "validation", "test")
"""What a run spends its time on, in order."""


MAX_DEPTH = 100
"""Of what a run's JSON files hold."""


class DamagedMetricsError(ValueError):
    """A ``metrics.jsonl`` that holds something else; the message names the line."""


class UnfinishedRunError(EvalError):
    """A folder without a finished run; the message says what is missing."""


class NotJudgedError(UnfinishedRunError):
    """A finished run on a log without right answers."""


def run_settings(path: Path) -> dict[str, Any]:
    """Every setting of a finished run, whether its episodes were judged or not.

    Raises:
        UnfinishedRunError: The folder is none's.
    """
    with _said_clearly(path):
        return dict(_about(path)["config"])


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What stands in a run's JSON files."""

    path: Path
    results: dict[str, Any]
    about: dict[str, Any]
    """``config.json``: the configuration under ``config``, and what produced the run."""
    metrics: tuple[dict[str, Any], ...]
    """The lines of ``metrics.jsonl``."""
    forgetting: dict[str, Any] | None
    """``forgetting.json``, where somebody has measured what else the agent can do, before and after."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run's folder.

        Raises:
            UnfinishedRunError: It is none, or the run has not come to its end, or was not judged.
        """
        with _said_clearly(path):
            results, about = _load(path, "results.json"), _about(path)
            if isinstance(results, dict) and "kl" in results and "arms" not in results:
                raise NotJudgedError(f"the episodes of the run in {path} were not judged: there is no report")
            forgetting = _load(path, "forgetting.json") if (path / "forgetting.json").exists() else None
            metrics = tuple(read_metrics(path / "metrics.jsonl"))
            check(Results, results, "results.json")
            if forgetting is not None:
                check(Forgetting, forgetting, "forgetting.json")
            for entry in metrics:
                if (kind := KINDS.get(entry.get("kind", ""))) is not None:
                    check(kind, entry, f"metrics.jsonl, {entry['key']}")
            return cls(path=path, results=results, about=about, metrics=metrics, forgetting=forgetting)

    def what_else(self) -> dict[str, tuple[float, float]] | None:
        """Measure -> what the agent came to before and after, where ``evals.forgetting`` was run."""
        if self.forgetting is None:
            return None
        return {
            row["measure"]: (float(row["before"]["mean"]), float(row["after"]["mean"]))
            for row in self.forgetting["rows"]
        }

    @property
    def config(self) -> dict[str, Any]:
        """Every setting."""
        return dict(self.about["config"])

    @property
    def tables(self) -> list[tuple[str, dict[str, Any]]]:
        """(name of the evaluation temperature, its arms), the headline first."""
        names = map(temperature_text, self.results["eval_temperature"])
        arms = [self.results["arms"], self.results.get("sampled_arms")]
        return [(name, table) for name, table in zip(names, arms, strict=False) if table is not None]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The metrics of one kind."""
        return [entry for entry in self.metrics if entry.get("kind") == kind]

    def tested(self, store: ExperienceStore, arm: str, number: int = 0) -> pd.DataFrame:
        """The traces of an arm's test episodes at one of the temperatures.

        Raises:
            ExperienceError: They are not those that the run's files tell of.
        """
        phase = str(Phase.test(arm, self.results["eval_temperature"][number]))
        traces = store.traces(phase=phase)
        check_traces([entry for entry in self.metrics if entry["key"] == phase], traces)
        _, arms = self.tables[number]
        if (n := len(judged(traces))) != arms[arm]["n"]:
            raise _lost(n, arms[arm]["n"], f"judged traces of {phase}", "results.json")
        return traces

    def validations(self) -> dict[str, list[dict[str, float]]]:
        """Temperature -> the bare agent on validation: step, success_rate, ci_low, ci_high."""
        curves: dict[str, list[dict[str, float]]] = {}
        for entry in self.of_kind("play"):
            phase = Phase.parse(entry["key"])
            if phase.kind == "validation" and phase.temperature is not None:
                if not (n := entry.get("judged", entry["episodes"])):
                    continue
                low, high = wilson_interval(round(entry["success_rate"] * n), n)
                curves.setdefault(temperature_text(phase.temperature), []).append(
                    {
                        "step": int(phase.index or 0),
                        "success_rate": entry["success_rate"],
                        "ci_low": low,
                        "ci_high": high,
                    }
                )
        return curves

    def phase_seconds(self) -> dict[str, float]:
        """What each phase and step took, in seconds, by its name."""
        starts = [0.0, *(entry["seconds"] for entry in self.metrics)]
        return {
            entry["key"]: entry["seconds"] - start for entry, start in zip(self.metrics, starts, strict=False)
        }

    def seconds(self) -> dict[str, float]:
        """What each of ``PARTS`` took, in seconds."""
        spent = dict.fromkeys(PARTS, 0.0)
        for key, seconds in self.phase_seconds().items():
            spent[part_of(key)] += seconds
        return spent


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; without the last one if a kill left half of it.

    Raises:
        DamagedMetricsError: Another line is no entry.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            check(Entry, entry)
            Phase.parse(entry["key"])
        except (ValueError, RecursionError) as error:
            raise DamagedMetricsError(f"line {number} of {path} is damaged ({error})") from error
        entries.append(entry)
    return entries


def check_traces(metrics: Iterable[Mapping[str, Any]], traces: pd.DataFrame) -> None:
    """See that the store has every trace that was played according to ``metrics.jsonl``.

    They are all that ``ExperienceStore.traces()`` gives.

    Raises:
        ExperienceError: Some are missing, or there twice.
    """
    if (twice := traces.duplicated(["phase", "seed"])).any():
        raise damaged_store(f"two traces of one episode of {traces['phase'][twice].iloc[0]}")
    there = traces["phase"].value_counts()
    played = {entry["key"]: entry.get("episodes") for entry in metrics if entry.get("kind") == "play"}
    for phase, episodes in played.items():
        if (n := int(there.get(phase, 0))) != episodes:
            raise _lost(n, episodes, f"traces of {phase}", "metrics.jsonl")


def _lost(found: int, told: object, what: str, where: str) -> ExperienceError:
    return ExperienceError(
        f"the store has {found} of the {told} {what} that {where} tells of: it has lost some: put a whole "
        "copy in its place, or begin another run"
    )


def part_of(name: str) -> str:
    """The one of ``PARTS`` that a phase or a metric belongs to, by its name."""
    kind = Phase.stored(name).kind
    return {"step": "training", "stop": "training"}.get(
        kind, next((part for part in PARTS if kind.startswith(part)), "play")
    )


def rows_by_part(run: FinishedRun, traces: Iterable[Any]) -> list[dict[str, Any]]:
    """What each part cost: seconds, episodes, decisions and prompt tokens.

    The traces are rows of ``ExperienceStore.traces()``, as ``itertuples`` gives them.
    """
    seconds = run.seconds()
    rows: dict[str, dict[str, Any]] = {
        part: {"part": part, "seconds": seconds[part], "episodes": 0, "decisions": 0, "prompt_tokens": 0}
        for part in PARTS
    }
    for trace in traces:
        row = rows[part_of(trace.phase)]
        row["episodes"] += 1
        row["decisions"] += int(trace.num_turns)
        row["prompt_tokens"] += int(trace.prompt_tokens)
    return list(rows.values())


def _load(path: Path, name: str) -> Any:
    """What a JSON file holds, which is not nested deeper than a page can show.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
        RecursionError: It is nested deeper.
    """
    value = json.loads((path / name).read_text(encoding="utf-8"))
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
    if level:
        raise RecursionError(f"{name} is nested more than {MAX_DEPTH} deep")
    return value


def _about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = _load(path, "config.json")
    check(About, about, "config.json")
    return about


@contextmanager
def _said_clearly(path: Path) -> Iterator[None]:
    """What a folder that is none, or has a damaged file, raises, as one line."""
    try:
        yield
    except UnfinishedRunError:
        raise
    except OSError as error:
        raise UnfinishedRunError(
            f"{path} is not the folder of a finished run: {error.filename} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UnfinishedRunError(f"a file of the run in {path} is damaged: {error}") from error
