"""Words for Gymnasium's toy-text environments; Frozen Lake has a file of its own."""

from functools import partial
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv

from envs.actions import word_grammar
from envs.games.frozen_lake import advise_move, describe_place
from envs.registry import recommend, words_of
from envs.words import EnvWords, Success

STOPS = ("red", "green", "yellow", "blue")
"""Taxi's stops, in the order of its state numbers; the next one is the taxi itself."""
COLUMNS = 12
"""Of the cliff's grid."""


@words_of(TaxiEnv)
def taxi_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for Taxi."""
    taxi = cast("TaxiEnv", env.unwrapped)
    actions = ("south", "north", "east", "west", "in", "out")  # short words, which a small model does say

    def describe(state: Any) -> str:
        row, column, passenger, destination = taxi.decode(int(state))
        # Where to is said by the passenger in the taxi: before, it would only double the situations.
        stop = f"to {STOPS[destination]}" if passenger == len(STOPS) else f"at {STOPS[passenger]}"
        return f"Taxi at {row + 1},{column + 1}, passenger {stop}."

    def advise(situation: str, action: str) -> str:
        return f"When the taxi is {situation.removeprefix('Taxi ').removesuffix('.')}, move {action}."

    return EnvWords(
        rules=(
            "You drive a taxi on a grid of 5 rows and 5 columns with walls. Take the passenger in, and let "
            "the passenger out at the destination. Your moves are south, north, east, west, in and out."
        ),
        # No question: the moves are in the rules, which all prompts share: a third fewer tokens to train on.
        reply_prefix="I move",
        actions=actions,
        grammar=word_grammar(actions),
        describe=describe,
        advise=advise,
        success=Success(means="the passenger is let out at the destination", reached=lambda _, end: end),
        max_invalid_replies=20,
    )


@words_of(CliffWalkingEnv)
def cliff_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for Cliff Walking, slippery or not. As on the lake, the agent is not shown the map."""
    actions = ("up", "right", "down", "left")

    return EnvWords(
        rules=(
            "You are walking along a cliff on a grid of 4 rows and 12 columns. Each turn you move up, right, "
            "down or left. Somewhere is the goal. Falling off the cliff puts you back to the start."
        ),
        question="Up, right, down or left?",
        reply_prefix="I move",
        actions=actions,
        grammar=word_grammar(actions),
        describe=partial(describe_place, COLUMNS),
        advise=advise_move,
        success=Success(means="the goal is reached", reached=lambda _, end: end),
    )


@words_of(BlackjackEnv)
def blackjack_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for Blackjack."""
    actions = ("stick", "hit")

    def describe(hand: Any) -> str:
        total, dealer, usable_ace = map(int, hand)
        ace = "with a usable ace" if usable_ace else "without a usable ace"
        return f"You have {total} {ace}, the dealer shows {'an ace' if dealer == 1 else dealer}."

    def advise(situation: str, action: str) -> str:
        mine, dealers = situation.removeprefix("You have ").removesuffix(".").split(", the dealer shows ")
        return f"When you have {mine} and the dealer shows {dealers}, choose to {action}."

    return EnvWords(
        rules="You are playing blackjack against a dealer. Each turn you stick or hit.",
        question="Stick or hit?",
        reply_prefix="I choose to",
        actions=actions,
        grammar=word_grammar(actions),
        describe=describe,
        advise=advise,
        success=Success(means="the hand is won", reached=lambda total, _: total > 0),
    )


recommend(
    "Taxi-v4",
    {
        "episodes": 256,
        "waves": 8,
        "eval_every": 30,
        "batch_size": 32,
        "validation_episodes": 64,
        "test_episodes": 500,
    },
)
