"""What other programs ask of the agents, each question in a process of its own (agents/answering.py).

    python -m agents.asked check    settings of several runs -> of each null, or {"setting", "problem"}
    python -m agents.asked run      {"settings": a run's, with output, "finished": folders of runs from which
                                    it may take what it has in common with them} -> null
    python -m agents.asked exam     {"model", "device", "trust_remote_code", "chat_template_kwargs", "exam"}
                                    -> its answers

Settings are those of ``python -m agents.self_improve`` by name, the env's recommendations beneath them.
"""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from pydantic import TypeAdapter, ValidationError

from agents.answering import answer
from agents.cli import USER_ERRORS
from agents.config import ConfigError, SelfImproveConfig
from agents.exam import sit
from agents.policies.local import HFPolicy
from agents.run.branch import branch
from agents.run.resume import begun, finish
from agents.self_improve import self_improve
from distill.lm.load import load_model
from evals.forgetting import Exam

_CONFIG: TypeAdapter[SelfImproveConfig] = TypeAdapter(SelfImproveConfig)
_EXAM: TypeAdapter[Exam] = TypeAdapter(Exam)


class SettingError(ConfigError):
    """A setting that cannot be."""

    def __init__(self, setting: str | None, problem: str) -> None:
        super().__init__(f"{setting} {problem}" if setting else problem)
        self.setting, self.problem = setting, problem


def config_of(settings: Mapping[str, Any]) -> SelfImproveConfig:
    """The configuration with these settings.

    Raises:
        SettingError: One is not known, or cannot be; or they make no sense together.
    """
    known = [field.name for field in fields(SelfImproveConfig)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SettingError(name, f"is not known here{f': did you mean {near[0]}?' if near else ''}")
    try:
        env = str(settings.get("env", SelfImproveConfig().env))
        defaults = asdict(SelfImproveConfig.for_env(env))
        return _CONFIG.validate_python(defaults | dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if first["loc"]:
            raise SettingError(str(first["loc"][0]), f"cannot be: {message}") from error
        raise SettingError(None, message) from error


def check(question: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """What is wrong with each of several runs' settings, also beside a run that ``output`` holds already."""
    answers: list[dict[str, Any] | None] = []
    for settings in question:
        try:
            config = config_of(settings)
            if config.output is not None:
                begun(config, config.output)
            answers.append(None)
        except SettingError as error:
            answers.append({"setting": error.setting, "problem": error.problem})
        except USER_ERRORS as error:
            answers.append({"setting": None, "problem": str(error)})
    return answers


def run(question: dict[str, Any]) -> None:
    """A whole run, or the rest of it."""
    config = config_of(question["settings"])
    assert config.output is not None
    if not (config.output / "config.json").exists():
        branch(config, config.output, map(Path, question["finished"]))
    finish(config, config.output, partial(self_improve, is_settled=True))


def exam(question: dict[str, Any]) -> Any:
    """The answers of a model to an exam."""
    loaded = load_model(
        question["model"], device=question["device"], trust_remote_code=question["trust_remote_code"]
    )
    policy = HFPolicy(loaded.model, loaded.tokenizer, template_settings=question["chat_template_kwargs"])
    return asdict(sit(policy, _EXAM.validate_python(question["exam"])))


QUESTIONS: dict[str, Callable[[Any], Any]] = {"check": check, "run": run, "exam": exam}


def main() -> int:
    """The command; returns its exit code."""
    transformers.utils.logging.disable_progress_bar()
    return answer(QUESTIONS[sys.argv[1]], USER_ERRORS)


if __name__ == "__main__":
    sys.exit(main())
