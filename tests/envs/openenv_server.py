"""A server of OpenEnv's own, with a few games: ``python -m tests.envs.openenv_server PORT``."""

import importlib
import os
import random
import sys
import time
from typing import Any, Literal

from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field


class Move(Action):
    move: Literal["left", "right", "die", "hang"]


class Say(Action):
    message: str = Field(max_length=20)
    volume: int = 1


class Form(Action):
    x: int = Field(description="a number below 9", lt=9)
    label: str = "none"


class Seen(Observation):
    text: str = ""
    screen: list[list[int]] | None = None


class Game(Environment):
    """Walk from a square that the seed draws to the sixth; or say anything that is asked."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        self.square = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, size: int = 6, **_: Any) -> Seen:
        self.size = size
        self.square = random.Random(seed).randrange(3)
        return self.seen()

    def step(self, action: Any, timeout_s: float | None = None, **_: Any) -> Seen:
        if isinstance(action, Say):
            return Seen(text=f"You said {action.message}.", reward=1.0, done=action.message == "bye")
        if isinstance(action, Form):
            return Seen(text=f"{action.label} {action.x}", reward=float(action.x), done=True)
        if action.move == "die":
            os._exit(1)
        if action.move == "hang":
            time.sleep(60)
        self.square += 1 if action.move == "right" else -1
        return self.seen()

    def seen(self) -> Seen:
        done = self.square == self.size
        return Seen(text=f"Square {self.square}.", done=done, reward=1.0 if done else None)

    @property
    def state(self) -> State:
        return State()


class Filmed(Game):
    """The same walk, with a picture of it."""

    def seen(self) -> Seen:
        return Seen(text="Look!", screen=[[0] * 84] * 84)


GAMES: dict[str, tuple[Any, Any, int]] = {
    "walk": (Game, Move, 8),
    "alone": (Game, Move, 1),
    "say": (Game, Say, 8),
    "form": (Game, Form, 8),
    "film": (Filmed, Move, 8),
}
"""Path -> env, action, and sessions at a time."""


if __name__ == "__main__":
    app = importlib.import_module("fastapi").FastAPI()
    for path, (game, action, sessions) in GAMES.items():
        app.mount(f"/{path}", create_fastapi_app(game, action, Seen, max_concurrent_envs=sessions))
    importlib.import_module("uvicorn").run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
