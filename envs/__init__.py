"""Gymnasium environments as text: what an agent reads, and how what it writes becomes an action."""

import gymnasium as gym

from envs.check import check_text_env
from envs.games.cue import MAX_CORRIDOR
from envs.games.random_lake import MAX_MOVES
from envs.questions.log_env import register_checker
from envs.questions.math_env import MAX_ATTEMPTS
from envs.registry import register_text
from envs.text_env import TextEnv, make_env, make_text_env
from envs.words import EnvError, EnvWords, Success

__all__ = [
    "EnvError",
    "EnvWords",
    "Success",
    "TextEnv",
    "check_text_env",
    "make_env",
    "make_text_env",
    "register_checker",
    "register_text",
]

# One step more than there can be attempts: the env ends its episodes itself.
gym.register("Math-v0", entry_point="envs.questions.math_env:MathEnv", max_episode_steps=MAX_ATTEMPTS + 1)
gym.register(
    "OPCD/RandomFrozenLake-v0",
    entry_point="envs.games.random_lake:RandomFrozenLakeEnv",
    max_episode_steps=MAX_MOVES,
)
gym.register("OPCD/Cue-v0", entry_point="envs.games.cue:CueEnv", max_episode_steps=MAX_CORRIDOR + 2)
gym.register("Choice-v0", entry_point="envs.questions.choice_env:ChoiceEnv", max_episode_steps=2)
gym.register("Logs-v0", entry_point="envs.questions.log_env:LogEnv", max_episode_steps=2)
