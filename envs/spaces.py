"""Words for an environment that nobody has written any for, from its spaces."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Discrete, Text

from envs.actions import Grammar, all_actions, explain, is_supported, json_grammar, text_grammar
from envs.observations import MAX_COMPONENTS, Components, is_image, value_text, without_images
from envs.words import POSITIVE_RETURN, EnvError, EnvWords, Success


def any_words(
    env: gym.Env[Any, Any],
    *,
    actions: Sequence[str] | None = None,
    grammar: Grammar | None = None,
    describe: Callable[[Any], str] | None = None,
) -> EnvWords:
    """What the spaces say, where it is not known better; the rules of the game have to be learned.

    Raises:
        EnvError: The actions cannot be written as text, or all that is seen are images.
    """
    space, name = env.action_space, env.spec.id if env.spec else type(env.unwrapped).__name__
    rules = f"You are playing {name}."
    describe, situation = _observations(env, name) if describe is None else (describe, str)
    success = threshold(env)
    if isinstance(space, Text) and grammar is None:
        return EnvWords(
            rules=f"{rules} You answer in text.", grammar=text_grammar, describe=describe, success=success
        )
    if grammar is None and not is_supported(space):
        raise EnvError(
            f"{name} has actions of {space}, which cannot be written as text: say how with "
            "envs.register_text (docs/environments.md)"
        )
    verb = "choose action" if actions is None else "choose"  # the model then begins with the number
    actions = all_actions(space) if actions is None else tuple(actions)
    question = "Which action?"
    if actions and (isinstance(space, Discrete) or grammar is not None):
        choices = " or ".join(filter(None, (", ".join(actions[:-1]), actions[-1])))
        question = f"Which action: {choices}?"
        rules = f"{rules} Each turn you choose one of the actions {choices}."
    elif grammar is None:
        rules = f"{rules} Each turn you choose an action: {explain(space)}."

    def advise(situation: str, action: str) -> str:
        return f"{situation.removesuffix('.')}: {verb} {action}."

    return EnvWords(
        rules=rules,
        question=question,
        reply_prefix=f"I {verb}",
        actions=actions,
        grammar=grammar or json_grammar(space),
        describe=describe,
        advise=advise if actions else None,
        success=success,
        situation=situation,
    )


def threshold(env: gym.Env[Any, Any]) -> Success:
    """Reaching the spec's reward threshold, or without one a positive return."""
    least = env.spec.reward_threshold if env.spec else None
    if least is None:
        return POSITIVE_RETURN
    return Success(means=f"its return is at least {least:g}", reached=lambda total, _: total >= least)


def _state(value: Any) -> str:
    number = int(value)
    if number != value:  # which would be another state
        raise ValueError(f"an observation of Discrete is a whole number, not {value!r:.80}")
    return f"State {number}."


def _observations(env: gym.Env[Any, Any], name: str) -> tuple[Any, Any]:
    """How an observation is described, and what like ones have in common; images beside text are left out."""
    space = env.observation_space
    if is_image(space):
        raise EnvError(
            f"{name} is observed in images ({space}), which are not text: say what they show with "
            "envs.register_text(describe=...) (docs/environments.md)"
        )
    if isinstance(space, Box) and len(space.shape) == 1 and 0 < space.shape[0] <= MAX_COMPONENTS:
        names = [f"x{number}" for number in range(1, space.shape[0] + 1)]
        components = Components(space, names)
        return components.describe, components.situation
    if isinstance(space, Discrete):
        return _state, str
    if isinstance(space, Text):
        return value_text, str
    return (lambda value: f"{value_text(without_images(space, value))}."), str
