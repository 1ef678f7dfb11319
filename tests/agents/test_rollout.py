from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import pytest

from agents.policies.policy import Completion, FinishReason, Prompt, Sampling
from agents.prompts import Layout
from agents.rollout import expected_prompts, rollout, turn_seed
from envs import TextEnv, make_text_env
from envs.games.frozen_lake import ACTIONS
from envs.place import vector_env
from envs.registry import words_for
from experience.context import NO_CONTEXT, Context
from experience.insight import Insight
from experience.seeds import SeedRange, Split
from experience.trace import StopReason, Trace
from tests.scripted import ScriptedPolicy

SLIPPERY: dict[str, Any] = {}
DRY: dict[str, Any] = {"is_slippery": False}


def play(
    reply: Callable[[Prompt, int], str],
    *,
    n: int = 10,
    num_envs: int = 4,
    kwargs: dict[str, Any] = SLIPPERY,
    make: Callable[[], TextEnv] | None = None,
    context: Context = NO_CONTEXT,
) -> list[Trace]:
    def make_lake() -> TextEnv:
        return make_text_env("FrozenLake-v1", kwargs)

    words = make_lake().words
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=n)
    traces = rollout(
        vector_env(make or make_lake, num_envs),
        words,
        ScriptedPolicy(reply),
        {"p": context},
        seeds,
        sampling=Sampling(max_tokens=50),
        policy_id="scripted",
        env_id="FrozenLake-v1",
    )
    return sorted(traces, key=lambda trace: trace.seed)


def random_walk(prompt: Prompt, seed: int) -> str:
    return f" {ACTIONS[seed % 4]}"


def test_one_trace_per_seed_whatever_the_batch() -> None:
    one, four, many = (play(random_walk, n=13, num_envs=n) for n in (1, 4, 64))
    assert one == four == many
    assert [trace.seed for trace in one] == list(SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=13))
    assert len({len(trace.turns) for trace in one}) > 1


def test_a_trace_is_what_the_env_does() -> None:
    for trace in play(random_walk):
        env = gym.make("FrozenLake-v1")
        state, _ = env.reset(seed=trace.seed)
        terminated = False
        for turn in trace.turns:
            assert turn.observation == f"You are at row {state // 4 + 1}, column {state % 4 + 1}."
            assert turn.action is not None
            state, reward, terminated, _, _ = env.step(ACTIONS.index(turn.action))
            assert turn.reward == reward
        assert terminated
        assert trace.stop_reason == StopReason.TERMINATED
        assert trace.final_observation == f"You are at row {state // 4 + 1}, column {state % 4 + 1}."
        assert trace.success == (trace.total_reward > 0)


def test_truncation() -> None:
    [trace] = play(lambda p, s: " left", n=1, kwargs=DRY)
    assert (trace.stop_reason, len(trace.turns)) == (StopReason.TRUNCATED, 100)


def test_invalid_replies() -> None:
    for trace in play(lambda p, s: " nowhere", n=3):
        assert trace.stop_reason == StopReason.INVALID_REPLIES
        assert trace.invalid_replies == len(trace.turns) == 3
        assert not trace.success


def test_success() -> None:
    path = {1: {1: "down"}, 2: {1: "down"}, 3: {1: "right", 2: "down"}, 4: {2: "right", 3: "right"}}

    def reply(prompt: Prompt, seed: int) -> str:
        numbers = [int(c) for c in prompt.messages[-1].content if c.isdigit()]
        return f" {path[numbers[0]][numbers[1]]}"

    for trace in play(reply, kwargs=DRY):
        assert trace.success
        assert trace.total_reward == 1.0
        assert len(trace.turns) == 6


def test_experience_is_shown_and_recorded() -> None:
    insight = Insight(text="At row 1, column 1, move down.", observation=None, score=1, support=1)
    seen = []

    def reply(prompt: Prompt, seed: int) -> str:
        seen.append(prompt.messages[-1].content)
        return " right"

    context = Context(insights=(insight,))
    [trace] = play(reply, n=1, context=context)
    assert all("Experience: At row 1, column 1, move down." in text for text in seen)
    assert all(turn.insight_ids == (insight.id,) for turn in trace.turns)
    assert trace.context_id == context.id


class Fragile(gym.Wrapper[Any, Any, Any, Any]):
    """Raises at its second step, or at reset, for every third seed."""

    breaks_at_reset = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.bad = seed % 9 == 0
        self.steps = 0
        if self.bad and self.breaks_at_reset:
            raise RuntimeError("no ice")
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.bad and self.steps == 2:
            raise RuntimeError("the ice broke")
        return self.env.step(action)


@pytest.mark.parametrize("at_reset", [False, True])
def test_an_env_that_raises_ends_its_own_episode_only(at_reset: bool) -> None:
    def make() -> TextEnv:
        fragile = Fragile(gym.make("FrozenLake-v1"))
        fragile.breaks_at_reset = at_reset
        return TextEnv(fragile)

    broken, whole = play(random_walk, make=make), play(random_walk)
    assert len(broken) == len(whole) == 10
    for one, other in zip(broken, whole, strict=True):
        if one.seed % 9 != 0:
            assert one == other
            continue
        assert one.stop_reason == StopReason.ERROR
        assert one.error is not None
        assert ("no ice" if at_reset else "the ice broke") in one.error
        assert len(one.turns) == (0 if at_reset else 1)


def test_an_env_may_declare_success_and_use_any_info_key() -> None:
    class Declared(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "error": 0.3, "is_success": True}

    traces = play(random_walk, make=lambda: TextEnv(Declared(gym.make("FrozenLake-v1"))))
    assert all(trace.success and trace.stop_reason == StopReason.TERMINATED for trace in traces)


def test_out_of_tokens() -> None:
    class Full(ScriptedPolicy):
        def generate(self, prompts: Any, sampling: Any, seeds: Any) -> list[Completion]:
            return [
                Completion(
                    text="", token_ids=(), logprobs=(), finish_reason=FinishReason.OVERFLOW, prompt_tokens=9
                )
                for _ in prompts
            ]

    env = make_text_env("FrozenLake-v1", {})
    traces = list(
        rollout(
            vector_env(lambda: make_text_env("FrozenLake-v1", {}), 2),
            env.words,
            Full(random_walk),
            {"p": NO_CONTEXT},
            SeedRange(split=Split.TEST, run_seed=0, start=0, size=3),
            sampling=Sampling(),
            policy_id="x",
            env_id="FrozenLake-v1",
        )
    )
    assert [trace.stop_reason for trace in traces] == [StopReason.OUT_OF_TOKENS] * 3


def test_turn_seeds_differ() -> None:
    seeds = {turn_seed(r, p, s, t) for r in range(3) for p in "ab" for s in range(5) for t in range(5)}
    assert len(seeds) == 150


def test_what_will_be_asked_is_known_where_observations_are_few() -> None:
    words = words_for(gym.make("FrozenLake-v1"))
    places = [words.describe(square) for square in range(3)]
    insights = tuple(
        Insight(text=words.advise(place, action), observation=place, score=1.0, support=1)  # type: ignore[misc]
        for place in places[:2]
        for action in ("left", "down")
    )
    exploring = Context(insights=insights, k=1, is_exploring=True)
    prompts = expected_prompts(words, places, [NO_CONTEXT, exploring], Layout())
    texts = [prompt.messages[-1].content for prompt in prompts]
    assert len(texts) == len(set(texts)) == 3 + 4
    assert expected_prompts(words, [str(i) for i in range(65)], [NO_CONTEXT], Layout()) == []
