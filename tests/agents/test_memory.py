"""Conversations: what an agent remembers, what it costs, and what is learned from it."""

import dataclasses
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import gymnasium as gym
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.config import SelfImproveConfig
from agents.examples import answers
from agents.memory import ALL_TURNS, Memory
from agents.moments import Moment
from agents.policies.local import MOST_MEMO_TOKENS, HFPolicy
from agents.policies.policy import Message, Policy, Prompt, Sampling
from agents.prompts import Layout, build_prompt, exchange
from agents.rollout import rollout
from agents.self_improve import self_improve
from distill.examples import DistillExample, scored
from distill.lm.load import ModelError
from distill.lm.padded_lm import PaddedPass
from distill.lm.prefix_cache import PrefixCache
from distill.lm.prefix_lm import PrefixLM, TreePass
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from envs import make_text_env
from envs.games.cue import ACTIONS, CUES
from envs.place import vector_env
from envs.words import EnvWords
from evals.baselines import Baselines
from experience.context import NO_CONTEXT, Context
from experience.outcomes import outcome_insights
from experience.seeds import SeedRange, Split
from experience.show import show_trace
from experience.store import ExperienceStore
from experience.trace import StopReason, Trace
from tests.agents.test_chat_template import FOLDER, TEMPLATES, template
from tests.agents.test_self_improve import TINY, open_gate
from tests.conftest import CHAT_TEMPLATE, byte_tokenizer, tiny_llama
from tests.scripted import ScriptedPolicy

FULL, NONE = Memory(ALL_TURNS), Memory()
OTHERWISE = {
    "deepseek_r1_distill",
    "deepseek_r1_distill_training",
    "deepseekv3",
    "deepseekv3_training",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
}
"""Templates that show later without its empty thought what they began with one."""
LAKE: dict[str, Any] = {"is_slippery": False}


def words_of(env_id: str, memory: Memory = FULL) -> EnvWords:
    return memory.words(make_text_env(env_id, LAKE if env_id == "FrozenLake-v1" else {}).words)


def play(
    policy: Policy,
    memory: Memory,
    *,
    env_id: str = "OPCD/Cue-v0",
    n: int = 8,
    context: Context = NO_CONTEXT,
    max_tokens: int = 8,
    kwargs: dict[str, Any] | None = None,
    patience: int = 6,
    name: str = "p",
) -> list[Trace]:
    kwargs = kwargs or {}
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=n)
    traces = rollout(
        vector_env(lambda: make_text_env(env_id, kwargs, max_invalid_replies=patience), 4),
        memory.words(make_text_env(env_id, kwargs).words),
        policy,
        {name: context},
        seeds,
        sampling=Sampling(max_tokens=max_tokens),
        policy_id="x",
        env_id=env_id,
        memory=memory,
    )
    return sorted(traces, key=lambda trace: trace.seed)


def prompts_of(trace: Trace, words: EnvWords, memory: Memory, advice: Sequence[str] = ()) -> list[Prompt]:
    """The prompt of each of its turns, as the agent read it."""
    return [
        build_prompt(
            words,
            turn.observation,
            advice,
            None,
            [m for past in memory.of(trace.turns[:number], turn.left_out) for m in exchange(words, past)],
        )
        for number, turn in enumerate(trace.turns)
    ]


# --- prompts -------------------------------------------------------------------------------------


def test_what_is_remembered_is_a_conversation_without_experience() -> None:
    asked: list[Prompt] = []

    def reply(prompt: Prompt, seed: int) -> str:
        asked.append(prompt)
        return [" left", " hm", " ahead", " right"][len(asked) - 1]

    [trace] = play(ScriptedPolicy(reply), FULL, n=1, context=Context.fixed("Go left."))
    cue = trace.turns[0].observation
    said = [m.content for m in asked[-1].messages if m.role != "system"]
    question = "Left, ahead or right?"
    assert said == [
        f"{cue} {question}",
        "I go left",
        f"You are in the corridor. {question}",
        "I go hm",
        f"You are in the corridor. {question}",
        "I go ahead",
        f"You are at the fork. {question}\nExperience: Go left.",
    ]
    assert asked[-1].messages[2].token_ids == tuple(map(ord, " left"))
    assert not any(message.token_ids for message in asked[0].messages)


def test_what_is_remembered_of_the_last_turns() -> None:
    assert [list(Memory(2).of("abcde"[:n])) for n in range(4)] == [[], ["a"], ["a", "b"], ["b", "c"]]
    assert (NONE.of("abc"), FULL.of("abc"), FULL.of("abc", 2)) == ("", "abc", "c")


def test_the_very_tokens_stand_there_and_a_turn_ends_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Whatever ended it: the end of text that was drawn, or the length; and however it would be written."""
    tokenizer.add_tokens([" right"])
    policy = HFPolicy(model, tokenizer)
    spelled = tuple(tokenizer.encode(" ")) + tuple(tokenizer.encode("right"))
    assert spelled != tuple(tokenizer.encode(" right"))
    first = Prompt(messages=(Message(role="user", content="a"),), reply_prefix="I move")
    for drawn in (spelled, (*spelled, tokenizer.eos_token_id)):
        turns = (Message(role="assistant", content="I move right", token_ids=drawn),)
        then = Prompt(
            messages=(*first.messages, *turns, Message(role="user", content="b")), reply_prefix="I move"
        )
        ids = policy.encode(then)
        expected = policy.encode(first) + spelled
        assert ids[: len(expected)] == expected
        assert tokenizer.decode(list(ids)) == (
            "<s>user\na</s><s>assistant\nI move right</s><s>user\nb</s><s>assistant\nI move"
        )


def test_a_policy_that_was_cleared_has_conversed_with_nobody(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: or else a run that is resumed there would compute otherwise."""
    held: list[object] = []
    monkeypatch.setattr(PrefixCache, "hold", lambda *given: held.append(given))
    policy = HFPolicy(model, tokenizer)
    talk, alone = Prompt(messages=chat("I move")), Prompt(messages=chat("")[:1])
    policy.generate([talk], Sampling(max_tokens=MOST_MEMO_TOKENS + 1), [0])
    assert held
    policy.clear()
    held.clear()
    policy.generate([alone], Sampling(max_tokens=MOST_MEMO_TOKENS + 1), [0])
    assert not held


def chat(reply: str) -> tuple[Message, ...]:
    user = Message(role="user", content="Where to?")
    return (user, Message(role="assistant", content=reply, token_ids=(5,)), user)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_keep_what_was_said(name: str) -> None:
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    pieces = found.pieces(chat("I move right"), "I move")
    assert len(pieces) == 2
    assert " right".join(pieces) == found.text(chat("I move right"), "I move")
    assert (pieces[0] == found.text(chat("")[:1], "I move")) == (name not in OTHERWISE)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_keep_the_tokens_of_replies_that_end_in_white_space(name: str) -> None:
    """They may show them without it: Gemma ends its replies with a new line, and its template strips it."""
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    assert len(found.pieces(chat("I move right \n"), "I move")) == 2


@pytest.mark.parametrize(
    ("refusal", "said"),
    [("not m.content", ""), ("'<|channel|>' in m.content", "Hm<|channel|>final<|message|>right")],
)
def test_a_reply_that_the_template_refuses_stands_there_as_it_was_drawn(
    refusal: str, said: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As Ministral's does an empty one, and gpt-oss' one with channels."""
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{{% if {refusal} %}}{{{{ raise_exception('not so') }}}}{{% endif %}}"
        "{% endfor %}" + CHAT_TEMPLATE
    )
    policy = HFPolicy(model, tokenizer)
    drawn = (*tokenizer.encode(said), tokenizer.eos_token_id)
    user = Message(role="user", content="Where to?")
    reply = Message(role="assistant", content=said, token_ids=drawn)
    text = tokenizer.decode(list(policy.encode(Prompt(messages=(user, reply, user)))))
    assert text == f"<s>user\nWhere to?</s><s>assistant\n{said}</s><s>user\nWhere to?</s><s>assistant\n"
    others = Message(role="assistant", content=said)
    with pytest.raises(ModelError, match=r"does not take a chat \(not so\): give it another"):
        policy.encode(Prompt(messages=(user, others, user)))


def test_a_template_that_drops_thoughts_is_followed_and_says_so_once() -> None:
    found = template((FOLDER / "qwen3_6.jinja").read_text(encoding="utf-8"))
    with pytest.warns(UserWarning, match="shows earlier replies otherwise than they were said"):
        [text] = found.pieces(chat("<think>\nHm.\n</think>\n\nI move right"), "")
    assert "Hm." not in text
    assert "I move right" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(found.pieces(chat("<think>\nHm.\n</think>\n\nI move right"), "")) == 1


# --- what it costs -------------------------------------------------------------------------------


def test_a_growing_conversation_costs_its_new_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = HFPolicy(model, tokenizer)
    [trace] = play(policy, FULL, n=1, max_tokens=3, kwargs={"corridor": 0}, env_id="OPCD/Cue-v0")
    words = words_of("OPCD/Cue-v0")
    prompts = [policy.encode(prompt) for prompt in prompts_of(trace, words, FULL)]
    assert len(prompts) > 3
    whole = max(len(p) for p in prompts)
    for before, after, turn in zip(prompts, prompts[1:], trace.turns, strict=False):
        drawn = turn.token_ids[:-1] if turn.token_ids[-1] == tokenizer.eos_token_id else turn.token_ids
        assert after[: len(before) + len(drawn)] == before + drawn
    assert [turn.prompt_tokens for turn in trace.turns] == [len(prompt) for prompt in prompts]
    # Each prompt's last token is asked for again, and the last reply comes behind it.
    assert policy.lm.computed_tokens <= whole + len(prompts) + 3


def test_what_does_not_fit_the_window_is_left_out_oldest_first(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy = HFPolicy(model, tokenizer)
    traces = play(policy, FULL, n=1, max_tokens=3, env_id="FrozenLake-v1", kwargs=LAKE, patience=14)
    words = words_of("FrozenLake-v1")
    for trace in traces:
        assert trace.stop_reason != StopReason.OUT_OF_TOKENS
        lengths = [len(policy.encode(prompt)) for prompt in prompts_of(trace, words, FULL)]
        assert lengths == [turn.prompt_tokens for turn in trace.turns]
        assert max(lengths) + 3 <= policy.window
    [trace] = [trace for trace in traces if len(trace.turns) > 10][:1]
    left_out = [turn.left_out for turn in trace.turns]
    assert left_out == sorted(left_out)
    assert left_out[0] == 0 < left_out[-1] < len(left_out) - 1
    for number, turn in enumerate(trace.turns):  # no more than has to be
        if turn.left_out:
            past = [m for old in trace.turns[turn.left_out - 1 : number] for m in exchange(words, old)]
            more = build_prompt(words, turn.observation, past=past)
            assert len(policy.encode(more)) + 3 > policy.window
    with ExperienceStore(tmp_path / "experience.db") as store:
        store.add_traces(traces)
        assert store.turns(trace_id=trace.id)["left_out"].tolist() == left_out
        console = Console(record=True, width=200, file=io.StringIO())
        show_trace(store, console, trace.id)
        assert f"up to {left_out[-1]} turns were left out of a prompt" in console.export_text()


def test_what_does_not_fit_alone_ends_the_episode(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = 40
    [trace] = play(HFPolicy(model, tokenizer), FULL, n=1)
    assert (trace.stop_reason, trace.turns) == (StopReason.OUT_OF_TOKENS, ())


@pytest.mark.parametrize("way", ["tree", "padded"])
def test_an_episode_is_one_sequence_and_equal_to_turn_by_turn(way: Literal["tree", "padded"]) -> None:
    """Its assistant turns are the completions."""
    student, apart = tiny_llama(0, torch.float64), tiny_llama(0, torch.float64)
    policy = HFPolicy(tiny_llama(0), byte_tokenizer())
    trace = max(play(policy, FULL, max_tokens=3, kwargs={"corridor": 0}), key=lambda t: len(t.turns))
    trace = Trace(**{name: getattr(trace, name) for name in Trace.__slots__} | {"turns": trace.turns[:4]})
    words = words_of("OPCD/Cue-v0")
    examples = [
        DistillExample(
            student_prompt_ids=policy.encode(bare),
            teacher_prompt_ids=policy.encode(informed),
            completion_ids=turn.token_ids,
        )
        for bare, informed, turn in zip(
            prompts_of(trace, words, FULL),
            prompts_of(trace, words, FULL, ["Go left."]),
            trace.turns,
            strict=True,
        )
    ]
    assert len(examples) == 4
    spans = scored(examples).student
    forward = TreePass.of(student, spans) if way == "tree" else PaddedPass.of(student, spans)
    assert forward.tokens == max(len(span.tokens) for span in spans)

    def trainer(model: PreTrainedModel) -> OPCD:
        teacher = FrozenTeacher(PrefixLM(tiny_llama(1, torch.float64)))
        return OPCD(model, teacher, lr=1e-3, compute=way, max_nodes=4096)

    together, alone = trainer(student), trainer(apart)
    sums = [alone._forward_backward(scored([one], total=len(examples)))[0][0] for one in examples]
    loss, *_ = together._forward_backward(scored(examples))
    assert float(loss[0]) == pytest.approx(sum(map(float, sums)), rel=1e-9)
    for one, other in zip(student.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)  # a head's loss is fp32


# --- what is learned -----------------------------------------------------------------------------


def by_chance(prompt: Prompt, seed: int) -> str:
    return f" {ACTIONS[seed % 3]}"


def obedient(prompt: Prompt, seed: int) -> str:
    """Does what the experience says, and guesses without any."""
    told = re.search(r"go (\w+)\.$", prompt.messages[-1].content)
    return f" {told[1]}" if told else by_chance(prompt, seed)


def learned(memory: Memory, tmp_path: Path) -> Context:
    words = words_of("OPCD/Cue-v0", memory)
    assert words.advise is not None
    with ExperienceStore(tmp_path / "experience.db") as store:
        store.add_traces(play(ScriptedPolicy(by_chance), memory, n=600))
        turns = memory.situations(store.turns(), words)
    insights = outcome_insights(turns, words.actions, words.advise, explore=False)
    return Context(insights=tuple(insights), k=1, situation=words.situation)


@pytest.mark.parametrize(
    ("memory", "least", "most"),
    [(FULL, 1.0, 1.0), (Memory(2), 1.0, 1.0), (Memory(1), 0.2, 0.5), (NONE, 0.2, 0.5)],
)
def test_the_cue_is_of_use_to_who_remembers_it(
    memory: Memory, least: float, most: float, tmp_path: Path
) -> None:
    """With the cue two turns before the fork."""
    traces = play(ScriptedPolicy(obedient), memory, n=200, context=learned(memory, tmp_path), name="q")
    assert least <= sum(trace.success for trace in traces) / 200 <= most


def test_advice_names_what_was_seen(tmp_path: Path) -> None:
    advice = {insight.text for insight in learned(FULL, tmp_path).insights}
    for cue, way in zip(CUES, ACTIONS, strict=True):
        text = f'After "You see the cue {cue}" and "You are in the corridor", at the fork, go {way}.'
        assert text in advice
        assert sum(f"cue {cue}" in text and "at the fork" in text for text in advice) == 1
    words = words_of("OPCD/Cue-v0")
    seen = FULL.seen(
        words, [("You see the cue red.", "left"), ("You are in the corridor.", None)], "You are at the fork."
    )
    assert seen == "You see the cue red. → left → You are at the fork."
    assert words.advised(seen, 'After "You see the cue red", at the fork, go left.') == "left"
    remembering = FULL.words(
        dataclasses.replace(words, advise=lambda now, action: f"At {now!r} go {action}.")
    )
    assert remembering.advise is not None
    arrows = FULL.seen(words, [("Route: home → shop.", "left")], "Now → then.")
    assert remembering.advise(arrows, "left") == "After \"Route: home -> shop\", at 'Now -> then.' go left."


def test_what_advice_tells_of_a_long_past_is_bounded() -> None:
    words = words_of("OPCD/Cue-v0")
    assert words.advise is not None
    seen = FULL.seen(words, [(f"Square {n}.", "left") for n in range(500)], "You are at the fork.")
    text = words.advise(seen, "left")
    assert text.startswith('After "Square 0" and')
    assert text.endswith('and "Square 499", at the fork, go left.')
    assert len(text) < 500


def test_an_unreadable_reply_is_no_deed() -> None:
    """The next observation is the same, and so is what was seen."""
    words = words_of("FrozenLake-v1")
    assert FULL.seen(words, [("A.", None)], "A.") == FULL.seen(words, [], "A.") == "A."


def test_the_cue_env() -> None:
    validation, test = (
        SeedRange(split=split, run_seed=0, start=0, size=200) for split in (Split.VALIDATION, Split.TEST)
    )
    baselines = Baselines("OPCD/Cue-v0", {})
    blind, _ = baselines.blind([], validation, test)
    assert 0.2 < blind.success_rate < 0.5
    env = gym.make("OPCD/Cue-v0", corridor=3).unwrapped
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        way = CUES.index(observation.removeprefix("You see the cue ").removesuffix("."))
        views = [env.step((way + seed) % 3)[:3] for _ in range(5)]
        assert [view for view, *_ in views[:4]] == ["You are in the corridor."] * 3 + ["You are at the fork."]
        assert views[-1][1:] == (float(seed % 3 == 0), True)
    with pytest.raises(Exception, match="corridor must be from 0 to 50, not 51"):
        make_text_env("OPCD/Cue-v0", {"corridor": 51})


# --- training ------------------------------------------------------------------------------------


def test_the_student_trains_behind_the_conversations_that_were(walker_folder: Path, tmp_path: Path) -> None:
    asked: list[tuple[Prompt, Prompt]] = []

    def noted(agent: Any, policy: Any, questions: Any, data: Any) -> list[DistillExample]:
        asked.extend(question.prompts for question in questions)
        return answers(agent, policy, questions, data)

    config = SelfImproveConfig(
        env="OPCD/Cue-v0",
        model=str(walker_folder),
        output=tmp_path / "run",
        **(TINY | {"env_kwargs": {}, "rounds": 1, "memory": "full", "max_new_tokens": 2}),
    )
    with open_gate(), patch("agents.training.answers", noted):
        self_improve(config, Console(quiet=True))
    assert len(asked) == TINY["steps"] * TINY["batch_size"]
    with ExperienceStore(tmp_path / "run" / "experience.db") as store:
        drawn = {tuple(ids) for ids in store.turns(tokens=True)["token_ids"]}
    for bare, informed in asked:
        assert bare.messages[:-1] == informed.messages[:-1]
        said = [message for message in bare.messages if message.role == "assistant"]
        assert all(message.token_ids in drawn for message in said)
        assert not any("Experience" in message.content for message in bare.messages)
        is_later = "cue" not in bare.messages[-1].content
        assert ('Experience: After "You see the cue' in informed.messages[-1].content) == is_later
    assert max(len(bare.messages) for bare, _ in asked) >= 6


def test_what_the_teacher_cannot_read_the_student_does_not_either(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    words, policy = words_of("FrozenLake-v1"), HFPolicy(model, tokenizer)
    said = [
        Message(role="user", content="x" * 50),
        Message(role="assistant", content="I move up", token_ids=(9, 9)),
    ] * 4
    moment = Moment(observation="Now.", advice=("Go. " * 20,), episode=said, remembered=range(4))
    agent: Any = SimpleNamespace(student=policy, teacher=policy, teacher_window=policy.window, max_tokens=4)
    bare, informed = moment.prompts_for(agent, words, Layout())
    assert len(policy.encode(informed)) + 4 <= policy.window
    assert 2 < len(bare.messages) == len(informed.messages) < 10
    _, more = Moment(observation="Now.", advice=moment.advice, episode=said, remembered=range(4)).prompts(
        words, Layout()
    )
    assert len(policy.encode(more)) + 4 > policy.window
