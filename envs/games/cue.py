"""A game that only those win who remember: what is seen first decides what is right at the end."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

from envs.actions import word_grammar
from envs.any_text import AnyText
from envs.registry import recommend, words_of
from envs.words import EnvError, EnvWords, Options, Success

CUES = ("red", "green", "blue")
ACTIONS = ("left", "ahead", "right")
"""The way that is right at the fork, after each of the cues."""
MAX_CORRIDOR = 50


class CueEnv(gym.Env[str, np.int64]):
    """``OPCD/Cue-v0``: a lamp shows one of three colours, then the way leads through a corridor to a fork.

    At the fork one way is right after each colour; it gives reward 1, and any way ends the episode. Before it
    every move leads on. Who does not remember the colour wins a third of the episodes, whatever is done.
    """

    def __init__(self, *, corridor: int = 1) -> None:
        """Build the way, with this many turns between the lamp and the fork.

        Raises:
            EnvError: It is too long, or less than nothing.
        """
        if not 0 <= corridor <= MAX_CORRIDOR:
            raise EnvError(f"corridor must be from 0 to {MAX_CORRIDOR}, not {corridor}")
        self.observation_space = AnyText()
        self.action_space = Discrete(len(ACTIONS))
        self._corridor = corridor
        self._cue = self._walked = 0

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Draw a colour."""
        super().reset(seed=seed)
        self._cue, self._walked = int(self.np_random.integers(len(CUES))), 0
        return self._view(), {}

    def step(self, action: np.int64) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Go a way."""
        is_fork = self._walked > self._corridor
        self._walked += 1
        if not is_fork:
            return self._view(), 0.0, False, False, {}
        is_right = int(action) == self._cue
        return "You are out." if is_right else "You are lost.", float(is_right), True, False, {}

    def _view(self) -> str:
        if self._walked == 0:
            return f"You see the cue {CUES[self._cue]}."
        return "You are at the fork." if self._walked > self._corridor else "You are in the corridor."


@words_of(CueEnv)
def cue_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for it: what the cue is for is to be found out."""

    def advise(situation: str, action: str) -> str:
        where = situation.removesuffix(".").replace("You are ", "").replace("You see", "When you see")
        return f"{where[:1].upper()}{where[1:]}, go {action}."

    return EnvWords(
        rules="You walk to the way out. Each turn you go left, ahead or right.",
        question="Left, ahead or right?",
        reply_prefix="I go",
        actions=ACTIONS,
        grammar=word_grammar(ACTIONS),
        advise=advise,
        success=Success(means="the way out is found", reached=lambda total, _: total > 0),
    )


gym.register("OPCD/Cue-v0", entry_point=f"{__name__}:CueEnv", max_episode_steps=MAX_CORRIDOR + 2)
recommend(
    "OPCD/Cue-v0",
    {
        "memory": "full",
        "episodes": 384,
        "waves": 8,
        "steps": 80,
        "eval_every": 10,
        "batch_size": 32,
        "validation_episodes": 64,
        "test_episodes": 256,
    },
)
