"""The agent's model as a policy whose replies are drawn by vLLM.

The model stays a transformers model, which is what gets trained; an ``Engine`` holds a copy of its weights
and draws with it. Whenever the weights have changed, or another policy has used the engine, the engine is
handed them anew before it draws, and has to prove that it computes what the model computes: on fixed texts
both give each token the same log-probability, or the run stops.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.policies.local import HFPolicy, Request
from agents.policies.policy import FinishReason, Message, Prompt, Sampling
from distill.lm.save import as_stored
from distill.lm.shards import Shards, weights_of
from distill.lm.span import Prefix
from distill.parallel import ALONE, Ranks

Weights = Iterable[tuple[str, torch.Tensor]]
"""Names as in a checkpoint of the model."""
Scored = tuple[Prefix, Sequence[int], Sequence[float]]
"""A prompt's token ids, a completion's, and the log-probabilities that an engine gave the latter."""

PROBES = (
    Prompt(messages=(Message(role="user", content="Which way is the lake? Answer in one word."),)),
    Prompt(
        messages=(Message(role="user", content="17 + 25 = ?"),), reply_prefix="The sum of 17 and 25 is 42."
    ),
)
"""What an engine is tested with."""
MAX_SEED = 2**63
"""vLLM's seeds are below it."""
TEMPERATURES = (0.01, 2.0)
"""vLLM refuses higher ones, and puts this in place of lower ones."""
TOLERANCE = 0.005
"""Mean distance of two log-probabilities, in nats, up to which engine and model agree in fp32."""
TOLERANCE_16 = 0.1
"""The same where one of them computes in 16 bits."""


def draws_at(temperature: float) -> bool:
    """Whether vLLM can."""
    return temperature == 0 or TEMPERATURES[0] <= temperature <= TEMPERATURES[1]


class VLLMError(RuntimeError):
    """vLLM cannot be used, or no longer; the message says why and what to do."""


def check_temperature(temperature: float) -> None:
    """Make sure that vLLM draws at it.

    Raises:
        VLLMError: It does not.
    """
    if not draws_at(temperature):
        low, high = TEMPERATURES
        raise VLLMError(
            f"vLLM draws at temperatures from {low:g} to {high:g}, or greedily at 0, not at {temperature:g}: "
            "take --policy hf"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What an engine drew for one prompt."""

    token_ids: tuple[int, ...]
    """With the end-of-sequence token, if that ended it."""
    logprobs: tuple[float, ...]
    """Natural logs of the tokens' probabilities at temperature 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far two computations of the same log-probabilities are apart, in nats."""

    mean: float
    max: float


class Drawer(Protocol):
    """A language model that somebody else computes."""

    name: str
    """For messages."""

    def draw(
        self, prompts: Sequence[Prefix], seeds: Sequence[int], sampling: Sampling, stop_ids: Sequence[int]
    ) -> list[Drawn]:
        """One completion per prompt; each depends on its prompt, its seed and the sampling only."""
        ...

    def logprobs(self, sequences: Sequence[Prefix]) -> list[list[float]]:
        """The log-probability, at temperature 1, of every token of each sequence but its first."""
        ...


class Engine(Drawer, Protocol):
    """One that takes weights."""

    holds: object
    """Whose weights it has, as ``VLLMPolicy`` notes it; ``None`` when that is not known."""
    together: int
    """How many processes make up one, and take their parts of the weights at the same time."""

    @property
    def window(self) -> int:
        """The longest prompt and completion together, in tokens."""
        ...

    def load(self, weights: Weights, ranks: Ranks = ALONE) -> None:
        """Take over these weights, and forget all that was computed with others.

        Args:
            weights: Which every process has, and every one goes through to the end.
            ranks: The processes that take part.

        Raises:
            VLLMError: It cannot.
        """
        ...

    def tested(self, test: Callable[[Drawer], Gap]) -> list[Gap]:
        """The outcome of ``test`` on itself, or on each of those that do its work."""
        ...

    def release(self) -> None:
        """Give back what memory it can until it is used again."""
        ...


class EnginePolicy(HFPolicy):
    """A ``Policy`` whose tokens an engine draws, with what weights it has: a model lends it the rest."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, engine: Engine, **options: Any
    ) -> None:
        """Wrap a model.

        Args:
            model: See ``HFPolicy``.
            tokenizer: See ``HFPolicy``.
            engine: Who draws; policies may share one.
            **options: See ``HFPolicy``.
        """
        super().__init__(model, tokenizer, **options)
        self.engine = engine

    @property
    def window(self) -> int:
        """See ``HFPolicy``."""
        return min(self.lm.window, self.engine.window)

    def expect(self, prompts: Sequence[Prompt]) -> None:
        """Nothing: the engine takes what comes together."""

    def clear(self) -> None:
        """Forget everything, and give back the engine's memory."""
        super().clear()
        self.engine.release()

    def _answer(self, requests: Sequence[Request], sampling: Sampling) -> None:
        if not requests:
            return
        check_temperature(sampling.temperature)
        self._sync()
        # Equal prompts have equal answers where nothing is drawn.
        keys = [(r.prompt_ids, r.seed if sampling.temperature > 0 else 0) for r in requests]
        distinct = list(dict.fromkeys(keys))
        prompts, seeds = zip(*distinct, strict=True)
        drawn = self._drawn(self.engine, prompts, seeds, sampling, sorted(self._eos_ids))
        answers = dict(zip(distinct, drawn, strict=True))
        for request, key in zip(requests, keys, strict=True):
            answer = answers[key]
            request.token_ids, request.logprobs = list(answer.token_ids), list(answer.logprobs)
            ended = bool(answer.token_ids) and answer.token_ids[-1] in self._eos_ids
            request.finish_reason = FinishReason.STOP if ended else FinishReason.LENGTH

    def _drawn(
        self,
        drawer: Drawer,
        prompts: Sequence[Prefix],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> list[Drawn]:
        """What it draws, if the model can read that."""
        drawn = drawer.draw(prompts, seeds, sampling, stop_ids)
        embeddings: Any = self.lm.model.get_input_embeddings()
        size = embeddings.weight.shape[0]
        if strange := [token for answer in drawn for token in answer.token_ids if token >= size]:
            raise VLLMError(f"{drawer.name} drew token {strange[0]}, and the model has {size}")
        return drawn

    def _sync(self) -> None:
        """Make sure that the engine has the weights that it is to draw with."""


class VLLMPolicy(EnginePolicy):
    """One whose engine draws with the model's own weights, whatever becomes of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        engine: Engine,
        weights: Callable[[], Weights] | None = None,
        ranks: Ranks = ALONE,
        **options: Any,
    ) -> None:
        """Wrap a model.

        Args:
            model: See ``HFPolicy``.
            tokenizer: See ``HFPolicy``.
            engine: See ``EnginePolicy``.
            weights: What the engine is handed; by default the model's own weights.
            ranks: The processes that have such a policy each. Where the model or the engine is in parts,
                those who wait for others help to hand over the weights.
            **options: See ``HFPolicy``.
        """
        super().__init__(model, tokenizer, engine=engine, **options)
        self._ranks = ranks
        self._weights = weights or partial(weights_of, model)
        takes_all = ranks.size > 1 and (engine.together > 1 or Shards.of(model) is not None)
        self._number = ranks.meeting.add(partial(self._load, ranks)) if takes_all else None
        dtype = self.lm.compute_dtype or model.dtype
        self._tolerance = TOLERANCE if dtype.itemsize >= 4 else TOLERANCE_16

    def adopt(self) -> None:
        """Take the engine as it is, if it shows that it has this model's weights already.

        Raises:
            VLLMError: It has not.
        """
        self.prove()
        self.engine.holds = self._own

    def prove(self) -> Gap:
        """Let the engine show that it computes what the model computes.

        Returns:
            How far it is off.

        Raises:
            VLLMError: Too far.
        """
        return max(self.engine.tested(self._test), key=lambda gap: gap.mean)

    def _test(self, drawer: Drawer) -> Gap:
        prompts = [self.encode(probe) for probe in PROBES]
        given = drawer.logprobs(prompts)
        known = self.gap((ids[:1], ids[1:], logprobs) for ids, logprobs in zip(prompts, given, strict=True))
        if not known.mean <= self._tolerance:  # so that NaN is refused too
            raise VLLMError(
                f"{drawer.name} does not compute what the model computes: its log-probabilities of "
                f"{len(prompts)} fixed texts are off by {known.mean:.3g} nats on average (allowed: "
                f"{self._tolerance:g}), so it has other weights or another model. Nothing was drawn with it"
            )
        sampling = Sampling(temperature=0.5, max_tokens=8)
        drawn = self._drawn(drawer, prompts, range(len(prompts)), sampling, [])
        told = self.gap((ids, d.token_ids, d.logprobs) for ids, d in zip(prompts, drawn, strict=True))
        if not told.mean <= self._tolerance:
            raise VLLMError(
                f"{drawer.name} gives other log-probabilities of what it draws than those at temperature 1: "
                f"they are off by {told.mean:.3g} nats on average. Start it without --logprobs-mode"
            )
        return max(known, told, key=lambda gap: gap.mean)

    def gap(self, scored: Iterable[Scored]) -> Gap:
        """How far an engine's log-probabilities are from the model's own, over the completions' tokens."""
        lm, distances = self.lm.fresh(), list[float]()
        for prompt, completion, given in scored:
            own_T = lm.logprobs((*prompt, *completion), len(prompt))
            distances += (own_T - torch.tensor(given)).abs().tolist()
        if not distances:
            return Gap(mean=0.0, max=0.0)
        return Gap(mean=sum(distances) / len(distances), max=max(distances))

    def prepare(self) -> None:
        """See ``HFPolicy``: every engine is handed the weights, if one needs them, and proves it.

        It proves it also where it had them: a server may have been begun anew since, or been given others'.
        """
        if any(self._ranks.maximum([self.engine.holds != self._own])):
            self._hand_over(self._ranks)
        else:
            self.prove()

    def _sync(self) -> None:
        """Make sure that the engine has this model's weights as they are now, whatever others do."""
        if self.engine.holds != self._own:
            self._hand_over(ALONE if self._number is None else self._ranks)

    @property
    def _own(self) -> object:
        return self, self.lm.weights_version

    def _hand_over(self, ranks: Ranks) -> None:
        if self._number is None:
            self._load(ranks)
        else:
            ranks.meeting.join(self._number, partial(self._load, ranks))
        self.prove()
        self.engine.holds = self._own

    def _load(self, ranks: Ranks) -> None:
        self.engine.holds = None  # whatever interrupts this: half a load is taken for nobody's weights
        self.engine.load(as_stored(self.lm.model, self._weights()), ranks)
