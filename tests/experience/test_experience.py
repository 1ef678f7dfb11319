import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.games.frozen_lake import ACTIONS
from experience import ExperienceError
from experience.context import Context
from experience.insight import Insight, InsightState, insights_of
from experience.outcomes import action_values, outcome_insights, outcome_model, share_followed
from experience.seeds import STRIDE, SeedRange, Split
from experience.store import ExperienceStore
from experience.trace import FAULTS, StopReason

# --- splits --------------------------------------------------------------------------------------


def test_the_same_words_elsewhere_are_another_insight() -> None:
    left, right = (
        Insight(text="On this board, move right.", observation=board, score=1.0, support=1)
        for board in ("P F / F G", "F P / F G")
    )
    assert left.id != right.id
    assert left.id == replace(left, score=0.0).id


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5000), st.integers(1, 50))
def test_splits_and_runs_share_no_seed(run: int, other: int, start: int, size: int) -> None:
    ranges = {
        (split, r): set(SeedRange(split=split, run_seed=r, start=start, size=size))
        for split in Split
        for r in {run, other}
    }
    assert sum(len(seeds) for seeds in ranges.values()) == len(set().union(*ranges.values()))
    for (split, _), seeds in ranges.items():
        assert {seed % 3 for seed in seeds} == {list(Split).index(split)}
        assert len(seeds) == size


@pytest.mark.parametrize(("start", "size", "run"), [(-1, 1, 0), (0, -1, 0), (0, STRIDE + 1, 0), (0, 1, -1)])
def test_bad_seed_ranges(start: int, size: int, run: int) -> None:
    with pytest.raises(ValueError, match="seed range"):
        SeedRange(split=Split.TEST, run_seed=run, start=start, size=size)


# --- insights ------------------------------------------------------------------------------------


def insight(text: str, observation: str | None, score: float = 0.0) -> Insight:
    return Insight(text=text, observation=observation, score=score, support=1)


def test_retrieval() -> None:
    here, better, anywhere, there = (
        insight("here", "a", 0.1),
        insight("better", "a", 0.9),
        insight("anywhere", None, 5.0),
        insight("there", "b", 9.0),
    )
    pool = (there, anywhere, here, better)
    assert Context(insights=pool, k=1).show("a") == (better,)
    assert Context(insights=pool, k=9).show("a") == (better, here, anywhere)
    assert Context(insights=pool).show("a") == (better, here, anywhere, there)
    assert Context(insights=(there,), k=1).show("a") == ()


def random_turns(episodes: int, slippery: bool) -> tuple[pd.DataFrame, dict[str, int]]:
    """What a random walker on the 4x4 lake, started anywhere, would leave in a store."""
    import gymnasium as gym

    env = gym.make("FrozenLake-v1", is_slippery=slippery)
    table = env.unwrapped.P  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    rows = []
    open_states = [s for s in table if not table[s][0][0][3] or table[s][0][0][1] != s]
    for number in range(episodes):
        state = int(rng.choice(open_states))
        action = int(rng.integers(4))
        outcomes = table[state][action]
        chances = np.array([o[0] for o in outcomes])
        _, following, reward, done = outcomes[rng.choice(len(outcomes), p=chances / chances.sum())]
        rows.append((f"t{number}", Split.TRAIN, f"s{state}", ACTIONS[action], reward, f"s{following}", done))
    columns = ["trace_id", "split", "observation", "action", "reward", "next_observation", "terminated"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["insight_ids"] = [()] * len(frame)
    frame = frame.assign(success=frame["reward"] > 0, stop_reason=StopReason.TERMINATED)
    return frame, {f"s{s}": s for s in open_states}


def test_insights_from_outcomes_are_optimal() -> None:
    """With enough random steps, the advice is the optimal policy's in every state of the slippery lake."""
    turns, states = random_turns(60_000, slippery=True)
    insights = outcome_insights(turns, ACTIONS, lambda o, a: f"{o}: {a}", explore=False)
    advice = {i.observation: i.text.split(": ")[1] for i in insights}
    optimal = {
        0: "left",
        1: "up",
        2: "up",
        3: "up",
        4: "left",
        8: "up",
        9: "down",
        10: "left",
        13: "right",
        14: "down",
    }
    assert advice.keys() == states.keys()
    assert {s: advice[f"s{s}"] for s in optimal} == optimal
    for i in insights:
        assert len(i.evidence + i.against) == i.support > 0


def hand_turns(*rows: tuple[str, str | None, float, str, bool]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["observation", "action", "reward", "next_observation", "terminated"])
    frame["insight_ids"] = [()] * len(rows)
    return frame.assign(
        trace_id=[f"t{i}" for i in range(len(rows))],
        split=Split.TRAIN,
        success=[row[2] > 0 for row in rows],
        stop_reason=StopReason.TERMINATED,
    )


def advise(observation: str, action: str) -> str:
    return f"{observation}: {action}"


def shown(turns: pd.DataFrame, *actions: str | None) -> pd.DataFrame:
    """With what was advised, turn by turn."""
    told: list[tuple[str, ...]] = [
        () if action is None else (insight(advise(observation, action), observation).id,)
        for observation, action in zip(turns["observation"], actions, strict=True)
    ]
    return turns.assign(insight_ids=pd.Series(told, dtype=object, index=turns.index))


def test_how_often_advice_is_followed() -> None:
    """What could not be read did something else, and where nothing is advised nothing can be followed."""
    turns = hand_turns(
        ("start", "right", 0.0, "middle", False),
        ("middle", "right", 1.0, "goal", True),
        ("start", "left", 0.0, "start", False),
        ("start", None, 0.0, "start", False),
        ("elsewhere", "right", 0.0, "start", False),
    )

    insights = outcome_insights(turns.head(2), ACTIONS, advise, explore=False)
    assert share_followed(turns, insights, advise) == 0.5
    assert share_followed(turns.tail(1), insights, advise) is None
    assert share_followed(turns[turns["action"].isna()], insights, advise) == 0.0


def test_like_observations_are_counted_together() -> None:
    """With numbers in buckets, what was learned at one speed is known at like ones."""
    turns = hand_turns(
        ("speed 1.1", "left", 0.0, "over", True),
        ("speed 1.3", "right", 1.0, "goal", True),
        ("speed 9.2", "left", 1.0, "goal", True),
    )

    def bucket(text: str) -> str:
        return text.split(".")[0]

    counted = turns.assign(**{name: turns[name].map(bucket) for name in ("observation", "next_observation")})
    insights = outcome_insights(counted, ACTIONS, lambda o, a: f"{o}: {a}", explore=False)
    assert {i.text for i in insights} == {"speed 1: right", "speed 9: left"}
    [shown] = Context(insights=tuple(insights), k=1, situation=bucket).show("speed 1.7")
    assert shown.text == "speed 1: right"


def test_values_by_hand() -> None:
    turns = hand_turns(
        ("a", "left", 0.0, "b", False),
        ("b", "up", 1.0, "goal", True),
        ("b", "up", 0.0, "hole", True),
        ("a", "down", 0.0, "hole", True),
        ("a", None, 0.0, "a", False),  # an unreadable reply counts for nothing
    )
    model = outcome_model(turns, ACTIONS, advise)
    assert model.counts_SA.sum() == 4
    values = action_values(model, explore=False)
    a, b = model.observations.index("a"), model.observations.index("b")
    assert values[b, ACTIONS.index("up")] == pytest.approx(0.5)
    assert values[a, ACTIONS.index("left")] == pytest.approx(0.99 * 0.5)
    assert values[a, ACTIONS.index("down")] == 0.0
    assert values[a, ACTIONS.index("up")] == -np.inf


def test_an_episode_that_the_env_broke_speaks_neither_for_nor_against() -> None:
    """What it came through before that is known all the same."""
    steps = [("a", "left", 1.0, "goal", True), *[("a", "left", 0.0, "b", False)] * (len(FAULTS) + 1)]
    turns = hand_turns(*steps).assign(stop_reason=["terminated", "truncated", *FAULTS])
    [insight] = outcome_insights(turns, ACTIONS, advise, explore=False)
    assert (insight.evidence, insight.against) == (("t0",), ("t1",))
    assert insight.support == len(steps)


def test_exploring_prefers_the_untried() -> None:
    turns = hand_turns(("a", "left", 0.0, "a", False), ("a", "down", 0.0, "hole", True))
    [known] = outcome_insights(turns, ACTIONS, lambda o, a: a, explore=False)
    curious, *others = outcome_insights(turns, ACTIONS, lambda o, a: a, explore=True)
    assert (known.text, known.support) == ("left", 1)
    assert (curious.text, curious.support, curious.evidence) == ("right", 0, ())
    assert [other.text for other in others] == ["up", "left"]  # and in the end the best of what was tried
    context = Context(insights=(curious, *others), k=1, is_exploring=True)
    shown = [context.show("a", times)[0].text for times in range(5)]
    assert shown == ["right", "up", "left", "left", "left"]
    turned = replace(context, insights=context.insights[::-1])
    assert turned.id != context.id  # what it shows first is something else
    assert replace(turned, is_exploring=False).id == replace(context, is_exploring=False).id


def test_what_is_advised_in_vain_is_worth_what_is_done_instead() -> None:
    """However good it were itself; where it is followed every other time, slips of the dice cost nothing."""
    ways = [("a", "left", 0.1, "b", True)] * 9 + [("a", "right", 1.0, "goal", True)]
    turns = hand_turns(*ways)

    def score(*told: str | None) -> float:
        [best] = outcome_insights(shown(turns, *told), ACTIONS, advise, explore=False)
        assert best.text == "a: right"
        return best.score

    assert score(*[None] * 10) == 1.0
    assert score("right", *[None] * 9) == 1.0  # one of two, with the one that is taken for granted
    assert score(*["right"] * 2, *[None] * 8) == pytest.approx((1 + 2 * 0.1) / 3)
    assert score(*["right"] * 9, None) == pytest.approx((1 + 9 * 0.1) / 10)
    assert score(*["right"] * 9, "left") == pytest.approx((1 + 9 * 0.1) / 10)
    turns = hand_turns(*ways, *[("a", "down", 0.0, "hole", True)] * 10)
    told = shown(turns, *[None] * 10, *["right"] * 10)
    [best] = outcome_insights(told, ACTIONS, advise, explore=False)
    assert best.text == "a: left"


def test_the_way_leads_to_where_advice_is_followed() -> None:
    """Both "b" and "c" have a way to the goal; at "b" it is not taken by who is told to take it."""
    turns = shown(
        hand_turns(
            ("a", "left", 0.0, "b", False),
            ("a", "down", 0.0, "c", False),
            ("b", "up", 1.0, "goal", True),
            ("c", "up", 1.0, "goal", True),
            ("c", "up", 0.0, "hole", True),
            *[("b", "left", 0.0, "hole", True)] * 4,
        ),
        *[None] * 5,
        *["up"] * 4,
    )
    for told, way in [(turns, "down"), (shown(turns, *[None] * 9), "left")]:
        known = {i.observation: i.text for i in outcome_insights(told, ACTIONS, advise, explore=False)}
        assert known == {"a": f"a: {way}", "b": "b: up", "c": "c: up"}


def test_slips_of_the_dice_do_not_stop_exploring() -> None:
    """Beyond the way that was told in vain there is something untried; what it is worth is not known yet."""
    turns = hand_turns(("a", "right", 0.0, "b", False), *[("a", "left", 0.0, "hole", True)] * 20)

    def worth(in_vain: int) -> float:
        told = shown(turns, None, *["right"] * in_vain, *[None] * (20 - in_vain))
        model = outcome_model(told, ACTIONS, advise)
        row, right = model.observations.index("a"), ACTIONS.index("right")
        return float(action_values(model, explore=True)[row, right])

    assert worth(0) == worth(2) == worth(4) == 1.0
    assert worth(5) < 0.5


def test_what_is_not_done_when_it_is_told_is_tried_last() -> None:
    """Untried actions are shown first, in their order, but for those that come to something worse."""
    ways = [("a", "left", 0.9, "goal", True)] * 8 + [("a", None, 0.0, "a", False)]
    turns = hand_turns(*ways)

    def curious(*told: str | None) -> list[str]:
        kept = outcome_insights(shown(turns, *told), ACTIONS, advise, explore=True)
        return [i.text.removeprefix("a: ") for i in kept]

    assert curious(*[None] * 9) == ["down", "right", "up", "left"]
    assert curious("down", *[None] * 8) == ["down", "right", "up", "left"]
    assert curious(*["down"] * 4, *[None] * 5) == ["down", "right", "up", "left"]
    assert curious(*["down"] * 8, None) == ["right", "up", "down", "left"]
    turns = hand_turns(*ways, *[("a", "up", 0.0, "hole", True)] * 20)
    assert curious(*[None] * 9, *["down"] * 20) == ["right", "left"]


def test_only_train_traces_teach() -> None:
    turns = hand_turns(("a", "left", 0.0, "b", False)).assign(split=Split.TEST)
    with pytest.raises(ExperienceError, match="train traces only"):
        outcome_insights(turns, ACTIONS, lambda o, a: a, explore=False)


def test_no_traces_no_insights(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path / "experience.db")
    assert outcome_insights(store.turns(), ACTIONS, lambda o, a: a, explore=True) == []


@pytest.mark.parametrize(
    "values", [5, "ab", [{"text": "Left."}], [asdict(insight("Left.", None)) | {"score": "x"}]]
)
def test_what_are_no_insights(values: object) -> None:
    with pytest.raises(ExperienceError, match="the store is damaged"):
        insights_of(values)


def test_insights_come_back_from_json() -> None:
    one = replace(insight("Left.", None), evidence=("a",), state=InsightState.RETIRED)
    assert insights_of(json.loads(json.dumps([asdict(one)]))) == [one]
