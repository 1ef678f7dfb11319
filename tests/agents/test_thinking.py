"""Agents that think before they act, through the whole command."""

import dataclasses
import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import pytest
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.agent import THINKING_TOKENS, reply_tokens
from agents.cli import parse_args
from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.prompts import Layout, Place, build_prompt
from agents.reflection import Reflection
from agents.rollout import rollout
from agents.run.run import Run
from agents.self_improve import self_improve
from distill.opcd import OPCD
from distill.parallel import Ranks
from envs import EnvError, Example, make_text_env, register_text
from envs.place import vector_env
from envs.thinking import Replies
from evals.finished_run import FinishedRun
from evals.replay import replay_pairs
from evals.report import write_report
from experience.context import NO_CONTEXT
from experience.phase import Phase
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from tests.agents.test_self_improve import KEPT, QUIET, contents, fail_at, open_gate
from tests.browser import needs_chromium, visit
from tests.conftest import byte_tokenizer, save_walker, tiny_llama
from tests.scripted import ScriptedPolicy

SMALL: dict[str, Any] = KEPT | {
    "rounds": 1,
    "episodes": 6,
    "waves": 1,
    "validation_episodes": 3,
    "test_episodes": 3,
    "replies": "think",
    "max_new_tokens": 2,
}
THOUGHT = "<think>Is {0} right?</think>\nHm & <hm>.\nAction: {0}\n"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of its tokens is a thought and an action."""
    return save_walker(tmp_path_factory.mktemp("thinker"), says=THOUGHT, window=2048)


@pytest.fixture(scope="module")
def thought(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one that thinks, that nothing interrupted."""
    path = tmp_path_factory.mktemp("thought") / "run"
    with open_gate():
        self_improve(SelfImproveConfig(model=str(thinker), output=path, **SMALL), QUIET)
    return path


def test_a_run_learns_from_actions_and_goes_on_where_it_was(
    thought: Path, thinker: Path, tmp_path: Path
) -> None:
    with open_gate():
        with fail_at(OPCD, "step", 3)(), pytest.raises(KeyboardInterrupt):
            self_improve(SelfImproveConfig(model=str(thinker), output=tmp_path / "cut", **SMALL), QUIET)
        self_improve(SelfImproveConfig(resume=tmp_path / "cut"), QUIET)
    assert contents(thought) == contents(tmp_path / "cut")
    about = json.loads((thought / "config.json").read_text())
    assert about["config"]["replies"] == "think"
    with ExperienceStore(thought / "experience.db") as store:
        turns, insights = store.turns(), store.insights()
    acted = turns[turns["action"].notna()]
    assert len(acted) > 20
    for reply, action in zip(acted["reply"], acted["action"], strict=True):
        assert re.findall(r"Action: (\w+)", reply)[-1] == action
    assert insights["text"].str.fullmatch(r"At row \d, column \d, move \w+\.").all()


def test_the_report_folds_thoughts(thought: Path) -> None:
    with ExperienceStore(thought / "experience.db") as store:
        frames = [
            frame
            for _, pair in replay_pairs(FinishedRun.read(thought), store)
            for replay in pair
            for frame in replay.frames
        ]
    replies = [frame for frame in frames if frame.reply is not None]
    assert replies
    assert all(frame.place is not None for frame in frames)  # it was played again, thinking
    for frame in replies:
        assert re.fullmatch(r"(Action: \w+)?", frame.reply or "")
        assert "Hm & <hm>." in frame.thought or not frame.reply
        assert "think>" not in frame.thought
    html = (thought / "report.html").read_text()
    assert "<summary>thought</summary>" in html
    assert "<hm>" not in html


def test_lessons_are_drawn_from_what_was_said(thinker: Path, tmp_path: Path) -> None:
    config = SelfImproveConfig(model=str(thinker), **(SMALL | {"insights": "raw"}))
    with Run(config, tmp_path / "run", console=QUIET, ranks=Ranks.connect("cpu")) as run:
        run.play(Phase.play(1, 0), run.agent.student, run.seeds.train(1, 0, 1), 1.0)
        [context] = Reflection(run).reflect(1)
        played = run.store.turns()
    assert played["reply"].str.contains("<think>Is").any()
    for insight in context.insights:
        assert "Hm & <hm>." in insight.text
        assert "right?" not in insight.text


@needs_chromium
def test_a_thought_is_shown_when_it_is_asked_for(thought: Path, tmp_path: Path) -> None:
    run = shutil.copytree(thought, tmp_path / "run")
    script = """
    const card = document.querySelector(".episode"), thought = card.querySelector(".thought");
    const closed = thought.getBoundingClientRect().height;
    thought.querySelector("summary").click();
    const text = thought.querySelector(".says").textContent.includes("Hm & <hm>.");
    document.body.dataset.seen = [!thought.hidden, text, thought.getBoundingClientRect().height > closed + 9];
    """
    seen = visit(write_report(run), script)
    assert seen.errors == []
    assert 'data-seen="true,true,true"' in seen.html


@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("", "\n")])
def test_replies_that_are_cut_off_are_counted_apart(tags: tuple[str, str]) -> None:
    def reply(prompt: Prompt, seed: int) -> str:
        assert prompt.reply_prefix == ""
        assert "Action: ..." in prompt.messages[0].content
        return tags[0] + "Should I? " * 9 + tags[1] + "Action: right"

    def make() -> Any:
        return make_text_env("FrozenLake-v1", {"is_slippery": False}, replies="think")

    endings = {}
    for longest in (20, 200):
        [trace] = rollout(
            vector_env(make, 1),
            make().words,
            ScriptedPolicy(reply),
            {"p": NO_CONTEXT},
            SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=1),
            sampling=Sampling(max_tokens=longest),
            policy_id="scripted",
            env_id="FrozenLake-v1",
        )
        endings[longest] = (trace.stop_reason, trace.turns[0].action)
    assert endings == {20: ("cut_off", None), 200: ("truncated", "right")}


@pytest.mark.parametrize(
    ("replies", "said", "ending"),
    [
        ("act", "banana bread", "invalid_replies"),
        ("think", "banana bread", "cut_off"),
        ("think", "banana", "invalid_replies"),
    ],
)
def test_only_who_thinks_is_cut_off(replies: Replies, said: str, ending: str) -> None:
    """A reply that only acts and is longer than all actions is none, however long it might have become."""
    make = partial(make_text_env, "FrozenLake-v1", {}, replies=replies)
    [trace] = rollout(
        vector_env(make, 1),
        make().words,
        ScriptedPolicy(lambda prompt, seed: said),
        {"p": NO_CONTEXT},
        SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=1),
        sampling=Sampling(max_tokens=6),
        policy_id="scripted",
        env_id="FrozenLake-v1",
    )
    assert trace.stop_reason == ending


@pytest.mark.parametrize("advice", [(), ("At row 1, column 1, move up.",)])
@pytest.mark.parametrize("place", ["after", "before", "system"])
def test_examples_are_shown_to_who_thinks(advice: tuple[str, ...], place: Place) -> None:
    """As earlier turns, and where experience stands beside what is seen, they have some too."""
    act, think = (make_text_env("FrozenLake-v1", {}, replies=replies).words for replies in get_args(Replies))
    seen = "You are at row 1, column 1."
    layout = Layout(place=place)
    bare = build_prompt(act, seen, advice, layout)
    first, *turns, last = build_prompt(think, seen, advice, layout).messages
    assert [first.role, *(turn.role for turn in turns)] == ["system", *["user", "assistant"] * 4]
    assert last == bare.messages[-1]
    assert len(bare.messages) == 2
    for user, assistant, action in zip(turns[::2], turns[1::2], act.actions, strict=True):
        read = think.parse(assistant.content)
        assert read is not None
        assert read.text == action
        told = re.findall(r"Experience: (At row \d, column \d, move \w+\.)", user.content)
        assert told == ([assistant.content.splitlines()[0]] if advice and place != "system" else [])
        assert user.content.startswith("Experience" if told and place == "before" else "You are at row")


def test_examples_of_ones_own_have_to_be_read() -> None:
    gym.register("tests/Shown-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    shown = Example(observation="It hangs left.", thought="So I push left.", action="left")
    register_text("tests/Shown-v0", actions=["left", "right"], examples=[shown])
    words = make_text_env("tests/Shown-v0", {}, replies="think").words
    told = [message.content for message in build_prompt(words, "It hangs right.").messages[1:3]]
    assert told == [f"It hangs left. {words.question}".strip(), "So I push left.\nAction: left"]
    register_text("tests/Shown-v0", actions=["left", "right"], examples=[replace(shown, action="up")])
    make_text_env("tests/Shown-v0", {})  # nothing is to be read there
    with pytest.raises(EnvError, match=r"the example 'So I push left.*' is not read as the action 'up'"):
        make_text_env("tests/Shown-v0", {}, replies="think")


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"replies": "think"}, THINKING_TOKENS),
        ({"replies": "think", "max_new_tokens": 32}, 32),
        ({}, len(" right")),
    ],
)
def test_the_longest_reply(
    settings: dict[str, Any], tokens: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = SelfImproveConfig(**settings)
    words = make_text_env("FrozenLake-v1", {}, replies=config.replies).words
    assert reply_tokens(config, HFPolicy(model, tokenizer), words) == tokens


# --- chat templates ----------------------------------------------------------------------------------

OPENING = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}<s>assistant\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
)
ASKED = Prompt(messages=(Message(role="user", content="Where to?"),))


def test_a_thought_that_the_template_began_belongs_to_the_reply(model: PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OPENING
    sampling = Sampling(max_tokens=4)
    [thinks], [acts] = (
        HFPolicy(model, tokenizer, template_settings=settings).generate([ASKED], sampling, [0])
        for settings in ({}, {"enable_thinking": False})
    )
    assert thinks.text.startswith("<think>\n")
    assert len(thinks.token_ids) == 4
    assert "<think>" not in acts.text
    begun = dataclasses.replace(ASKED, reply_prefix="I move")
    [reply] = HFPolicy(model, tokenizer).generate([begun], sampling, [0])
    assert "<think>" not in reply.text
    # Where it is remembered, the agent reads what it read and said.
    policy = HFPolicy(model, tokenizer)
    said = Message(role="assistant", content=thinks.text, token_ids=thinks.token_ids)
    then = policy.encode(Prompt(messages=(*ASKED.messages, said, *ASKED.messages)))
    before = (*policy.encode(ASKED), *thinks.token_ids)
    assert then[: len(before)] == before


@pytest.mark.parametrize(("mark", "is_kept"), [("[THINK]", True), ("<|channel|>", True), ("<|tool|>", False)])
def test_special_tokens_that_mark_thoughts_are_read(mark: str, is_kept: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([mark], special_tokens=True)
    model = tiny_llama(tie=False)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_output_embeddings().weight.data.zero_()
    head_VD = model.get_output_embeddings().weight.data
    policy, sampling = HFPolicy(model, tokenizer), Sampling(temperature=0.0, max_tokens=1)
    texts = {}
    for sign in (1.0, -1.0):  # one of them makes it the likeliest token
        head_VD[-1] = sign
        policy.clear()
        [reply] = policy.generate([ASKED], sampling, [0])
        texts[reply.token_ids] = reply.text
    assert texts[len(tokenizer) - 1,] == (mark if is_kept else "")


def test_the_template_is_told_and_what_it_does_not_know_is_said(tmp_path: Path) -> None:
    folder = save_walker(tmp_path / "walker")
    (folder / "chat_template.jinja").write_text(OPENING)
    config = parse_args(
        [
            *("--model", str(folder), "--output", str(tmp_path / "run"), "--steps", "0", "--num-envs", "4"),
            *("--env-kwargs", '{"is_slippery": false, "max_episode_steps": 9}'),
            *("--chat-template-kwargs", '{"enable_thinking": false, "effort": "high", "messages": []}'),
        ]
    )
    config = dataclasses.replace(config, **{k: SMALL[k] for k in SMALL if k.endswith(("episodes", "waves"))})
    said = io.StringIO()
    self_improve(dataclasses.replace(config, rounds=1), Console(file=said, width=200))
    line = "the model's chat template does not know effort, messages: left out"
    assert said.getvalue().splitlines().count(line) == 1
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert saved["chat_template_kwargs"] == {"enable_thinking": False, "effort": "high", "messages": []}
