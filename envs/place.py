"""A place where one episode after the other is played, and where an env's faults stay: here, or in a process.

Whatever an env does wrong ends its own episode: it may raise anything, hang, or give what is no observation,
reward or truth value. Of its ``info`` only what is used goes on, as plain values. After a fault the env is
made anew, so that what comes next does not depend on who has played here before.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol, cast

import gymnasium as gym

from envs.any_text import MAX_CHARS, clean
from envs.deadline import CLEANUP, NO_LIMIT, EnvFault, TimeLimit, close_quietly, guarded
from envs.words import number, truth

Vectorization = Literal["sync", "async"]
TextLike = gym.Env[Any, Any]
"""An env whose observations are text; its actions may be anything."""

MAX_RETURN = 1e100
"""An episode whose rewards add up to more is refused: of such numbers no mean can be taken."""
START_SECONDS = 600.0
"""A process whose env is not made after so long is ended."""
KILL_SECONDS = 5.0
"""A process that says nothing so long after its time is over is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a reset or a step."""

    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    action: str | None = None
    """``info["text/action"]``"""
    is_success: bool | None = None
    """``info["is_success"]``; ``None`` where the env does not say."""
    too_many_invalid: bool = False
    """``info["text/too_many_invalid"]``"""
    cut_off: bool = False
    """``info["text/cut_off"]``"""
    not_judged: bool = False
    """``info["not_judged"]``: the env could not tell whether the answer is right."""
    gold: str | None = None
    """The reply that is right, where the env tells: ``info["gold_reply"]`` or ``info["gold"]``."""
    fault: str | None = None
    """What the env did wrong; nothing else counts then, and the episode is over."""
    timed_out: bool = False
    """Whether the fault is that it took too long."""


class Place(Protocol):
    """What is begun or done here is answered by the next ``outcome``."""

    def begin(self, seed: int) -> None:
        """Reset the env."""

    def act(self, action: Any) -> None:
        """Take a step."""

    def outcome(self) -> Outcome:
        """Wait for what came of it."""

    def close(self) -> None:
        """Close the env; nothing that it does then is of interest."""


class LocalPlace:
    """A place in this process: limits hold as far as ``guarded`` can make them."""

    def __init__(self, make: Callable[[], TextLike], limit: TimeLimit = NO_LIMIT) -> None:
        """Make the env; what that raises is not caught."""
        self._make = make
        self._limit = limit
        self._env: TextLike | None = make()
        self._return = 0.0
        self._outcome = Outcome()

    def begin(self, seed: int) -> None:
        """See ``Place``."""
        self._return = 0.0
        self._try(lambda: self._reset(seed), "")

    def act(self, action: Any) -> None:
        """See ``Place``."""
        self._try(lambda: self._step(action), f" (reply {action[:80]!r})" if isinstance(action, str) else "")

    def outcome(self) -> Outcome:
        """See ``Place``."""
        return self._outcome

    def close(self) -> None:
        """See ``Place``."""
        env, self._env = self._env, None
        if env is not None:
            close_quietly(env)

    def _try(self, call: Callable[[], Outcome], where: str) -> None:
        try:
            if self._env is None:
                self._env = guarded(self._make)
            self._outcome = guarded(call, self._limit)
        except EnvFault as fault:
            self._outcome = Outcome(fault=f"{fault}{where}", timed_out=fault.timed_out)
            self.close()

    def _reset(self, seed: int) -> Outcome:
        assert self._env is not None
        observation, given = self._env.reset(seed=seed)
        info = _mapping(given)
        gold = info.get("gold_reply", info.get("gold"))
        return Outcome(observation=_text(observation), gold=gold if type(gold) is str else None)

    def _step(self, action: Any) -> Outcome:
        assert self._env is not None
        observation, reward, terminated, truncated, given = self._env.step(action)
        info = _mapping(given)
        value = number(reward)
        self._return += value
        if not abs(self._return) <= MAX_RETURN:
            raise ValueError(f"the return is {self._return:g}: beyond {MAX_RETURN:g} nothing can be counted")
        said, done = info.get("text/action"), info.get("is_success")
        return Outcome(
            observation=_text(observation),
            reward=value,
            terminated=truth(terminated, "terminated"),
            truncated=truth(truncated, "truncated"),
            action=_text(said) if isinstance(said, str) else None,
            is_success=None if done is None else truth(done, 'info["is_success"]'),
            too_many_invalid=info.get("text/too_many_invalid") is True,
            cut_off=info.get("text/cut_off") is True,
            not_judged=info.get("not_judged") is True,
        )


class ProcessPlace:
    """A place in a process of its own: one that says nothing is ended, one that is gone is begun again."""

    def __init__(self, make: Callable[[], TextLike], limit: TimeLimit = NO_LIMIT) -> None:
        """Begin the process; ``make``, which makes the env there, has to be picklable."""
        self._make = make
        self._limit = limit
        self._until: float | None = None
        self._hung: float | None = None
        """After how many seconds its process was ended."""
        self._start()

    def begin(self, seed: int) -> None:
        """See ``Place``."""
        self._ask("begin", seed)

    def act(self, action: Any) -> None:
        """See ``Place``."""
        self._ask("act", action)

    def outcome(self) -> Outcome:
        """See ``Place``."""
        try:
            left = None if self._until is None else max(0.0, self._until - time.monotonic())
            if self._pipe.poll(left):
                return cast("Outcome", self._pipe.recv())
            self._hung = self._limit.clock
        except (EOFError, OSError):
            self._process.join(1.0)
        self._end()
        if self._hung is not None:
            return Outcome(fault=f"hung for {self._hung:g} s: its process was ended", timed_out=True)
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(fault=f"its process ended, {how}")

    def close(self) -> None:
        """See ``Place``."""
        with suppress(OSError):
            self._pipe.send(("close", None))
            self._pipe.poll(CLEANUP.clock)
        self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # forked, it would inherit torch's threads, half alive
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._make, self._limit, theirs), daemon=True, name="env"
        )
        self._process.start()
        theirs.close()
        self._is_ready, self._hung = False, None

    def _ask(self, what: str, argument: Any) -> None:
        if not self._process.is_alive():
            self._end()
            self._start()
        try:
            if not self._is_ready:
                if not self._pipe.poll(START_SECONDS):  # imports and the constructor have a time of their own
                    self._hung = START_SECONDS
                    self._end()
                self._is_ready = self._pipe.recv()
            self._pipe.send((what, argument))
        except (EOFError, OSError):
            pass  # ``outcome`` will meet it too
        self._until = time.monotonic() + self._limit.clock + KILL_SECONDS if self._limit.clock else None

    def _end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(make: Callable[[], TextLike], limit: TimeLimit, pipe: Connection) -> None:
    """The process of a ``ProcessPlace``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who began this process ends it
    place: LocalPlace | None = None
    fault: EnvFault | None = None
    try:
        place = guarded(lambda: LocalPlace(make, limit))
    except EnvFault as error:
        fault = error
    try:
        pipe.send(True)
        while True:
            what, argument = pipe.recv()
            if place is None:
                pipe.send(Outcome(fault=str(fault)))
                return
            getattr(place, what)(argument) if what != "close" else place.close()
            pipe.send(place.outcome())
            if what == "close":
                return
    except (EOFError, OSError):
        return  # nobody is there any more


class Places:
    """Places side by side."""

    def __init__(self, places: Sequence[Place]) -> None:
        """Of one kind of env."""
        self.places = tuple(places)

    def close(self) -> None:
        """Close them all."""
        for place in self.places:
            place.close()


def vector_env(
    make: Callable[[], TextLike],
    size: int,
    *,
    vectorization: Vectorization = "sync",
    timeout: float | TimeLimit = 0.0,
) -> Places:
    """``size`` places.

    Args:
        make: Makes an env; has to be picklable for ``async``.
        size: How many.
        vectorization: ``sync`` is in this process, one after the other; ``async`` gives each a process,
            which pays where a step takes longer than a message to another process, and where an env may hang.
        timeout: Seconds of processor time for a reset or a step, 0 for no limit; see ``TimeLimit.of``.
    """
    if isinstance(timeout, TimeLimit):
        limit = timeout
    else:
        share = (os.cpu_count() or 1) / size if vectorization == "async" else 1.0
        limit = TimeLimit.of(timeout, share)
    place = LocalPlace if vectorization == "sync" else ProcessPlace
    places: list[Place] = []
    with ExitStack() as made:  # where one cannot be, those before it are closed
        for _ in range(size):
            places.append(place(make, limit))
            made.callback(places[-1].close)
        made.pop_all()
    return Places(places)


def _mapping(info: Any) -> Mapping[str, Any]:
    """An env's info; ``None`` is taken for an empty one."""
    if info is None:
        return {}
    if not isinstance(info, Mapping):
        raise TypeError(f"the info is {info!r:.80}, where a dict is needed")
    return info


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is needed, not {value!r:.80}")
    if len(value) > MAX_CHARS:
        raise ValueError(f"a text has {len(value)} characters; it can have {MAX_CHARS} at most")
    return clean(value)
