"""The agent as a transformers model, with memoised decoding (``distill/lm/language_model.py``)."""

import os
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.policies.chat_template import ChatTemplate
from agents.policies.drawing import DrawTable, draw
from agents.policies.policy import Completion, FinishReason, Prompt, Sampling
from agents.policies.repetition import Repetition
from distill.lm.decoding import kind_of_length
from distill.lm.language_model import rope_switch
from distill.lm.prefix_cache import PrefixCache
from distill.lm.prefix_tree import PrefixTree
from distill.lm.span import Prefix
from distill.lm.support import language_model
from distill.lm.ways import Way, growth_of, state_bytes
from envs.thoughts import is_mark

MAX_DISTINCT = 256
"""Distinct prefixes decoded at once: bounds the logits held, [256, V]."""
MEMO_TOKENS, MOST_MEMO_TOKENS = 16, 256
"""Of replies of at most this many tokens every distribution is remembered; of longer ones, up to the second
number, as long as they repeat. Others are drawn side by side, and nothing is kept of them."""
CPU_SHARE, GPU_SHARE = 0.125, 0.4
"""Of a machine's memory, which its processes share, and of a GPU's free memory, that keys and values may
take, and as much again what is kept of conversations with long replies."""
TABLE_BYTES = 256 << 20
"""What remembered distributions may take; what was not asked for longest goes first."""
MOST_MEMO_SIZE = 4 << 20
"""Tokens of texts, and characters of tokens, that are remembered: some 200 MB."""
DENSE = 0.75
"""Replies that have ended are carried along until so few are left of all."""
Key = TypeVar("Key")
Value = TypeVar("Value", Prefix, str)
_OPENS, _CLOSES = tuple("<[{|\uff5c\u25c1"), tuple(">]}|\uff5c\u25b7")


@dataclass(slots=True)
class Request:
    """A completion on its way."""

    prompt_ids: Prefix
    seed: int
    draws: random.Random = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    place: int = field(init=False)
    """See ``Repetition``."""

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)
        self.place = hash(self.prompt_ids)

    @property
    def sequence(self) -> Prefix:
        """The prompt and what was drawn."""
        return (*self.prompt_ids, *self.token_ids)


class HFPolicy:
    """A ``Policy`` over a transformers causal LM."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_bytes: int | None = None,
        compute_dtype: torch.dtype | None = None,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
        compute: Way | None = None,
        template_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a model and its tokenizer; see ``LanguageModel``, ``supported`` and ``ChatTemplate``.

        Keys and values take ``max_bytes`` at most, by default a share of what the device has; the oldest go
        first. Prompts that would take more are answered one group after the other.
        """
        self.tokenizer = tokenizer
        self.lm = language_model(
            model,
            compute,
            max_bytes=room(model.device) if max_bytes is None else max_bytes,
            compute_dtype=compute_dtype,
            within=within,
        )
        self._prefix_cache = PrefixCache(model, max_tokens=self.lm.max_nodes, compute_dtype=compute_dtype)
        """Conversations of long replies so far."""
        self._converses = False
        """Whether a reply of its own stood in a prompt: then others will, and what was computed is kept."""
        self._repetition = Repetition()
        self._tables: OrderedDict[tuple[Prefix, float], DrawTable] = OrderedDict()
        self.control_tokens = control_tokens(tokenizer)
        """What only the chat template may put into a prompt."""
        self._control = _any_of(self.control_tokens)
        self._control_of_own = _any_of(token for token in self.control_tokens if not is_mark(token))
        """In its own replies a thought stays one, by which a template may leave it out."""
        special = {
            token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        self._marks = frozenset(token for token, text in special.items() if is_mark(text))
        """Special tokens by which a thought is known in a reply's text."""
        self._unsaid = special.keys() - self._marks
        self._encoded: dict[Prompt, Prefix] = {}
        self._pieces: dict[str, Prefix] = {}
        self._decoded: dict[Prefix, str] = {}
        self._memo_size = 0
        self._version = self.lm.weights_version
        eos = model.generation_config.eos_token_id if model.generation_config else None
        ends = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
        self._template = ChatTemplate(tokenizer, template_settings)
        self._eos_ids = self._template.end_tokens().union(end for end in ends if end is not None)

    @property
    def window(self) -> int:
        """The longest prompt and completion together, in tokens."""
        return self.lm.window

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        self._version = self.lm.weights_version
        self.lm.clear()
        self._prefix_cache.clear()
        self._converses, self._repetition = False, Repetition()  # as when a run is resumed here
        self._memo_size = 0
        for memo in (self._tables, self._encoded, self._pieces, self._decoded):
            memo.clear()

    def prepare(self) -> None:
        """Make ready to answer; where several processes share a run, each has to take part."""

    def encode(self, prompt: Prompt) -> Prefix:
        """The prompt's token ids: the chat template's, then the reply prefix.

        A control token that stands in a message is spelled out: nobody who writes there may act in the
        template's name. Of the model's own earlier replies the very tokens stand there, if the template shows
        them as they were said. What ends one is the template's, and is not there twice.
        """
        if (known := self._encoded.get(prompt)) is not None:
            return known
        messages = [
            replace(m, content=self._spelled_out(m.content, is_own=m.token_ids is not None))
            for m in prompt.messages
        ]
        replies = [m.token_ids for m in messages if m.token_ids is not None]
        first, *others = self._template.pieces(messages, prompt.reply_prefix)
        if not others:
            known = tuple(self.tokenizer(first, add_special_tokens=False)["input_ids"])
            return self._kept(self._encoded, prompt, known)
        token_ids = list(self._tokenized(first))
        for reply, text in zip(replies, others, strict=True):
            token_ids += reply[:-1] if reply and reply[-1] in self._eos_ids else reply
            token_ids += self._tokenized(text)
        return tuple(token_ids)

    def _tokenized(self, text: str) -> Prefix:
        """Of a piece of a conversation, whose next turn asks for it again."""
        known = self._pieces.get(text)
        if known is None:
            known = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._kept(self._pieces, text, known)
        return known

    def _kept(self, memo: dict[Key, Value], key: Key, value: Value) -> Value:
        """The value, which is remembered; where texts never come again, what was remembered goes."""
        self._memo_size += len(value)
        if self._memo_size > MOST_MEMO_SIZE:
            self._memo_size = len(value)
            for full in (self._encoded, self._pieces, self._decoded):
                full.clear()
        memo[key] = value
        return value

    def _spelled_out(self, text: str, *, is_own: bool) -> str:
        """``text`` with a space in each control token; as it is without any."""
        control = self._control_of_own if is_own else self._control
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        if normalizer is not None and control.search(normal := normalizer.normalize_str(text)):
            text = normal  # what it reads there may be written otherwise, such as in wide letters
        while control.search(text):
            text = control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    def longest_action(self, reply_prefix: str, actions: Sequence[str]) -> int:
        """Tokens that the longest of the action words takes after the reply prefix."""

        def count(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        return max(count(f"{reply_prefix} {action}") for action in actions) - count(reply_prefix)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt; see ``Policy``."""
        self._converses |= any(m.token_ids is not None for prompt in prompts for m in prompt.messages)
        completions = self.complete([self.encode(prompt) for prompt in prompts], sampling, seeds)
        return [
            completion
            if prompt.reply_prefix or not (opened := self._template.opened_thought(prompt.messages))
            else replace(completion, text=opened + completion.text)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def expect(self, prompts: Sequence[Prompt]) -> None:
        """Compute prompts together that are going to be asked: one by one each costs a pass of its own."""
        if prompts:
            self.lm.hidden([self.encode(prompt) for prompt in prompts])

    def complete(
        self, prompts: Sequence[Prefix], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """The same for prompts that are token ids already."""
        requests = [Request(prompt_ids, seed) for prompt_ids, seed in zip(prompts, seeds, strict=True)]
        for request in requests:
            if len(request.prompt_ids) + sampling.max_tokens > self.window:
                request.finish_reason = FinishReason.OVERFLOW
        self._answer([request for request in requests if request.finish_reason is None], sampling)
        return [self._completion(request) for request in requests]

    def _answer(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Draw the tokens of requests that fit the window."""
        if self.lm.weights_version != self._version:
            self.clear()
        self._repetition.guess([request.prompt_ids for request in requests])
        can_grow = growth_of(self.lm.model) != "none" and not self._crosses(requests, sampling)
        if not can_grow or self.remembers(sampling.max_tokens):
            for group in self._groups(requests, sampling.max_tokens):
                self._decode(group, sampling, can_leave=can_grow)
            requests = [request for request in requests if request.finish_reason is None]
            if not requests:
                return
        self._prefix_cache.max_bytes = room(self.lm.model.device)
        for group in self._streams(requests, sampling.max_tokens):
            self._stream(group, sampling)

    def remembers(self, max_tokens: int) -> bool:
        """Whether distributions of replies of this many tokens are kept, for who says the same again."""
        return max_tokens <= (MOST_MEMO_TOKENS if self._repetition.is_common else MEMO_TOKENS)

    def _crosses(self, requests: Sequence[Request], sampling: Sampling) -> bool:
        """Whether a reply may grow across the length at which the model's rope changes."""
        switch = rope_switch(self.lm.model)
        return switch is not None and any(
            len(request.prompt_ids) <= switch < len(request.prompt_ids) + sampling.max_tokens
            for request in requests
        )

    def _streams(self, requests: Sequence[Request], max_tokens: int) -> Iterator[list[Request]]:
        """Requests that are drawn side by side: as many as there is room for, like lengths together."""
        model, most = self.lm.model, self._prefix_cache.max_bytes
        each, states = self.lm.token_bytes, state_bytes(model)

        def kind(request: Request) -> Hashable:
            return kind_of_length(model, len(request.sequence))  # some tokens may be drawn already

        group: list[Request] = []
        for request in sorted(requests, key=lambda request: len(request.sequence)):
            if group and (
                len(group) == MAX_DISTINCT
                or (len(group) + 1) * ((len(request.prompt_ids) + max_tokens) * each + states) > most
                or kind(request) != kind(group[0])
            ):
                yield group
                group = []
            group.append(request)
        if group:
            yield group

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Draw long replies, or the rest of them, a token of each at a time, where the logits are."""
        begun = [*dict.fromkeys(request.sequence for request in requests)]
        index = {sequence: number for number, sequence in enumerate(begun)}
        rows = list(requests)  # of the decoding; those that have ended stay until enough have
        with torch.no_grad(), self.lm.within():
            decoding, computed = self._prefix_cache.read(begun)
            self.lm.computed_tokens += computed
            decoding.keep([index[request.sequence] for request in rows])
            head = self.lm.head
            while True:
                live = [row for row, request in enumerate(rows) if request.finish_reason is None]
                hidden_ND = decoding.hidden if len(live) == len(rows) else decoding.hidden[live]
                uniforms = [rows[row].draws.random() for row in live]
                drawn = draw(head.logits(hidden_ND).float(), sampling, uniforms)
                for row, token, logprob in zip(live, *drawn, strict=True):
                    self._extend(rows[row], token, logprob, sampling)
                if self._converses:  # of a reply that has ended all but the last token was read
                    ended = [row for row in live if rows[row].finish_reason is not None]
                    self._prefix_cache.hold(decoding, {rows[row].sequence[:-1]: row for row in ended})
                live = [row for row in live if rows[row].finish_reason is None]
                if not live:
                    return
                if len(live) <= DENSE * len(rows):
                    decoding.keep(live)
                    rows = [rows[row] for row in live]
                decoding.step([request.token_ids[-1:] for request in rows])
                self.lm.computed_tokens += len(rows)

    def _groups(self, requests: Sequence[Request], max_tokens: int) -> Iterator[list[Request]]:
        """Requests whose keys and values fit into memory together, like prompts side by side."""
        own = max_tokens + state_bytes(self.lm.model) // self.lm.token_bytes  # of each alone
        if sum(len(r.prompt_ids) + own for r in requests) <= self.lm.capacity:
            yield list(requests)  # whatever they share
            return
        group: list[Request] = []
        tree = PrefixTree()
        for request in sorted(requests, key=lambda request: request.prompt_ids):
            tree.add(request.prompt_ids)
            if group and len(tree) + own * (len(group) + 1) > self.lm.capacity:
                yield group
                group, tree = [], PrefixTree()
                tree.add(request.prompt_ids)
            group.append(request)
        yield group

    def _decode(self, requests: Sequence[Request], sampling: Sampling, *, can_leave: bool) -> None:
        """Draw from distributions that are remembered; may leave off where replies prove not to repeat."""
        for _ in range(sampling.max_tokens):
            if can_leave and not self.remembers(sampling.max_tokens):
                self._tables.clear()
                return
            waiting: dict[Prefix, list[Request]] = {}
            for request in requests:
                if request.finish_reason is None:
                    waiting.setdefault(request.sequence, []).append(request)
            prefixes = sorted(waiting)
            for start in range(0, len(prefixes), MAX_DISTINCT):
                chunk = prefixes[start : start + MAX_DISTINCT]
                for prefix, table in self._draw_tables(chunk, sampling).items():
                    for request in waiting[prefix]:
                        self._extend(request, *table.draw(request.draws.random()), sampling)

    def _draw_tables(self, prefixes: Sequence[Prefix], sampling: Sampling) -> dict[Prefix, DrawTable]:
        """A table per prefix, those that are not known computed together."""
        at = sampling.temperature
        tables = {p: self._tables[p, at] for p in prefixes if (p, at) in self._tables}
        for prefix in tables:
            self._tables.move_to_end((prefix, at))
        missing = [prefix for prefix in prefixes if prefix not in tables]
        if missing:
            for prefix, logits_V in zip(missing, self.lm.logits(missing), strict=True):
                tables[prefix] = self._tables[prefix, at] = DrawTable.of(logits_V, sampling)
            bytes_each = next(iter(tables.values())).bytes
            while len(self._tables) > max(1, TABLE_BYTES // bytes_each):
                self._tables.popitem(last=False)
        return tables

    def _extend(self, request: Request, token: int, logprob: float, sampling: Sampling) -> None:
        """Add the token that was drawn."""
        request.token_ids.append(token)
        request.logprobs.append(logprob)
        if sampling.max_tokens > MEMO_TOKENS:
            request.place = self._repetition.note(request.place, token)
        if token in self._eos_ids:
            request.finish_reason = FinishReason.STOP
        elif len(request.token_ids) == sampling.max_tokens:
            request.finish_reason = FinishReason.LENGTH

    def _completion(self, request: Request) -> Completion:
        assert request.finish_reason is not None
        token_ids = tuple(request.token_ids)
        text = self._decoded.get(token_ids)
        if text is None:
            if self._marks.isdisjoint(token_ids):
                decoded = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
            else:
                decoded = self.tokenizer.decode([token for token in token_ids if token not in self._unsaid])
            assert isinstance(decoded, str)
            text = self._kept(self._decoded, token_ids, decoded)
        return Completion(
            text=text,
            token_ids=token_ids,
            logprobs=tuple(request.logprobs),
            finish_reason=request.finish_reason,
            prompt_tokens=len(request.prompt_ids),
        )


def room(device: torch.device) -> int:
    """Bytes that keys and values may take on the device, as it is now."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container may have less: none says so, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return int(CPU_SHARE * memory) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun says it


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that mean more than their letters, the longest first.

    They are the special ones and, of those that were added to the vocabulary, what is written as markup: not
    every tokenizer says of ``<think>`` that it is special.
    """
    added = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content.strip().startswith(_OPENS) and token.content.strip().endswith(_CLOSES))
    }
    tokens = {token.strip() for token in (*tokenizer.all_special_tokens, *added)}
    return tuple(sorted((token for token in tokens if len(token) > 1), key=lambda text: (-len(text), text)))


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")
