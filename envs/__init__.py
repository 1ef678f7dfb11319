"""Gymnasium environments as text: what an agent reads, and how what it writes becomes an action."""

import importlib
import pkgutil

from envs import games
from envs.check import check_text_env
from envs.questions import choice_env, math_env  # noqa: F401
from envs.questions.log_env import register_checker
from envs.registry import register_text
from envs.text_env import TextEnv, make_env, make_text_env
from envs.words import EnvError, EnvWords, Example, Success

__all__ = [
    "EnvError",
    "EnvWords",
    "Example",
    "Success",
    "TextEnv",
    "check_text_env",
    "make_env",
    "make_text_env",
    "register_checker",
    "register_text",
]

for _module in pkgutil.iter_modules(games.__path__, f"{games.__name__}."):
    importlib.import_module(_module.name)
