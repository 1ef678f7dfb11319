"""Runs whose insights come from a server that returns good ones, as a writer that can would.

    python -m tests.benchmarks.scripted_writer house --output runs/house   does the loop climb with them?
    python -m tests.benchmarks.scripted_writer sums --output runs/sums     what sums come to

``house`` is an environment that nothing here was tuned for. An episode begins in any of twelve rooms, and in
each round the writer knows the way out of four more; so about as many episodes can be won as there are rooms
that the agent has been told of.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import tyro

from agents.reflection import TRACES_SENT
from agents.self_improve import SelfImproveConfig, self_improve
from envs import register_text
from evals.forgetting import TASKS
from experience.writer import MARKER
from tests.serving import Handler, chat, serving

ROUNDS = 3
ROOMS = (
    *("tower", "pantry", "stable", "chapel", "balcony", "garage"),
    *("bathroom", "library", "garden", "attic", "cellar", "kitchen"),
)
"""From the farthest to the one before the door."""
MOVES = ("left", "right", "up", "down")
WAY = random.Random(0).choices(MOVES, k=len(ROOMS))
"""The move that leads on, by room."""
LIMIT = 24
"""Steps of an episode."""

SUMS = (
    "Read the problem carefully before you answer it.",
    "Think about which operation is asked for.",
    "Check your answer before you give it.",
    "Mathematics is easier when you take your time.",
    "Write the equation with its result, for example: 34 + 58 = 92.",
    "Begin with the problem as an equation and end with its result, as in 27 + 45 = 72.",
    "Repeat both numbers and the sign, then the equals sign and the result: 63 + 18 = 81.",
    "Say the whole equation: 12 + 49 = 61.",
    "Copy the problem, write =, and then the number it comes to.",
    "If there is a minus, take the second number from the first: 71 - 26 = 45. If there is a plus, add: "
    "34 + 58 = 92.",
    "Addition: 34 + 58 = 92. Subtraction: 71 - 26 = 45. With the larger number second the result is "
    "negative: 20 - 32 = -12.",
    "Examples: 8 + 57 = 65, 90 - 34 = 56, 15 - 40 = -25.",
    "45 + 38 = 83. 62 - 17 = 45. 9 + 76 = 85. 14 - 51 = -37.",
    "The answer to 45 + 38 is 45 + 38 = 83. The answer to 62 - 17 is 62 - 17 = 45. The answer to 14 - 51 is "
    "14 - 51 = -37.",
    "Minus with a smaller first number gives a negative result, so 20 - 32 = -12; otherwise 71 - 26 = 45; "
    "plus is 34 + 58 = 92.",
    "Add the tens, then the ones: 47 + 25 is 40 + 20 = 60 and 7 + 5 = 12, so 47 + 25 = 72.",
    "Add the ones first and carry the ten: 47 + 25: 7 + 5 = 12, write 2, carry 1; 4 + 2 + 1 = 7; so "
    "47 + 25 = 72.",
    "Go to the next ten first: 47 + 25 = 47 + 3 + 22 = 50 + 22 = 72.",
    "Work it out in your reply and give the result last: 38 + 46 = 84.",
    "First write the two numbers with their sign, then work out the result: 53 - 29 = 24.",
)
"""Lessons by somebody who can add."""


class House(gym.Env[Any, Any]):
    """Rooms in a row, each of which one move leads out of; the others lead nowhere."""

    observation_space, action_space = gym.spaces.Discrete(len(ROOMS) + 1), gym.spaces.Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._room = int(self.np_random.integers(len(ROOMS)))
        return self._room, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self._room += MOVES[action] == WAY[self._room]
        is_out = self._room == len(ROOMS)
        return self._room, float(is_out), is_out, False, {}


def describe(room: int) -> str:
    return f"You are in the {ROOMS[room]}." if room < len(ROOMS) else "You are outside."


gym.register("House-v0", entry_point=lambda **_: House(), max_episode_steps=LIMIT)
register_text(
    "House-v0", actions=MOVES, reply_prefix="I move", describe=describe, advise="{} Move {}.".format
)


def of_house(number: int) -> str:
    """One of the rooms that are known by that round, those near the door first."""
    known = len(ROOMS) * min(ROUNDS, 1 + number // TRACES_SENT) // ROUNDS
    room = len(ROOMS) - 1 - number % known
    return f"{describe(room)} Move {WAY[room]}."


def of_sums(number: int) -> str:
    return SUMS[number % len(SUMS)]


class Writer(Handler):
    """Answers the n-th request with the n-th lesson."""

    lesson: ClassVar[Callable[[int], str]]
    asked_before: ClassVar[int] = 0

    def reply(self) -> None:
        self.asked()
        number, Writer.asked_before = Writer.asked_before, Writer.asked_before + 1
        self.answer(chat(f"{MARKER} {Writer.lesson(number)}"))


def main(what: tyro.conf.Positional[Literal["house", "sums"]], output: Path, seed: int = 0) -> None:
    """Print, round by round, what the gate said of the lessons, and how the student did after it.

    Args:
        what: To be learned.
        output: The run's folder.
        seed: The run's.
    """
    is_house = what == "house"
    Writer.lesson = of_house if is_house else of_sums
    config = SelfImproveConfig.for_env("House-v0" if is_house else TASKS["sums"].env)
    with serving(Writer) as server:
        self_improve(
            replace(
                config,
                env_kwargs={} if is_house else TASKS["sums"].env_kwargs,
                insights="llm",
                insight_url=f"{server.url}/v1",
                insight_model="scripted",
                rounds=ROUNDS if is_house else 1,
                seed=seed,
                output=output,
            )
        )
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
    for gate in (entry for entry in metrics if entry["kind"] == "gate"):
        of_round = [entry for entry in metrics if entry.get("round") == gate["round"]]
        best = max((e["success_rate"] for e in of_round if e["kind"] == "validation"), default=float("nan"))
        print(
            f"round {gate['round']}: {gate['size']} insights, in context {gate['with_insights']:.1%}, "
            f"without {gate['without']:.1%}, {'admitted' if gate['admitted'] else 'refused'}; "
            f"after training {best:.1%} of validation"
        )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
