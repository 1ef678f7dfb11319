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
own is ``{method: adapters, lora_rank: 16, lr: 2e-4}``: the trained agent with these settings.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from agents.config import ConfigError, SelfImproveConfig

SHIPPED = Path(__file__).parent / "suites"
Arm = Literal["before", "before_with_experience", "after"]

METHODS: Mapping[str, tuple[Arm, Mapping[str, Any] | None]] = {
    "none": ("before", None),
    "in-context": ("before_with_experience", None),
    "off-policy": ("after", {"data": "teacher", "direction": "forward"}),
    "opcd": ("after", {"data": "student", "direction": "reverse"}),
    "student-forward": ("after", {"data": "student", "direction": "forward"}),
    "teacher-reverse": ("after", {"data": "teacher", "direction": "reverse"}),
}
"""Name -> which of a run's arms it is, and the run's settings. The last four are whose completions x which
KL. The first two train nothing: they are arms of the run of the suite's first method that does."""
UNTRAINED: Mapping[str, Any] = {"steps": 0}
"""The run of these two in a suite without any other."""

AXES = {"envs": "env", "models": "model", "methods": "method"}
"""Lists of a suite, and the key that names an entry."""
GIVEN_ELSEWHERE = ("env", "model", "seed", "output", "resume", "json")
"""Settings of a run that the suite or the command gives."""

Location = tuple[str | int, ...]
"""Where something stands in a file: keys, and numbers in lists."""
Settings = dict[str, tuple[Location, Any]]
"""Name -> where it stands, and its value."""

_CONFIG: TypeAdapter[SelfImproveConfig] = TypeAdapter(SelfImproveConfig)


class SuiteError(ConfigError):
    """A suite that cannot be run; the message names the file, the line and the key."""


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
    config: SelfImproveConfig
    """Of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    arm: Arm
    """Of a method."""
    settings: Settings
    is_trained: bool = True


def read_suite(name: str) -> list[Cell]:
    """The cells of a suite.

    Args:
        name: A file, or the name of a suite that comes with the toolkit.

    Raises:
        SuiteError: There is none, or it cannot be run.
    """
    path = Path(name) if Path(name).is_file() else SHIPPED / f"{name}.yaml"
    try:
        file = _File(path.name, path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(suite.stem for suite in SHIPPED.glob("*.yaml")))
        raise SuiteError(f"there is no suite {name}: name a YAML file, or one of {shipped}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"the suite {path} cannot be read: {error}") from error
    return list(_cells(file))


def _cells(file: "_File") -> Iterator[Cell]:
    common = file.settings(file.mapping((), (*AXES, "seeds", "settings")).get("settings", {}), ("settings",))
    envs, models, methods = (file.entries(axis) for axis in AXES)
    untrained: Settings = {name: (("methods",), value) for name, value in UNTRAINED.items()}
    shared = next(
        (method for method in methods if method.is_trained),
        _Entry(name="untrained", arm="before", settings=untrained),
    )
    for env in envs:
        for model in models:
            for seed in file.seeds():
                for method in methods:
                    source = method if method.is_trained else shared
                    settings = common | env.settings | model.settings | source.settings
                    names = (env.name, model.name, source.name, f"seed{seed}")
                    yield Cell(
                        env=env.name,
                        model=model.name,
                        method=method.name,
                        seed=seed,
                        arm=method.arm,
                        run=Path(*(name.replace("/", "-").replace(":", "-") for name in names)),
                        config=file.config(settings | {"seed": (("seeds",), seed)}),
                    )


class _File:
    """A YAML file: its values, and the line of each."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines: dict[Location, int] = {}
        self.values: Any = None
        try:
            loader = yaml.SafeLoader(text)
            if (node := loader.get_single_node()) is not None:
                self._note_lines(node, ())
                self.values = loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SuiteError(f"{name}, line {line}: {error.problem}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 32nd of May
            if isinstance(error, SuiteError):
                raise
            raise SuiteError(f"{name}, line 1: no YAML: {str(error).splitlines()[0]}") from error

    def _note_lines(self, node: yaml.Node, at: Location) -> None:
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*at, str(key.value))
                known = place in self.lines
                self.lines[place] = key.start_mark.line + 1
                if known:
                    raise self.error(place, "stands there twice")
                self._note_lines(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._note_lines(value, (*at, index))

    def error(self, at: Location, problem: str) -> SuiteError:
        """What is wrong at a place, or with what is missing there."""
        line = next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), 1)
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
        return SuiteError(f"{self.name}, line {line}: {key or 'the suite'} {problem}")

    def mapping(self, at: Location, keys: Sequence[str]) -> dict[str, Any]:
        """The mapping there, which has no other keys than these."""
        value = self.values
        for part in at:
            value = value[part]
        if not isinstance(value, dict):
            raise self.error(at, f"is a mapping of {', '.join(keys[:6])}, not {value!r}")
        for key in value:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise self.error((*at, str(key)), f"is not known here{hint}")
        return value

    def settings(self, values: Mapping[str, Any] | None, at: Location) -> Settings:
        """Settings of runs."""
        if not values:
            return {}
        known = [field.name for field in fields(SelfImproveConfig) if field.name not in GIVEN_ELSEWHERE]
        extra = [*AXES.values(), "name"] if len(at) > 1 else []
        self.mapping(at, [*extra, *known])
        return {key: ((*at, key), value) for key, value in values.items() if key in known}

    def entries(self, axis: str) -> list[_Entry]:
        """The envs, models or methods."""
        values = self._list(axis)
        entries = [self._entry(axis, index, value) for index, value in enumerate(values)]
        counts = Counter(entry.name for entry in entries)
        for index, entry in enumerate(entries):
            if counts[entry.name] > 1:
                raise self.error((axis, index), f"is one of several {entry.name}: give each a name")
        return entries

    def _entry(self, axis: str, index: int, value: Any) -> _Entry:
        at, key = (axis, index), AXES[axis]
        own = self.settings(value, at) if isinstance(value, dict) else {}
        given = value.get(key) if isinstance(value, dict) else value
        name = str(value.get("name", given) if isinstance(value, dict) else given)
        if not isinstance(given, str) or not name.strip(". "):
            raise self.error(at, f"needs a name, as text or under {key}")
        if axis != "methods":
            return _Entry(name=name, arm="after", settings=own | {key: (at, given)})
        if given not in METHODS and not own:
            raise self.error(at, f"is none of {', '.join(METHODS)}; a method of your own needs settings")
        arm, builtin = METHODS.get(given, ("after", {}))
        if builtin is None and own:
            raise self.error(at, f"takes no settings: {given} is an arm of another method's run")
        settings = {setting: (at, value) for setting, value in (builtin or {}).items()}
        return _Entry(name=name, arm=arm, settings=settings | own, is_trained=builtin is not None)

    def seeds(self) -> list[int]:
        """The run seeds."""
        seeds = self._list("seeds")
        for index, seed in enumerate(seeds):
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 or seeds.count(seed) > 1:
                raise self.error(("seeds", index), f"is a whole number from 0, given once, not {seed!r}")
        return seeds

    def _list(self, name: str) -> list[Any]:
        values = self.values.get(name)
        if not isinstance(values, list) or not values:
            raise self.error((name,), f"is needed: a list of at least one, not {values!r}")
        return values

    def config(self, settings: Settings) -> SelfImproveConfig:
        """A run's configuration."""
        given = {key: value for key, (_, value) in settings.items()}
        defaults = asdict(SelfImproveConfig.for_env(given["env"]))
        try:
            return _CONFIG.validate_python(defaults | given)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            # What makes no sense together has no place of its own: the message names the settings.
            names = [str(part) for part in first["loc"][:1]] or [key for key in given if key in message]
            at = next((settings[name][0] for name in names if name in settings), ())
            raise self.error(at, f"cannot be: {message[:1].lower() + message[1:]}") from error
