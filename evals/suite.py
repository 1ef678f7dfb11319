"""A suite file: which envs, models, methods and seeds a benchmark compares, in YAML.

    settings: {test_episodes: 500}     # of every run: the settings of agents.self_improve
    envs:
      - FrozenLake-v1
      - env: FrozenLake-v1
        name: dry lake                 # where the same env comes twice
        env_kwargs: {is_slippery: false}
    models: [smollm2]
    methods: [none, in-context, off-policy, opcd]
    seeds: [0, 1]

An entry is a name, or a mapping with settings of its own, which go before those above it. A method of your
own is ``{method: adapters, lora_rank: 16, lr: 2e-4}``: the trained agent with these settings. Names are
folders as well, so two must not differ in ``/``, ``:`` or capitals alone. YAML's aliases are refused.
"""

import difflib
import reprlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PlainValidator, ValidationError

from evals import agent_process
from evals.yaml_file import FileError, Location, YamlFile
from experience.plain_yaml import read_bounded

SuiteError = FileError
"""A suite that cannot be run."""

SHIPPED = Path(__file__).parent / "suites"
Arm = Literal["before", "before_with_experience", "after"]

METHODS: Mapping[str, tuple[Arm, Mapping[str, Any] | None]] = {
    "none": ("before", None),
    "in-context": ("before_with_experience", None),
    "off-policy": ("after", {"data": "teacher", "direction": "forward"}),
    "opcd": ("after", {"data": "student", "direction": "gated"}),
    "opcd-reverse": ("after", {"data": "student", "direction": "reverse"}),
    "student-forward": ("after", {"data": "student", "direction": "forward"}),
    "teacher-reverse": ("after", {"data": "teacher", "direction": "reverse"}),
    "teacher-gated": ("after", {"data": "teacher", "direction": "gated"}),
}
"""Name -> which of a run's arms it is, and the run's settings.

Most are whose completions x which KL; the paper's is opcd-reverse. The first two train nothing: they are arms
of the run of the suite's first method that does."""
UNTRAINED: Mapping[str, Any] = {"steps": 0}
"""The run of these two in a suite without any other."""

GIVEN_ELSEWHERE = ("env", "model", "seed", "output", "resume", "json")
"""Settings of a run that the suite or the command gives."""
TABLE, CELLS, LOCK = "benchmark.json", "cells.csv", ".lock"
"""Files of a benchmark's folder, where those of the envs are."""
MAX_CELLS = 10_000
MAX_NAME_BYTES = 200
"""Of an entry, which is a folder."""

Settings = dict[str, tuple[Location, Any]]
"""Name -> where it stands, and its value."""
Check = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any] | None]]
"""See ``agent_process.check``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One env, model, method and seed: one success rate."""

    env: str
    """Its name in the suite."""
    model: str
    method: str
    seed: int
    arm: Arm
    """Which of the run's arms it is."""
    run: Path
    """The run's folder in the benchmark's; cells may share it."""
    settings: Mapping[str, Any]
    """Of the run, but for its folder: those of ``agents.self_improve``, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """An env, a model or a method."""

    given: str
    """The id of the env, the model, or the method that is built in."""
    name: str
    own: Mapping[str, Any]
    """Its settings."""

    @property
    def folder(self) -> str:
        """What it is called in a path."""
        return self.name.replace("/", "-").replace(":", "-")

    @property
    def method(self) -> tuple[Arm, Mapping[str, Any] | None]:
        """Of a method: see ``METHODS``; one's own is the trained agent."""
        return METHODS.get(self.given, ("after", {}))

    @property
    def is_trained(self) -> bool:
        """Whether a method is one."""
        return self.method[1] is not None


def _read_entry(key: str, value: Any) -> _Entry:
    """An entry, which is a name, or a mapping that has it under ``key``."""
    own = dict(value) if isinstance(value, dict) else {key: value}
    given = own.pop(key, None)
    name = own.pop("name", given)
    is_name = (
        isinstance(name, str)
        and name.strip(". ")
        and name.isprintable()
        and len(name.encode()) <= MAX_NAME_BYTES
    )
    if not isinstance(given, str) or not is_name:
        raise ValueError(f"needs a short name, as text or under {key}")
    return _Entry(given=given, name=name, own=own)


def _read_method(value: Any) -> _Entry:
    entry = _read_entry("method", value)
    if entry.given not in METHODS and not entry.own:
        raise ValueError(f"is not one of {', '.join(METHODS)}; a method of your own needs settings")
    if not entry.is_trained and entry.own:
        raise ValueError(f"takes no settings: {entry.given} is an arm of another method's run")
    return entry


class _Suite(BaseModel, extra="forbid", strict=True):
    settings: dict[str, Any] | None = None
    envs: Annotated[list[Annotated[_Entry, PlainValidator(partial(_read_entry, "env"))]], Field(min_length=1)]
    models: Annotated[
        list[Annotated[_Entry, PlainValidator(partial(_read_entry, "model"))]], Field(min_length=1)
    ]
    methods: Annotated[list[Annotated[_Entry, PlainValidator(_read_method)]], Field(min_length=1)]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]


def read_suite(name: str, check: Check = agent_process.check) -> list[Cell]:
    """The cells of a suite: a file, or the name of one that comes with the toolkit.

    Raises:
        SuiteError: There is none, or it cannot be run.
    """
    path = Path(name) if Path(name).is_file() else SHIPPED / f"{name}.yaml"
    try:
        text = read_bounded(path)
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(suite.stem for suite in SHIPPED.glob("*.yaml")))
        raise SuiteError(f"there is no suite {name}: name a YAML file, or one of {shipped}") from error
    except (OSError, ValueError) as error:
        raise SuiteError(f"the suite {path} cannot be read: {error}") from error
    suite = YamlFile(path.name, text, "the suite")
    cells = []
    runs: dict[Path, Settings] = {}
    for cell, settings in _cells(suite):
        cells.append(cell)
        runs[cell.run] = settings
    plain = [{key: value for key, (_, value) in settings.items()} for settings in runs.values()]
    for settings, found in zip(runs.values(), check(plain), strict=True):
        if found is not None:
            # What makes no sense together has no place of its own: the message names the settings.
            names = [found["setting"], *(key for key in settings if key in found["problem"])]
            at = next((settings[name][0] for name in names if name in settings), ())
            problem = found["problem"] if found["setting"] else f"cannot be: {found['problem']}"
            raise suite.error(at, problem.replace("a valid tuple", "a list"))  # which YAML has
    return cells


def _cells(file: YamlFile) -> Iterator[tuple[Cell, Settings]]:
    """Each cell, and where its run's settings come from."""
    suite = _read(file)
    common = _settings(file, suite.settings or {}, ("settings",))
    envs = _entries(file, "envs", suite.envs, "env")
    models = _entries(file, "models", suite.models, "model")
    methods = _entries(file, "methods", suite.methods)
    if len(envs) * len(models) * len(methods) * len(suite.seeds) > MAX_CELLS:
        raise file.error((), f"has more than {MAX_CELLS} cells")
    for index, seed in enumerate(suite.seeds):
        if seed in suite.seeds[:index]:
            raise file.error(("seeds", index), "stands there twice")
    untrained = _Entry(given="", name="untrained", own={})
    shared = next(
        ((method, own) for method, own in methods if method.is_trained),
        (untrained, {name: (("methods",), value) for name, value in UNTRAINED.items()}),
    )
    for env, of_env in envs:
        for model, of_model in models:
            for index, seed in enumerate(suite.seeds):
                for method, own in methods:
                    source, of_source = (method, own) if method.is_trained else shared
                    settings = common | of_env | of_model | of_source
                    settings |= {"seed": (("seeds", index), seed)}
                    cell = Cell(
                        env=env.name,
                        model=model.name,
                        method=method.name,
                        seed=seed,
                        arm=method.method[0],
                        run=Path(env.folder, model.folder, source.folder, f"seed{seed}"),
                        settings={key: value for key, (_, value) in settings.items()},
                    )
                    yield cell, settings


def _read(file: YamlFile) -> _Suite:
    """What stands in the file, which has the form of a suite."""
    try:
        return _Suite.model_validate(file.values)
    except ValidationError as error:
        # What is misspelt is missing too, and says more.
        found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        kind, at = found["type"], found["loc"]
        if not at:
            problem = f"is a mapping of {', '.join(_Suite.model_fields)}"
        elif kind == "extra_forbidden":
            near = difflib.get_close_matches(str(at[0]), _Suite.model_fields, n=1)
            problem = f"is not known here{f': did you mean {near[0]}?' if near else ''}"
        elif kind == "missing":
            problem = "is needed"
        elif kind == "value_error":
            problem = str(found["ctx"]["error"])
        else:
            what = found["msg"][:1].lower() + found["msg"][1:]
            problem = f"cannot be {reprlib.repr(found['input'])}: {what}"
        raise file.error(at, problem) from error


def _settings(file: YamlFile, values: Mapping[str, Any], at: Location) -> Settings:
    """Settings of runs, with their places."""
    for key in values:
        if key in GIVEN_ELSEWHERE:
            raise file.error((*at, key), "is not known here: the suite or the command gives it")
    return {key: ((*at, key), value) for key, value in values.items()}


def _entries(
    file: YamlFile, axis: str, entries: Sequence[_Entry], setting: str | None = None
) -> list[tuple[_Entry, Settings]]:
    """Entries of an axis with all their settings, their id being one; no two share a name or a folder."""
    files = (TABLE, CELLS, LOCK) if axis == "envs" else ()
    taken = dict.fromkeys(files, "a file of the benchmark")
    found = []
    for index, entry in enumerate(entries):
        at = (axis, index)
        folder = unicodedata.normalize("NFC", entry.folder).casefold()  # some disks know no difference
        if other := taken.get(folder):
            raise file.error(
                at, f"is called {entry.name}, and shares its path with {other}: give it another name"
            )
        taken[folder] = entry.name
        given = entry.method[1] if setting is None else {setting: entry.given}
        settings = {name: (at, value) for name, value in (given or {}).items()}
        found.append((entry, settings | _settings(file, entry.own, at)))
    return found
