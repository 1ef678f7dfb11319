"""TextArena's games for one player, as they word and judge themselves: ``--env textarena:Sokoban-v0``.

The package is an extra (``pip install 'opcd-gym[textarena]'``). What an agent sees is what the game's own
wrappers make of it: by default all that was said since the beginning, with an id that ends in ``-train`` the
prompt and the board of now. An action is ``[down]``. An invalid one is told once, and ends the game when
another follows. Success is a reward of 1: many games give a part of it for a part of the way.
"""

import difflib
import importlib.util
import io
import re
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import gymnasium as gym

from envs.actions import text_grammar
from envs.adapters.limit import STEP_LIMIT, with_limit
from envs.adapters.own_draws import OwnDraws
from envs.any_text import MAX_CHARS, AnyText, clean, first_line
from envs.registry import words_of
from envs.words import MAX_REPLY_CHARS, EnvError, EnvWords, Options, Success

SUCCESS = Success(means="the game gives a reward of 1", reached=lambda total, _: total >= 1)

_IN_BRACKETS = re.compile(r"\[[^\[\]]{0,200}\]")


class TextArenaEnv(gym.Env[str, str]):
    """One single-player game; see the module."""

    observation_space = AnyText()
    action_space = AnyText()

    def __init__(self, game: str, **settings: Any) -> None:
        """Begin a game once, to find out whether it can be played.

        Args:
            game: As TextArena calls it, such as ``FrozenLake-v0``.
            settings: In place of the game's own, such as ``size=3``.

        Raises:
            EnvError: The package or the game is not there, it wants more players, or it cannot begin.
        """
        if importlib.util.find_spec("textarena") is None:
            raise EnvError("TextArena is not installed: pip install 'opcd-gym[textarena]'")
        self._game_id, self._settings = game, settings
        self._draws = OwnDraws(0)
        self._game: Any = None
        self._begin(0)

    @property
    def max_steps(self) -> int:
        """No episode takes more: between two moves one that is invalid is forgiven."""
        turns = getattr(self._game.state, "max_turns", None)
        return 2 * int(turns) + 2 if turns else STEP_LIMIT

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Begin a game; the seed decides all that is drawn in it."""
        super().reset(seed=seed)
        return self._begin(int(self.np_random.integers(2**31))), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Give the game what the agent wrote, the end of it where it is long."""
        action = action[-MAX_REPLY_CHARS:]
        state = self._game.state
        with self._draws.drawing(), redirect_stdout(io.StringIO()):
            try:
                done, _ = self._game.step(action)
            except Exception:  # not every game is ready for every text
                state.set_invalid_move(reason="The action could not be read.")
                done, _ = state.step()
        given = (state.rewards or {}).get(0, 0.0) if done else 0.0
        reward = float(given) if isinstance(given, int | float) else 0.0  # Countdown gives a sentence
        is_invalid = state.error_count > 0 or state.game_info[0]["invalid_move"]
        named = _IN_BRACKETS.search(action)
        info = {"answer": None if is_invalid else (named[0] if named else clean(action).strip()[:200])}
        return self._seen(), reward, bool(done), False, info

    def _begin(self, seed: int) -> str:
        """Begin a game; returns what is seen first."""
        import textarena as ta
        from textarena.envs.registration import ENV_REGISTRY

        if self._game_id not in ENV_REGISTRY:
            near = difflib.get_close_matches(self._game_id, ENV_REGISTRY, n=3, cutoff=0.4)
            hint = f": did you mean {', '.join(near)}?" if near else ""
            raise EnvError(f"TextArena has no game {self._game_id!r}{hint}")
        self._draws = OwnDraws(seed)
        try:
            with self._draws.drawing(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                self._game = ta.make(self._game_id, **self._settings)  # anew: wrappers remember the last game
                self._game.reset(num_players=1, seed=seed)
            seen = self._seen()
        except Exception as error:  # of a game: anything can come out of it
            raise EnvError(f"TextArena's {self._game_id} {_why(error)}") from error
        if not isinstance(self._game.state, ta.SinglePlayerState):
            raise EnvError(
                f"TextArena's {self._game_id} is not a game for one player: only those can be played"
            )
        return seen

    def _seen(self) -> str:
        """What the game's wrappers show, the newest part of it where it is long."""
        _, seen = self._game.get_observation()
        if not isinstance(seen, str):  # a game without wrappers: what was said since
            seen = "\n".join(said for _, said, _ in seen if isinstance(said, str))  # three games mix them up
        return clean(seen).strip()[-MAX_CHARS:]


def make(name: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """The game as a Gymnasium env; ``env_kwargs`` are its settings, but for ``max_episode_steps``, the limit.

    Raises:
        EnvError: See ``TextArenaEnv``.
    """
    settings = dict(env_kwargs)
    limit = settings.pop("max_episode_steps", None)
    env = TextArenaEnv(name, **settings)
    limit = env.max_steps if limit is None else limit
    return with_limit(env, f"textarena/{name}", {"game": name, **settings}, limit)


@words_of(TextArenaEnv)
def words(env: gym.Env[Any, Any]) -> EnvWords:
    """The game's own: rules and question are part of what it shows."""
    return EnvWords(rules="", grammar=text_grammar, success=SUCCESS)


def _why(error: Exception) -> str:
    """What keeps a game from beginning, for the user."""
    text = str(error)
    if "player" in text.lower():
        return "is not a game for one player: only those can be played"
    if resource := re.search(r"Resource\s+\W*(?:\x1b\[\d+m)?'?(\w+)", text):
        return f"needs data of nltk's: python -m nltk.downloader {resource[1]}"
    if "OPENROUTER_API_KEY" in text:
        return "asks a model of OpenRouter's in every game: set OPENROUTER_API_KEY"
    if isinstance(error, ImportError | SyntaxError):
        return f"cannot be loaded by this Python: {first_line(error)}"
    return f"cannot begin: {type(error).__name__}: {first_line(error)}"
