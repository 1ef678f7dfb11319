"""How a chat becomes the text that a model continues, whatever its template makes of it.

A template is asked, with marked messages, what it does: whether it shows a system message, what it wants
content to be, what it writes before a reply, and with what it ends one.
"""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from agents.policies.policy import Message
from distill.lm.load import ModelError
from distill.lm.reason import reason
from envs.thoughts import begins_thought, begins_with_thought, end_of, ends_thought, opened, thought_and_said

TODAY = datetime(2024, 7, 26)
"""What templates that write the date are told: a prompt must not differ by the day."""
MARKS = {"system": "SystemMark", "user": "UserMark", "assistant": "ReplyMark"}
THOUGHT = "ThoughtMark"
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""What transformers adds to Jinja: it marks replies, and shows nothing."""
OURS = frozenset(["messages", "add_generation_prompt", "raise_exception", "strftime_now"])
"""What a template is given anyway."""


class ChatTemplate:
    """A tokenizer's chat template, with its habits known."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any] | None = None) -> None:
        """Find out what the template does.

        Args:
            tokenizer: Has a chat template.
            settings: What the template is told beside the chat; what it does not know is left out.

        Raises:
            ModelError: It cannot show a user's message, or a beginning of the reply cannot follow it.
        """
        self._tokenizer = tokenizer
        known = known_settings(tokenizer)
        self._settings = {name: value for name, value in (settings or {}).items() if name in known}
        self._template = _undated(tokenizer.get_chat_template())
        self._has_warned = False
        self._has_parts = False
        """Whether a message's content is a list of parts."""
        self._has_system = True
        self._hands_over = frozenset[bool]()
        """Which thoughts, those that are cut off or those that are not, are given beside the content."""
        self._before_begun = self._before_free = self._by_itself = ""
        if MARKS["user"] not in self._tried(["user"]):
            self._has_parts = True
            if MARKS["user"] not in self._tried(["user"]):
                raise ModelError(
                    "the model's chat template does not show a user's message: give its tokenizer another one"
                )
        shown = self._tried(["system", "user"])
        self._has_system = MARKS["system"] in shown and MARKS["user"] in shown
        self._find_beginnings()
        self._find_thoughts()

    def text(self, messages: Sequence[Message], reply_prefix: str) -> str:
        """The chat as text, up to where the model goes on: behind the reply's beginning, if there is one.

        Raises:
            ModelError: The template does not take the chat.
        """
        settings = self._settings
        if reply_prefix and self._is_told_not_to_think:
            settings = {"enable_thinking": False} | settings
        text = self._rendered([(m.role, m.content) for m in messages], settings, begins_reply=True)
        before = self._before_begun if reply_prefix else self._before_free
        if not text.endswith(self._opened_thought):  # as where a message says /no_think
            before = ""
        return text + before + reply_prefix

    def opened_thought(self, messages: Sequence[Message]) -> str:
        """The beginning of a thought with which the text before a free reply ends, if it does."""
        thought = self._opened_thought
        return thought if thought and self.pieces(messages, "")[-1].endswith(thought) else ""

    def pieces(self, messages: Sequence[Message], reply_prefix: str) -> list[str]:
        """``text``, cut at the replies whose tokens are known: each piece ends where one was drawn.

        It is one piece where the template shows such a reply otherwise than it was said, but for white
        space: such as without its thoughts. One that it does not take, such as an empty one, stands there
        as it was drawn.

        Raises:
            ModelError: The template does not take the chat.
        """
        begun = reply_prefix or self._opened_thought  # which no reply's tokens have
        mark = MARKS["assistant"]
        while any(mark in message.content for message in messages):
            mark += "Mark"
        drawn, marked = list[str](), list[Message]()
        by_itself, between = list[str](), list[bool]()
        for message in messages:
            if message.token_ids is not None:
                drawn.append(message.content.removeprefix(begun))
                shown, beginning = message.content.removesuffix(drawn[-1]) + mark, self._by_itself
                said = _parts(message.content, self._shows_thoughts)
                if said is not None:
                    shown, beginning = self._before_thought + mark, self._before_thought
                    if not said.is_cut:
                        shown += self._behind_thought + (mark if said.rest else "")
                by_itself.append("" if (self._opened_thought if said else reply_prefix) else beginning)
                between.append(said is not None and bool(said.rest))
                message = replace(message, content=shown)
            marked.append(message)
        if not drawn:
            return [self.text(messages, reply_prefix)]
        pieces = self.text(marked, reply_prefix).split(mark)
        if is_whole := len(pieces) == len(drawn) + sum(between) + 1:
            for place, (beginning, is_apart) in enumerate(zip(by_itself, between, strict=True)):
                pieces[place] = pieces[place].removesuffix(beginning)
                del pieces[place + 1 : place + 1 + is_apart]  # from the thought to what was said: it is drawn
        try:
            whole = self.text(messages, reply_prefix)
        except ModelError:
            if is_whole:
                return pieces
            raise
        if is_whole:
            filled = "".join(part for pair in zip(pieces, [*drawn, ""], strict=True) for part in pair)
            if "".join(filled.split()) == "".join(whole.split()):
                return pieces
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the model's chat template shows earlier replies otherwise than they were said, such as "
                "without thoughts: what is remembered is what it shows",
                stacklevel=2,
            )
        return [whole]

    def end_tokens(self) -> frozenset[int]:
        """The tokens with which the template ends a reply, of those that are none of its text."""
        known = self._tokenizer.get_added_vocab() | dict(
            zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        )
        for roles in (["user", "assistant"], ["user", "assistant", "user"]):  # some do not end the last one
            _, found, rest = self._tried(roles, begins_reply=False).partition(MARKS["assistant"])
            if first := [token for token in known if found and rest.lstrip().startswith(token)]:
                return frozenset([known[max(first, key=len)]])
        return frozenset()

    def _find_beginnings(self) -> None:
        """What is still to be written before a reply that is begun, and before one that is free."""
        self._is_told_not_to_think = False
        opening = self._tried(["user"])
        thought = opened(_behind_user(opening))
        self._opened_thought = thought.string[thought.start() :] if thought else ""
        """The beginning of a thought with which the text before a free reply ends, if it does."""
        before, found, _ = self._tried(["user", "assistant"], begins_reply=False).partition(
            MARKS["assistant"]
        )
        if found and before.startswith(opening):
            rest, shown = before.removeprefix(opening), _behind_user(before)
            if not opened(shown):
                self._before_begun = rest
                # A free reply begins with it: "[/INST]", and then " right"; or with another channel.
                if not rest.strip() or (ends_thought(rest) and not begins_thought(shown)):
                    self._by_itself = rest
                elif not begins_thought(shown):
                    self._before_free = rest  # such as the mark of an answer
                return
        if thought is None:
            return
        untold = self._tried(["user"], {"enable_thinking": False} | self._settings)
        if MARKS["user"] in untold and not opened(_behind_user(untold)):
            self._is_told_not_to_think = True
        else:
            self._before_begun = f"\n{end_of(thought[0])}\n\n"

    def _find_thoughts(self) -> None:
        """Which thoughts stand where they were thought only if they are no part of the content."""
        self._before_thought = self._behind_thought = ""
        """What the template writes around the thought of a reply."""
        self._shows_thoughts = frozenset[bool]()
        """Which thoughts of earlier replies, likewise, it shows where they were thought."""
        asked, said = self._tried(["user"]).removesuffix(self._opened_thought), MARKS["assistant"]
        self._hands_over = frozenset([False, True])
        shown = self._tried(
            ["user", "assistant"], begins_reply=False, reply=f"<think>{THOUGHT}</think>{said}"
        )
        self._hands_over = frozenset()
        before, found, after = shown.partition(THOUGHT)
        if not found or not before.startswith(asked) or not opened(begins := before.removeprefix(asked)):
            return
        self._before_thought, (self._behind_thought, *_) = begins, after.partition(said)
        for is_cut, end in ((False, self._behind_thought + said), (True, "")):
            roles, reply = ["user", "assistant", "user"], begins + THOUGHT + end
            content = self._tried(roles, reply=reply)
            if THOUGHT in content and not _has_beginning(content, asked + begins + THOUGHT):
                self._hands_over |= {is_cut}
            if _has_beginning(self._tried(roles, reply=reply), asked + reply):
                self._shows_thoughts |= {is_cut}

    def _tried(
        self,
        roles: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        *,
        begins_reply: bool = True,
        reply: str = MARKS["assistant"],
    ) -> str:
        """A chat of marks; empty if the template does not take it."""
        chat = [(role, reply if role == "assistant" else MARKS[role]) for role in roles]
        try:
            return self._rendered(chat, settings or self._settings, begins_reply=begins_reply)
        except ModelError:
            return ""

    def _rendered(
        self, chat: Sequence[tuple[str, str]], settings: Mapping[str, Any], *, begins_reply: bool
    ) -> str:
        turns = list(chat)
        if not self._has_system and turns and turns[0][0] == "system":
            (_, rules), *turns = turns
            first = turns.pop(0)[1] if turns and turns[0][0] == "user" else ""
            turns.insert(0, ("user", f"{rules}\n\n{first}".strip()))
        messages = [self._message(role, said) for role, said in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=begins_reply,
                tokenize=False,
                chat_template=self._template,
                **settings,
            )
        except Exception as error:  # Jinja's, and whatever a template's code raises
            raise ModelError(
                f"the model's chat template does not take a chat ({reason(error)}): give it another one"
            ) from error
        assert isinstance(text, str)
        return text

    def _message(self, role: str, said: str) -> dict[str, Any]:
        thought = {}
        if role == "assistant" and (parts := _parts(said, self._hands_over)) is not None:
            thought, said = {"reasoning_content": parts.thought}, parts.rest
        return {
            "role": role,
            "content": [{"type": "text", "text": said}] if self._has_parts else said,
        } | thought


class _Parts(NamedTuple):
    """A reply that begins with a thought."""

    thought: str
    rest: str
    is_cut: bool
    """Whether the thought has no end."""


def _parts(said: str, kinds: Collection[bool]) -> _Parts | None:
    """The thought and the rest of a reply, if it begins with one that is among these, cut off or not."""
    if not begins_with_thought(said):
        return None
    thought, rest = thought_and_said(said)
    return _Parts(thought.strip(), (rest or "").strip(), rest is None) if (rest is None) in kinds else None


def _has_beginning(text: str, beginning: str) -> bool:
    """Whether ``text`` begins so, but for white space."""
    return "".join(text.split()).startswith("".join(beginning.split()))


def _behind_user(text: str) -> str:
    """What a template writes behind the user's message: before it may stand words about thoughts."""
    return text.rpartition(MARKS["user"])[2]


def known_settings(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """What the chat template may be told beside the chat."""
    source = _GENERATION.sub("", tokenizer.get_chat_template())
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateSyntaxError:  # using it will say so
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed)) - OURS


def unknown_settings(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> list[str]:
    """A line for the user about the settings that the template does not know, if there are any."""
    known = known_settings(tokenizer) if settings else frozenset()
    unknown = ", ".join(name for name in settings if name not in known)
    return [f"the model's chat template does not know {unknown}: left out"] if unknown else []


def _undated(template: str) -> str:
    """The template with today's date replaced by ``TODAY``, in the formats in which it writes it."""
    if "strftime_now" not in template:
        return template
    cases = "".join(
        f"{{% elif format == {form!r} %}}{TODAY.strftime(form)}"
        for form in sorted(set(re.findall(r"""strftime_now\(\s*["']([^"'{}]*)["']""", template)))
    )
    macro = f"{{% if not format %}}{cases}{{% else %}}{TODAY.date()}{{% endif %}}"
    return f"{{%- macro strftime_now(format) -%}}{macro}{{%- endmacro -%}}{template}"
