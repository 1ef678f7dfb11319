"""Gymnasium environments as text: what an agent reads, and how what it writes becomes an action."""

from envs.text_env import TextEnv, make_env, make_text_env
from envs.words import EnvError, EnvWords

__all__ = ["EnvError", "EnvWords", "TextEnv", "make_env", "make_text_env"]
