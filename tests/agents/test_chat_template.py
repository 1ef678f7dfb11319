"""What chat templates do with a chat: those that TRL ships, and made-up ones."""

import re
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from agents.policies.chat_template import ChatTemplate
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt
from distill.lm.load import ModelError
from envs.thoughts import outside_thoughts
from tests.conftest import byte_tokenizer, tiny_llama

FOLDER = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates"  # type: ignore[union-attr,index]
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
CHAT = (Message(role="system", content="The rules."), Message(role="user", content="Where to?"))


def template(text: str) -> ChatTemplate:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(sorted(set(re.findall(r"<[^<> ]+>", text))), special_tokens=True)
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_as_people_have_them(name: str) -> None:
    """The rules and the question are shown, the reply begins outside of thoughts, and its end is known."""
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    text = found.text(CHAT, "I move")
    assert "The rules." in text
    assert "Where to?" in text
    assert text.endswith("I move")
    assert text.count("<think>") == text.count("</think>")
    if name.startswith(("gptoss", "muse")):
        assert re.search(r"<\|message\|>I move$", text)
    assert len(found.end_tokens()) == 1


def test_templates_are_there() -> None:
    assert len(TEMPLATES) >= 40


def test_a_free_reply_may_think() -> None:
    text = template((FOLDER / "qwen3_6.jinja").read_text(encoding="utf-8")).text(CHAT, "")
    assert text.endswith("<think>\n")


def test_a_free_reply_may_think_to_itself() -> None:
    found = template((FOLDER / "muse_glimmer.jinja").read_text(encoding="utf-8"))
    assert found.text(CHAT, "").endswith("<|start|>assistant")
    assert found.text(CHAT, "I move").endswith("<|start|>assistant to=user<|message|>I move")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_reply_thought_what_it_thought(name: str, is_cut: bool) -> None:
    """Its thought follows on what it was asked, or is left out: no other stands before it."""
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    begins, ends = found._before_thought or "<think>\n", found._behind_thought or "\n</think>\n\n"
    said = begins + ("Left is a" if is_cut else f"Left is a hole.{ends}Right.")
    reply = Message(role="assistant", content=said, token_ids=(5, 6))
    with warnings.catch_warnings(action="ignore"):
        pieces = found.pieces([*CHAT, reply, CHAT[1]], "")
    if len(pieces) == 2:
        assert found.text(CHAT, "").startswith(pieces[0])
        assert "<think>" not in pieces[1].partition("Where to?")[0]
    else:
        assert not re.search(r"</think>\s*<think>", pieces[0])


@pytest.mark.parametrize("name", ["qwen3_8", "qwen3_5_think_training", "qwen3_training", "muse_glimmer"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_an_earlier_thought_stays_where_the_template_shows_it(name: str, is_cut: bool) -> None:
    """Some have to be given it beside the content; the last one has channels."""
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    begins, ends = found._before_thought, found._behind_thought
    said = begins + ("Left is a" if is_cut else f"Left is a hole.{ends}Right.")
    first, second = (
        Message(role="assistant", content=text, token_ids=(5, 6))
        for text in (said, said.replace("Right", "Left"))
    )
    with warnings.catch_warnings(action="error"):
        pieces = found.pieces([*CHAT, first, CHAT[1], second, CHAT[1]], "")
    assert len(pieces) == 3
    assert pieces[0] == found.text(CHAT, "")
    assert pieces[1] == pieces[2]
    assert found.text([*CHAT, replace(first, token_ids=None), CHAT[1]], "").count("Left is a") == 1


@pytest.mark.parametrize("name", ["gptoss", "gptoss_training"])
def test_a_free_reply_chooses_its_channel(name: str) -> None:
    """Of thoughts, of the answer, or one after the other; and it ends with the answer."""
    found = template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    first = found.text(CHAT, "")
    assert first.endswith("<|end|><|start|>assistant")
    assert found.text(CHAT, "I move").endswith("<|end|><|start|>assistant<|channel|>final<|message|>I move")
    said = (
        "<|channel|>analysis<|message|>Left is a hole.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Action: right"
    )
    assert (outside_thoughts(said) or "").strip() == "Action: right"
    assert outside_thoughts(said[:40]) is None
    reply = Message(role="assistant", content=said, token_ids=(5, 6))
    assert found.pieces([*CHAT, reply, CHAT[1]], "") == [
        first,
        "<|end|><|start|>user<|message|>Where to?<|end|><|start|>assistant",
    ]
    (end,) = found.end_tokens()
    assert found._tokenizer.convert_ids_to_tokens(end) == "<|return|>"


SWITCHED = (
    "Write between <think> and its end."
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n"
    "<think>{% if '/no_think' in messages[0].content %}</think>{% endif %}{% endif %}"
)


@pytest.mark.parametrize("said", ["/think", "/no_think"])
def test_a_message_may_say_whether_to_think(said: str) -> None:
    """As it does to Nemotron Nano 2; and words about thoughts are none that has begun."""
    found, thinks = template(SWITCHED), said == "/think"
    user, drawn = Message(role="user", content=said), Message(role="assistant", content="Hm.", token_ids=(5,))
    opened = "<think>" if thinks else ""
    closed = "\n</think>\n\n" if thinks else "</think>"
    assert found.text([user], "I move").endswith(f"assistant\n<think>{closed}I move")
    assert found.opened_thought([user]) == opened
    reply = replace(drawn, content=f"{opened}Hm.")
    before, after = found.pieces([user, reply, user], "")
    assert before.endswith(f"</s><s>assistant\n{opened}")
    assert found.opened_thought([user, reply, user]) == opened
    assert after.startswith("</s>")


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        ("<think>", "</think>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<longcat_think>", "</longcat_think>"),
        ("<|thinking|>", "<|/thinking|>"),
        ("<|channel>thought\n", "<channel|>"),
    ],
)
def test_every_mark_of_a_thought_may_be_opened_by_a_template(begins: str, ends: str) -> None:
    """A reply that is begun stands behind the thought, with what the template writes there if it does."""
    user = Message(role="user", content="Where to?")
    for shown in ("", f"{begins}{ends}<s>answer "):
        found = template(
            "{% for m in messages %}<s>{{ m.role }}\n"
            f"{{{{ {shown!r} if m.role == 'assistant' }}}}{{{{ m.content }}}}</s>{{% endfor %}}"
            f"{{% if add_generation_prompt %}}<s>assistant\n{{{{ {begins!r} }}}}{{% endif %}}"
        )
        assert found.text([user], "").endswith(f"<s>assistant\n{begins}")
        assert found.opened_thought([user]) == begins
        behind = found.text([user], "I move").rpartition("<s>assistant\n")[2]
        assert behind.startswith(begins)
        assert "".join(behind.split()) == "".join(
            f"{begins}{shown.removeprefix(begins) or ends}Imove".split()
        )


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_a_free_reply_begins_with_its_own_white_space(blank: str) -> None:
    """As Mistral's and GLM's do: behind "[/INST] " they would have to write half a token."""
    found = template(
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        f"{{% else %}}{{{{ {blank!r} + m.content.strip() + '</s>' }}}}{{% endif %}}{{% endfor %}}"
    )
    user = Message(role="user", content="Where to?")
    assert found.text([user], "I move") == f"[INST]Where to?[/INST]{blank}I move"
    first = found.text([user], "")
    assert first == "[INST]Where to?[/INST]"
    said = Message(role="assistant", content=f"{blank}right", token_ids=(5, 6))
    assert found.pieces([user, said, user], "") == [first, f"</s>{first}"]


PLAIN = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize("word", ["", " ReplyMark", " ReplyMarkMark and ReplyMark"])
def test_a_chat_may_hold_the_words_by_which_a_template_is_asked(word: str) -> None:
    user = Message(role="user", content=f"Where to?{word}")
    said = Message(role="assistant", content=f"right{word}", token_ids=(5, 6))
    pieces = template(PLAIN).pieces([user, said, user], "")
    assert len(pieces) == 2
    assert f"right{word}".join(pieces).count(f"Where to?{word}") == 2


def test_the_date_is_always_the_same() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}, {{ strftime_now(\"%Y\") }}" + PLAIN
    assert template(dated).text(CHAT, "").startswith("26 Jul 2024, 2024<s>")


def test_a_template_that_ignores_the_system_message_gets_it_in_the_users() -> None:
    ignoring = "{% for m in messages if m.role != 'system' %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    assert template(ignoring).text(CHAT, "") == "<s>user\nThe rules.\n\nWhere to?</s><s>assistant\n"


def test_a_template_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="does not show a user's message"):
        template("{% for m in messages %}{{ m.role }}{% endfor %}")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "deepseek_r1_distill"])
def test_a_template_leaves_out_what_was_thought_earlier(name: str) -> None:
    """In the agent's own replies its thought stays one, though nobody else may write such a token."""
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = byte_tokenizer()
    tokens = {token for token in re.findall(r"<[^<> ]+>", text) if "think" not in token}
    tokenizer.add_tokens(sorted(tokens), special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = text
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    policy = HFPolicy(model, tokenizer)
    said = "<think>\nHm, a hole.\n</think>\n\nAction: right"
    drawn = said.removeprefix(ChatTemplate(tokenizer).opened_thought(CHAT))
    ids = tuple(tokenizer(drawn, add_special_tokens=False)["input_ids"])
    question = Message(role="user", content="Where to, </think>?")
    reply = Message(role="assistant", content=said, token_ids=ids)
    with pytest.warns(UserWarning, match="earlier replies otherwise"):
        prompt = tokenizer.decode(list(policy.encode(Prompt(messages=(question, reply, question)))))
    assert "Action: right" in prompt
    assert "Hm" not in prompt
    assert prompt.count("< /think>?") == 2
