"""Episodes to step through: what the agent read and said at each turn, and what the env looked like then.

The looks are not kept in the store. The env is played again, with the trace's seed and replies, and is only
shown where it says the very same; otherwise the texts stand alone.
"""

import base64
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from PIL import Image

from envs.deadline import TimeLimit, close_quietly, guarded
from envs.games.frozen_lake import lake_map
from envs.games.random_lake import RandomFrozenLakeEnv
from envs.text_env import TextEnv, make_text_env
from envs.thinking import Replies, parted
from envs.thoughts import thought_and_said
from evals.finished_run import FinishedRun
from evals.result import judged
from experience.store import ExperienceStore
from experience.text import storable

MAX_PAIRS = 2
MAX_FRAMES = 80
"""Of one episode; of a longer one every second turn is shown, or every third, and so on."""
MAX_IMAGE_BYTES = 600_000
"""Of one episode, for the same."""
MAX_SIDE, COLOURS = 240, 48
"""Of an image: pixels, and entries of its palette."""
MAX_CHARS = 4000
"""Of one text."""

STORIES = (
    ("Failed before, succeeds now", False, True),
    ("Fails before and now", False, False),
    ("Succeeded before, fails now", True, False),
    ("Succeeds before and now", True, True),
)
"""(what happened, success before, success after), the most telling first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One turn, or the end."""

    turn: int
    observation: str
    reply: str | None
    """What is said; ``None`` at the end."""
    reward: str
    """Empty where there is none: a page's JSON knows no infinite numbers."""
    place: int | None = None
    """The number of the square on the board where the agent stands."""
    image: str | None = None
    """A PNG as a data URI."""
    thought: str = ""
    """What is thought before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One episode."""

    title: str
    seed: int
    success: bool
    ending: str
    """The ``StopReason``."""
    turns: int
    board: tuple[str, ...] | None
    """The rows of a Frozen Lake's map."""
    frames: tuple[Frame, ...]


def replay_pairs(run: FinishedRun, store: ExperienceStore) -> list[tuple[str, list[Replay]]]:
    """(what happened, test episodes before and after on one seed); the first shows the change, if any."""
    before, after = (judged(run.tested(store, arm)).set_index("seed") for arm in ("before", "after"))
    both = before.index.intersection(after.index)
    before, after = before.loc[both], after.loc[both]
    pairs: list[tuple[str, list[Replay]]] = []
    for story, won_before, won_after in STORIES:
        is_it = (before["success"] == won_before) & (after["success"] == won_after)
        if is_it.any() and len(pairs) < MAX_PAIRS:
            # The shortest of them is the easiest to follow.
            seed = int(cast("int", after.loc[is_it, "num_turns"].idxmin()))
            titles = (("Before", before), ("After", after))
            pair = [_replay(title, frame.loc[seed], seed, run, store) for title, frame in titles]
            pairs.append((story, pair))
    return pairs


def _replay(title: str, trace: Any, seed: int, run: FinishedRun, store: ExperienceStore) -> Replay:
    turns = store.turns(trace_id=str(trace["trace_id"]))
    observations = [*turns["observation"], trace["final_observation"]]
    board, looks = _looks(run, seed, observations, list(turns["reply"]))
    told = [_told(str(reply), thinks=_replies(run) == "think") for reply in turns["reply"]]
    frames = [
        Frame(
            turn=i + 1,
            observation=observation[:MAX_CHARS],
            reply=None if i == len(turns) else told[i][1][:MAX_CHARS],
            thought="" if i == len(turns) else told[i][0][:MAX_CHARS],
            reward=f"{r:.6g}" if i < len(turns) and (r := turns["reward"].iloc[i]) else "",
            place=look if isinstance(look, int) else None,
            image=look if isinstance(look, str) else None,
        )
        for i, (observation, look) in enumerate(zip(observations, looks, strict=True))
    ]
    return Replay(
        title=title,
        seed=seed,
        success=bool(trace["success"]),
        ending=str(trace["stop_reason"]).replace("_", " "),
        turns=len(turns),
        board=board,
        frames=_thinned(frames),
    )


def _replies(run: FinishedRun) -> Replies:
    return "think" if run.config.get("replies") == "think" else "act"  # a run of before has no word of it


def _told(reply: str, *, thinks: bool) -> tuple[str, str]:
    """What is thought in a reply, and what is said; where an agent ``thinks``, it says its action alone."""
    thought, said = thought_and_said(reply)
    if said is None:
        return thought, "(the thought does not end)"
    before, said = parted(said) if thinks else ("", said)
    return "\n".join(filter(None, [thought.strip(), before.strip()])), said.strip() if thought else said


def _looks(
    run: FinishedRun, seed: int, observations: Sequence[str], replies: Sequence[str]
) -> tuple[tuple[str, ...] | None, list[int | str | None]]:
    """The map, if there is one; and at each observation the place on it, an image, or ``None``."""
    try:
        limit = TimeLimit.of(run.config.get("env_timeout", 0.0))
        env = _env(run)
        try:
            looks, board = [], None
            for observation, now in zip(observations, _played(env, seed, replies, limit), strict=True):
                if storable(now) != observation:
                    raise ValueError("the env does not repeat itself")
                board, look = guarded(partial(_look, env), limit)
                looks.append(look)
            return board, looks
        finally:
            close_quietly(env)
    except Exception:  # the env's own code, and what it draws with: anything can come out of it
        return None, [None] * len(observations)


def _env(run: FinishedRun) -> TextEnv:
    """The run's env, drawing images where it can and we have no drawing of our own."""
    config = run.config
    name, kwargs = config["env"], dict(config["env_kwargs"])
    module, is_in_module, _ = name.partition(":")
    if (is_in_module and module not in sys.modules) or "dataset" in kwargs:
        raise ValueError("a folder that is only to be shown has no module imported and nothing fetched")
    make = partial(make_text_env, name, replies=_replies(run))
    env = make(kwargs)
    if _board(env) is None and "rgb_array" in env.unwrapped.metadata.get("render_modes", ()):
        close_quietly(env)
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame prints an error where it finds no display
        env = make(kwargs | {"render_mode": "rgb_array"})
    return env


def _played(env: TextEnv, seed: int, replies: Sequence[str], limit: TimeLimit) -> Iterator[str]:
    """The observations at the beginning and after each reply."""
    observation, *_ = guarded(partial(env.reset, seed=seed), limit)
    yield observation
    for reply in replies:
        observation, *_ = guarded(partial(env.step, reply), limit)
        yield observation


def _look(env: TextEnv) -> tuple[tuple[str, ...] | None, int | str | None]:
    """The board and the place on it, where there is one; else an image."""
    board = _board(env)
    if board:
        return board, _place(env)
    return None, _png(env.render()) if env.render_mode == "rgb_array" else None


def _board(env: TextEnv) -> tuple[str, ...] | None:
    """The rows of a frozen lake."""
    if isinstance(env.unwrapped, RandomFrozenLakeEnv):
        return env.unwrapped.board
    return lake_map(env)


def _place(env: TextEnv) -> int:
    """The number of the square where the agent stands on its board."""
    if isinstance(env.unwrapped, RandomFrozenLakeEnv):
        return env.unwrapped.square
    return int(env.get_wrapper_attr("s"))


def _png(pixels: Any) -> str:
    """A small PNG as a data URI."""
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.quantize(COLOURS).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thinned(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """As many of them as may be shown, evenly spread, the last one among them."""
    for step in range(1, len(frames) + 1):
        shown = frames[-1::-step][::-1]
        size = sum(len(frame.image or "") for frame in shown)
        if len(shown) <= MAX_FRAMES and size <= MAX_IMAGE_BYTES:
            return tuple(shown)
    return tuple(frames[-1:])
