"""Gymnasium environments as text: what an agent reads, and how what it writes becomes an action."""

from envs.text_env import EnvError, TextEnv, make_env, make_text_env
from envs.words import EnvWords

__all__ = ["EnvError", "EnvWords", "TextEnv", "make_env", "make_text_env"]
