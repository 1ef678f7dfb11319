"""The ways to compute a model, and what was found of one: that stands on it, and goes with its copies."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel

from distill.lm.logit_map import LogitMap

Way = Literal["tree", "padded"]
Growth = Literal["joined", "alike", "none"]
"""Which sequences of a model can grow side by side: all, those of one length, or none, so that all is
computed anew for each token. Some tell positions by the number of tokens, or have states of their own."""


class UnsupportedModelError(ValueError):
    """A model that neither way computes exactly, or not the one that was asked for; says by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """How a model is computed."""

    way: Way
    attention: str
    """Transformers' name of its attention function."""
    growth: Growth = "joined"
    """Which sequences it draws side by side."""
    leaps: bool = True
    """Whether a conversation is gone on with by all that is new in it; else it is read anew at each turn."""
    state_bytes: int = field(default=0, compare=False)
    """What a sequence takes beside its keys and values, however long it is: its recurrent states."""
    logit_map: LogitMap = field(default_factory=LogitMap)
    """But for the bias of its head, which may be trained."""

    def __str__(self) -> str:
        if self.way == "tree":
            return "as a prefix tree"
        apart = {"joined": "", "alike": ", other lengths apart", "none": ", no keys kept"}[self.growth]
        anew = "" if self.leaps or self.growth == "none" else ", conversations anew at each turn"
        return f"in padded batches with {self.attention} attention{apart}{anew}"


def support_of(model: PreTrainedModel) -> Support | None:
    """What ``find_support`` found of the model, or of the one that it is a copy of."""
    support: Support | None = vars(model).get("_support")
    return support


def set_support(model: PreTrainedModel, support: Support | None) -> None:
    """Say how the model is computed."""
    vars(model)["_support"] = support


def growth_of(model: PreTrainedModel) -> Growth:
    """Of a model of which nothing was found out, all sequences."""
    support = support_of(model)
    return "joined" if support is None else support.growth


def leaps(model: PreTrainedModel) -> bool:
    """Whether a sequence of the model can be gone on with by several tokens at once."""
    support = support_of(model)
    return support is None or support.leaps


def state_bytes(model: PreTrainedModel) -> int:
    """See ``Support``."""
    support = support_of(model)
    return 0 if support is None else support.state_bytes
