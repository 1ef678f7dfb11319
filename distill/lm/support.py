"""Which way computes a model exactly: found out by asking it, never by its name.

What a way gives is compared with what the model itself gives with transformers' eager attention, one sequence
after the other. The probes are short, so that even a large model answers in seconds; for their time the
model's sliding windows, attention chunks and rope switches are narrowed, so that the probes go beyond them.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from distill.lm import tree_attention
from distill.lm.compiled import compile_layers
from distill.lm.decoding import Decoding
from distill.lm.head import decoder_of, logit_map, output_layer
from distill.lm.language_model import LanguageModel, context_window, rope_settings
from distill.lm.padded_lm import PaddedLM
from distill.lm.prefix_lm import PrefixLM
from distill.lm.reason import reason
from distill.lm.shards import Shards
from distill.lm.span import Prefix
from distill.lm.ways import Growth, Support, UnsupportedModelError, Way, set_support, support_of

WAYS: Mapping[Way, type[LanguageModel]] = {"tree": PrefixLM, "padded": PaddedLM}

LONGEST = 22
"""Tokens of the longest probe."""
NARROW = 8
"""What windows, chunks and switches are narrowed to."""
LIMITS = ("sliding_window", "attention_chunk_size", "index_topk", "floor_scale")
"""What a configuration, and the layers after it, call the lengths from which on attention changes."""
TOLERANCE, LOOSE = 3e-5, 1e-3
"""Of the largest logit, in more than 16 bits: 20 times what rounding makes of 30 layers, and what it may be
at most where computing all anew is off by more, as convolutions on a GPU may be. Zamba 2 and Nemotron-H clamp
their steps when they read and not when they draw, which shows by little more than the first."""
COARSE = 0.03
"""The same of the mean over the probes in 16 bits."""
NOISE, ROUNDINGS = 2, 4
"""A probe may be off by so many times what it is when all is computed anew. In 16 bits that holds for the
third furthest, with so many units in the last place besides: a state that is lost shows in a few probes and
hardly in the mean; in one or two rounding may have chosen another expert."""
GROWTHS: tuple[tuple[Growth, bool], ...] = (
    ("joined", True),
    ("joined", False),
    ("alike", True),
    ("alike", False),
    ("none", False),
)
"""Growth, and whether it leaps: the fastest first."""


def language_model(model: PreTrainedModel, way: Way | None = None, **settings: Any) -> LanguageModel:
    """The model as a function of prefixes, computed in the given way or as it is ``supported``.

    On a GPU the layers of what is computed in padded batches are compiled.

    Args:
        model: Which.
        way: In which.
        settings: See ``LanguageModel``.

    Raises:
        UnsupportedModelError: It is not computed exactly.
    """
    way = supported(model, way).way
    if way == "padded":
        compile_layers(model)
    return WAYS[way](model, **settings)


def supported(model: PreTrainedModel, way: Way | None = None) -> Support:
    """How the model is computed, in the given way or in any: as was found before, else it is found now.

    Raises:
        UnsupportedModelError: It is not computed exactly, or is in parts already, so that it cannot be tried.
    """
    found = support_of(model)
    if found is not None and way in (None, found.way):
        return found
    if Shards.of(model) is not None:
        raise UnsupportedModelError("how a model is computed has to be found before it is cut into shards")
    return find_support(model, way)


@torch.no_grad()
def find_support(model: PreTrainedModel, way: Way | None = None) -> Support:
    """Find a way that computes the model exactly, the given one or any, and set the model's attention to it.

    What is found stands on the model. The tree is taken if it is exact, since it computes shared beginnings
    once.

    Raises:
        UnsupportedModelError: There is none. What stood on the model still does.
    """
    model.eval()
    before = support_of(model)
    own = decoder_of(model).config._attn_implementation
    try:
        support = _tried(model, way, own)
    except BaseException:
        set_support(model, before)
        _use(own, model, own)
        raise
    set_support(model, support)
    return support


def _tried(model: PreTrainedModel, asked: Way | None, own: str) -> Support:
    """See ``find_support``; the model's ``own`` attention may have changed then."""
    try:
        found = partial(Support, logit_map=logit_map(model))
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever foreign code may raise
        raise UnsupportedModelError(f"its own forward pass fails: {_line(error)}") from error
    beginnings, rounds = _probes(model)
    faults: list[str] = []

    def at_once(lm: LanguageModel) -> torch.Tensor:
        return lm.head.logits(lm.hidden(beginnings))

    def growing(lm: LanguageModel) -> torch.Tensor:
        return torch.cat([lm.logits(prefixes) for prefixes in rounds])

    with _narrowed(model):
        try:
            anew = partial(found, growth="none", leaps=False)  # no keys are kept
            set_support(model, anew(way="padded", attention=_use("eager", model, own)))
            whole = [plain_logits(model, prefix) for prefix in beginnings]
            grown = [plain_logits(model, prefix) for prefixes in rounds for prefix in prefixes]
            first = _Expected.of(model, at_once, whole)
            then = _Expected.of(model, growing, grown)
        except Exception as error:  # whatever foreign code may raise
            raise UnsupportedModelError(f"its own forward pass fails: {_line(error)}") from error
        ways: dict[Way, tuple[str, ...]] = {"tree": (tree_attention.NAME,), "padded": _attentions(model)}
        for way in ways if asked is None else (asked,):
            for attention in ways[way]:
                attention = _use(attention, model, own)
                support = anew(way=way, attention=attention)
                fault = _fault(model, support, first)
                if fault is None and way == "tree":
                    fault = _fault(model, support, then)
                for growth, leaps in GROWTHS if fault is None else ():
                    drawn = found(way="padded", attention=attention, growth=growth, leaps=leaps)
                    fault = _fault(model, drawn, then)
                    if fault is None:
                        has_states = way == "padded" and growth != "none"
                        return replace(drawn, way=way, state_bytes=_state_bytes(model) if has_states else 0)
                faults.append(f"{way} with {attention} attention: {fault}")
    raise UnsupportedModelError(f"it is not computed exactly: {'; '.join(faults)}")


def _attentions(model: PreTrainedModel) -> tuple[str, ...]:
    """Transformers' attention functions for padded batches, the fastest first.

    Flash attention is for 16 bits on a GPU, and a package of its own. Where it is not installed, or not made
    for the model's layers, ``sdpa`` has such kernels too, for batches without a mask.
    """
    is_for_flash = model.device.type == "cuda" and model.dtype.itemsize == 2
    flash = ("flash_attention_2",) if is_for_flash and is_flash_attn_2_available() else ()
    return (*flash, "sdpa", "eager")


def _use(attention: str, model: PreTrainedModel, own: str) -> str:
    """Set the model's attention; returns which it is then: some can have their own only, or no ``sdpa``."""
    decoder_of(model).config._attn_implementation = own
    with suppress(ValueError, ImportError):
        model.set_attn_implementation(attention)
    chosen: str = decoder_of(model).config._attn_implementation
    return chosen


def _probes(model: PreTrainedModel) -> tuple[list[Prefix], list[list[Prefix]]]:
    """Prefixes to ask for at once, long and short, with shared beginnings; and rounds in which some grow."""
    draws = random.Random(0)
    size = min(output_layer(model).out_features, 1000)  # behind that are images' and other special tokens

    def text(length: int) -> Prefix:
        return tuple(draws.randrange(min(3, size - 1), size) for _ in range(length))

    long = text(min(LONGEST, context_window(model)))
    beginnings = [long, long[:3], long[: len(long) // 2], long[:9] + text(4), text(2), text(NARROW - 1)]
    first = [long[:9] + text(3), text(2), text(NARROW - 1)]
    second = [prefix + text(1) for prefix in first]
    third = [second[2] + text(1), second[0] + text(1), second[2] + text(1)]  # one ends, another divides
    fourth = [third[0] + text(5), third[1] + text(NARROW + 1), second[1] + text(5)]  # conversations go on
    fifth = [fourth[1] + text(1), fourth[2] + text(3)]
    sixth = [fourth[0] + text(3), fifth[0] + text(4), fifth[1] + text(2)]
    return beginnings, [first, second, sorted(set(third)), fourth, fifth, sixth]


@torch.no_grad()
def plain_logits(model: Any, prefix: Prefix) -> torch.Tensor:
    """[V]: the logits after a prefix, in float32, as the model itself gives them."""
    logits_V: torch.Tensor = model(torch.tensor([prefix], device=model.device), use_cache=False).logits[0, -1]
    return logits_V.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """The logits of some probes by the model itself."""

    ask: Callable[[LanguageModel], torch.Tensor]
    """Asks a way for them."""
    logits_NV: torch.Tensor
    noise: float
    """How far the furthest is off where all is computed anew in padded batches; in 16 bits, the third."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        ask: Callable[[LanguageModel], torch.Tensor],
        logits: Sequence[torch.Tensor],
    ) -> "_Expected":
        """With the model's attention and growth as they are: those of its own."""
        logits_NV, noise = torch.stack(list(logits)), 0.0
        if not logits_NV.isfinite().all():
            raise ValueError(f"its logits are not finite in {str(model.dtype).removeprefix('torch.')}")
        with suppress(Exception):  # whatever foreign code may raise; then a way has its roundings only
            off_N = _off(WAYS["padded"](model), ask, logits_NV)
            noise = _third(off_N) if model.dtype.itemsize == 2 else float(off_N.max())
        return cls(ask=ask, logits_NV=logits_NV, noise=noise)


def _off(
    lm: LanguageModel, ask: Callable[[LanguageModel], torch.Tensor], expected_NV: torch.Tensor
) -> torch.Tensor:
    """[N]: the largest difference of each probe."""
    found_NV = ask(lm).float()
    if found_NV.shape != expected_NV.shape:
        raise ValueError(f"there are {found_NV.shape[1]} logits, not {expected_NV.shape[1]}")
    return (found_NV - expected_NV).abs().amax(-1)


def _third(off_N: torch.Tensor) -> float:
    return float(off_N.topk(3).values[-1])


def _fault(model: PreTrainedModel, support: Support, expected: _Expected) -> str | None:
    """What is wrong with the logits that are asked for, if anything is."""
    set_support(model, support)
    try:
        # Not compiled: layers would stay so, whichever way is taken.
        off_N = _off(WAYS[support.way](model), expected.ask, expected.logits_NV)
    except Exception as error:  # whatever foreign code may raise
        return _line(error)
    largest = float(expected.logits_NV.abs().max())
    if model.dtype.itemsize > 2:
        off = float(off_N.max())
        most = max(TOLERANCE * largest, min(NOISE * expected.noise, LOOSE * largest))
        is_right = off <= most  # false for NaN
    else:
        off = _third(off_N)
        most = NOISE * expected.noise + ROUNDINGS * torch.finfo(model.dtype).eps * largest
        is_right = float(off_N.mean()) <= COARSE * largest and off <= most
    if is_right:
        return None
    what = ", so its layers do more than attend" if support.way == "tree" else ""
    return f"the logits are off by {off:.3g}{what}"


def _state_bytes(model: PreTrainedModel) -> int:
    """What a sequence takes besides its keys and values: twice one of a token, less one of two."""

    def held(tokens: int) -> int:
        alone = Decoding(model, 1)
        alone.step([[0] * tokens])
        return alone.bytes

    return max(0, 2 * held(1) - held(2))


def _line(error: Exception) -> str:
    return reason(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {reason(error, 200)}"


@contextmanager
def _narrowed(model: PreTrainedModel) -> Iterator[None]:
    """Within it what limits attention is so narrow that a short probe shows it."""
    changed: list[tuple[Any, Any, int]] = []

    def narrow(owner: Any, name: Any, value: Any) -> None:
        if isinstance(value, int) and not isinstance(value, bool) and value > NARROW:
            changed.append((owner, name, value))
            _put(owner, name, NARROW)

    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for owner in (*configs.values(), *model.modules()):
        for name in LIMITS:
            narrow(owner, name, vars(owner).get(name))
    switch = "original_max_position_embeddings"
    for rope in rope_settings(model):
        narrow(rope, switch, rope.get(switch))
    for config in configs.values():  # which overrules the rope's own in some models
        narrow(config, switch, vars(config).get(switch))
    try:
        yield
    finally:
        for owner, name, value in reversed(changed):
            _put(owner, name, value)


def _put(owner: Any, name: str, value: int) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
