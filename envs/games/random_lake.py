"""The paper's Frozen Lake: another small board in each episode, and nothing explained."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

from envs.actions import word_grammar
from envs.any_text import AnyText
from envs.games.frozen_lake import ACTIONS
from envs.parts import PartedEnv
from envs.registry import recommend, words_of
from envs.words import EnvError, EnvWords, Options, Success

SIDE, HOLES = 3, 2
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(row, column) steps of left, down, right, up."""
MAX_MOVES = 5
MAX_BUMPS = 2

Board = tuple[str, ...]


def boards() -> list[Board]:
    """The 19 boards of 3x3 squares with 2 holes on which the goal can be reached, in a fixed mixed order.

    S start, G goal, H hole, F frozen. All of them take 4 moves.
    """
    squares = list(itertools.product(range(SIDE), repeat=2))
    found = []
    for holes in itertools.combinations(squares[1:-1], HOLES):
        rows = [["H" if (row, column) in holes else "F" for column in range(SIDE)] for row in range(SIDE)]
        rows[0][0], rows[-1][-1] = "S", "G"
        board = tuple("".join(row) for row in rows)
        if _is_solvable(board):
            found.append(board)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[index] for index in order]


def _is_solvable(board: Board) -> bool:
    reached, frontier = {(0, 0)}, [(0, 0)]
    while frontier:
        row, column = frontier.pop()
        for down, right in MOVES:
            place = row + down, column + right
            inside = 0 <= place[0] < SIDE and 0 <= place[1] < SIDE
            if inside and place not in reached and board[place[0]][place[1]] != "H":
                reached.add(place)
                frontier.append(place)
    return (SIDE - 1, SIDE - 1) in reached


class RandomFrozenLakeEnv(PartedEnv[str, np.int64]):
    """``OPCD/RandomFrozenLake-v0``: the setup of arXiv 2602.12275.

    The observation is the board as drawn, with the player on it. A move goes where it should. Into a hole
    ends the episode, onto the goal ends it with reward 1; a move into the wall is lost, and the second of two
    in a row ends the episode. The time limit is 5 moves.

    The boards come in a fixed order: seeds 0, 3, 6, ... pose one after the other, then begin again; so do
    seeds 1, 4, 7, ... and 2, 5, 8, .... With ``held_out`` boards, those are posed by the last of the three
    only, and no others are: the first of the order, or those from board ``first`` on, round to the
    beginning. ``info["board"]`` has the board's rows, for reports.
    """

    def __init__(self, *, held_out: int = 0, first: int = 0) -> None:
        """Choose the boards.

        Raises:
            EnvError: ``held_out`` leaves no board to train on, or there is no board ``first``.
        """
        all_boards = boards()
        for name, value in (("held_out", held_out), ("first", first)):
            if not 0 <= value < len(all_boards):
                raise EnvError(f"{name} must be from 0 to {len(all_boards) - 1}, not {value}")
        all_boards = all_boards[first:] + all_boards[:first]
        seen = all_boards[held_out:]
        self._parts = (seen, seen, all_boards[:held_out] or seen)
        self.observation_space = AnyText()
        self.action_space = Discrete(len(ACTIONS))
        self._board = seen[0]
        self._place = (0, 0)
        self._bumps = 0

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Pose a board; without a seed, any of the part of the last seed."""
        number = self.draw_number(seed)
        choice = self._parts[self.part]
        self._board, self._place, self._bumps = choice[number % len(choice)], (0, 0), 0
        return self._draw(), {"board": list(self._board)}

    def step(self, action: np.int64) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move."""
        down, right = MOVES[int(action)]
        row, column = self._place[0] + down, self._place[1] + right
        if not (0 <= row < SIDE and 0 <= column < SIDE):
            self._bumps += 1
            return self._draw(), 0.0, self._bumps == MAX_BUMPS, False, {}
        self._place, self._bumps = (row, column), 0
        square = self._board[row][column]
        return self._draw(), float(square == "G"), square in "GH", False, {}

    @property
    def board(self) -> Board:
        """The present board's rows. For reports: the agent reads its own drawing."""
        return self._board

    @property
    def square(self) -> int:
        """The number of the square where the player stands, row by row."""
        return self._place[0] * SIDE + self._place[1]

    def _draw(self) -> str:
        """The player is P; what the other letters are is for the agent to find out."""
        rows = [list(row) for row in self._board]
        rows[0][0] = "F"
        rows[self._place[0]][self._place[1]] = "P"
        return " / ".join(" ".join(row) for row in rows)


@words_of(RandomFrozenLakeEnv)
def random_lake_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for it: only how to answer."""
    return EnvWords(
        rules="You are playing a game on a board. Each turn you move left, down, right or up.",
        question="Left, down, right or up?",
        reply_prefix="I move",
        actions=ACTIONS,
        grammar=word_grammar(ACTIONS),
        describe=lambda observation: f"The board: {observation}.",
        advise=lambda _, action: f"On this board, move {action}.",
        success=Success(means="the goal is reached", reached=lambda total, _: total > 0),
    )


gym.register(
    "OPCD/RandomFrozenLake-v0", entry_point=f"{__name__}:RandomFrozenLakeEnv", max_episode_steps=MAX_MOVES
)
recommend(
    "OPCD/RandomFrozenLake-v0",
    {
        "episodes": 1536,
        "waves": 16,
        "eval_every": 20,
        "batch_size": 40,
        "validation_episodes": 95,
        "test_episodes": 128,
    },
)
