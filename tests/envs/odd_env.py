"""An env that does on odd seeds what an env should not, and some of what it may.

It stands alone, since a process of its own has to import it.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete


class Odd(gym.Env[Any, Any]):
    """Three steps of reward 1; ``does`` is called at the second, and its result put in the step's place."""

    observation_space = Discrete(100)
    action_space = Discrete(2)

    def __init__(self, does: str = "", **_: Any) -> None:
        self.does = does

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.is_odd = 0, bool(seed and seed % 2)
        if self.is_odd and self.does.startswith("reset "):
            return ODDITIES[self.does](self)  # type: ignore[no-any-return]
        return 0, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 2 and self.is_odd and self.does and not self.does.startswith("reset "):
            return ODDITIES[self.does](self)
        return self.steps, 1.0, self.steps == 3, False, {}


def step(**changes: Any) -> Any:
    values = {"observation": 1, "reward": 1.0, "terminated": False, "truncated": False, "info": {}} | changes
    return tuple(values.values())


def stubborn() -> None:
    while True:
        try:  # noqa: SIM105  (a with statement has calls to be interrupted in)
            time.sleep(0.01)
        except BaseException:
            pass


def swallows() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Trap:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise SystemExit(0)


def tensor(value: Any) -> Any:
    import torch

    return torch.tensor(value)


def throw(error: BaseException) -> Any:
    raise error


ODDITIES: dict[str, Callable[[Any], Any]] = {
    # faults
    "exit": lambda _: sys.exit(0),
    "system exit": lambda _: throw(SystemExit("bye")),
    "generator exit": lambda _: throw(GeneratorExit()),
    "base exception": lambda _: throw(BaseException("base")),
    "group": lambda _: throw(BaseExceptionGroup("many", [SystemExit()])),
    "memory": lambda _: throw(MemoryError()),
    "unspeakable": lambda _: throw(UnspeakableError()),
    "long error": lambda _: throw(ValueError("x" * 10**6)),
    "control error": lambda _: throw(ValueError("a\x1b[2J\nb\ud800")),
    "recursion": lambda env: ODDITIES["recursion"](env),
    "reset exit": lambda _: sys.exit(0),
    "reset three": lambda _: (0, {}, {}),
    "reset none": lambda _: None,
    "reset list info": lambda _: (0, [1]),
    "four": lambda _: step()[:4],
    "info list": lambda _: step(info=[1, 2]),
    "info number": lambda _: step(info=3),
    "success that raises": lambda _: step(info={"is_success": Trap()}),
    "reward that raises": lambda _: step(reward=Trap()),
    "success array": lambda _: step(info={"is_success": np.array([True, False])}),
    "success text": lambda _: step(info={"is_success": "False"}),
    "success nan": lambda _: step(info={"is_success": float("nan")}),
    "success empty": lambda _: step(info={"is_success": np.array([])}),
    "reward none": lambda _: step(reward=None),
    "reward text": lambda _: step(reward="1"),
    "reward nan": lambda _: step(reward=np.float32("nan")),
    "reward two": lambda _: step(reward=np.array([1.0, 2.0])),
    "reward complex": lambda _: step(reward=1j),
    "reward huge int": lambda _: step(reward=10**400),
    "reward huge": lambda _: step(reward=1.7e308),
    "reward minus huge": lambda _: step(reward=-1.7e308),
    "terminated text": lambda _: step(terminated="no"),
    "truncated array": lambda _: step(truncated=np.array([True, True])),
    "observation": lambda _: step(observation="x"),
    "observation half": lambda _: step(observation=0.5),
    # no faults
    "fine info": lambda env: step(
        info={"legal_moves": np.arange(1 + env.steps), "winner": None, "d": {"a": {"b": object()}}}
    ),
    "fine no info": lambda _: step(info=None),
    "reset fine no info": lambda _: (0, None),
    "fine success": lambda _: step(info={"is_success": np.array([True])}),
    "fine tensor": lambda _: step(reward=tensor(1.0), terminated=tensor(False)),
    "fine arrays": lambda _: step(reward=np.array([1.0]), terminated=np.bool_(False), truncated=np.array(0)),
    "fine private key": lambda _: step(info={"_is_success": 3, "final_obs": 1, 7: 8, "text/action": [1]}),
    # what takes long
    "swallows": lambda _: swallows(),
    "stubborn": lambda _: stubborn(),
    "sleep": lambda _: time.sleep(60),
    # what only a process survives
    "c loop": lambda _: sum(range(10**13)),
    "dies": lambda _: os._exit(0),
    "killed": lambda _: os.kill(os.getpid(), 9),
}
SLOW = ("swallows", "stubborn", "sleep")
DEADLY = ("c loop", "dies", "killed")


gym.register("tests/Odd-v0", entry_point=f"{__name__}:Odd", max_episode_steps=10)
