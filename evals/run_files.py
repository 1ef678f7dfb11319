"""What has to stand in the JSON files of a run, which may be anybody's, so that it can be read and shown.

What nobody reads may be there as well, and is not looked at.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError, model_validator

MOST = 1e12
"""Of what is no count: a plot of larger numbers has no room for them."""


def _bounded(number: float) -> float:
    if math.isfinite(number) and abs(number) > MOST:
        raise ValueError(f"Input should be between {-MOST:g} and {MOST:g}")
    return number


Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Mean = Annotated[float, Field(ge=0, le=MOST)]
Seconds = Mean
Figure = Annotated[float, AfterValidator(_bounded)]
"""Any but a huge one, also one that is none."""
Finite = Annotated[FiniteFloat, AfterValidator(_bounded)]


class _Part(BaseModel, strict=True):
    pass


Kind = TypeVar("Kind", bound=_Part)


class Change(_Part):
    """A difference with its interval."""

    difference: Finite
    ci_low: Finite
    ci_high: Finite
    p_value: Rate
    n: Count


class Arm(_Part):
    """An ``EvalResult``."""

    success_rate: Rate
    n: Annotated[Count, Field(ge=1)] | None
    ci_low: Rate | None
    ci_high: Rate | None
    mean_return: float
    invalid_rate: Rate | None
    prompt_tokens_per_turn: Mean | None
    turns_per_episode: Mean | None = None
    endings: dict[str, Count] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len({value is None for value in (self.n, self.ci_low, self.ci_high)}) > 1:
            raise ValueError("n and its interval belong together")
        if self.endings is not None and sum(self.endings.values()) < (self.n or 0):
            raise ValueError("endings are of fewer episodes than n")
        return self


class Played(Arm):
    """One that a model has played."""

    n: Annotated[Count, Field(ge=1)]
    prompt_tokens_per_turn: Mean


class Arms(_Part, extra="allow"):
    """All of one temperature."""

    __pydantic_extra__: dict[str, Arm] = Field(init=False)
    before: Played
    before_with_experience: Played
    after: Played

    @property
    def names(self) -> set[str]:
        """What they are called."""
        return {*type(self).model_fields, *self.__pydantic_extra__}


class CutShort(_Part):
    """Episodes that say little."""

    episodes: Count
    endings: dict[str, Count]
    first_error: str | None


class Results(_Part):
    """``results.json``."""

    env: str
    env_kwargs: dict[str, Any]
    model: str
    seed: int
    eval_temperature: Annotated[list[Mean], Field(min_length=1, max_length=2)]
    success_means: str = ""
    best_step: Count
    arms: Arms
    sampled_arms: Arms | None = None
    comparison: Change
    context_put_back: Change | None = None
    against_empty_context: Change | None = None
    sampled_against_empty_context: Change | None = None
    cut_short: CutShort | None = None
    wall_seconds: Seconds
    peak_rss_bytes: Count
    processes: Count = 1

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(self.eval_temperature) != 1 + (self.sampled_arms is not None):
            raise ValueError("there are not as many eval_temperature as tables of arms")
        if self.sampled_arms is not None and not self.arms.names <= self.sampled_arms.names:
            raise ValueError("sampled_arms are not those of arms")
        return self


class Expected(_Part):
    """What the parts of a run take."""

    play: Seconds
    gate: Seconds
    training: Seconds
    validation: Seconds
    test: Seconds


class Begun(_Part):
    """``config.json``, as far as a run needs it that is to go on."""

    config: dict[str, Any]
    run_id: str | None = None
    inputs: dict[str, str] = {}
    expected_seconds: Expected | None = None


class Settings(_Part):
    """Those that a report speaks of."""

    env: str
    env_kwargs: dict[str, Any]
    model: str
    seed: int
    store: str | None = None
    insights: str
    top_k: Count
    batch_size: Count
    vectorization: str
    env_timeout: Finite | None = None
    steps: Count | None = None
    chat_template_kwargs: dict[str, Any] = {}


class About(_Part):
    """``config.json``, as far as a report needs it."""

    config: Settings
    created: str
    expected_seconds: Expected | None = None


class Measured(_Part):
    """A mean with its interval."""

    mean: Finite
    ci_low: Finite
    ci_high: Finite
    n: Count


class Kept(_Part):
    """A line of ``forgetting.json``."""

    measure: str
    before: Measured
    after: Measured
    after_against_before: Change


class Forgetting(_Part):
    """``forgetting.json``."""

    rows: list[Kept]


class Entry(_Part):
    """A line of ``metrics.jsonl``."""

    key: str
    seconds: Seconds


class Play(_Part):
    """A phase of play."""

    episodes: Count
    judged: Count = 0
    success_rate: Rate


class Round(_Part):
    """What a round begins with."""

    step: Count
    success_rate: Rate
    ci_low: Rate
    ci_high: Rate


class Validation(_Part):
    """A step's score."""

    step: Count
    best: bool


class Train(_Part):
    """An optimiser step."""

    step: Count
    kl: Finite
    student_mass: Figure
    teacher_mass: Figure
    entropy: Figure
    teacher_entropy: Figure
    completion_tokens: Figure


class Gate(_Part):
    """A verdict."""

    round: Count
    candidates: Count
    size: Count
    insights: list[str]
    with_insights: Rate
    without: Rate
    wins: Count
    losses: Count
    p_value: Rate
    admitted: bool
    n: Count
    episodes: Count
    episodes_full: Count


KINDS: Mapping[str, type[_Part]] = {
    "play": Play,
    "round": Round,
    "validation": Validation,
    "train": Train,
    "gate": Gate,
}
"""Of the lines of ``metrics.jsonl``, what those of each kind hold; nobody reads others."""


def check(kind: type[Kind], value: Any, name: str = "") -> Kind:
    """Make sure that a value, which may have a name, is of a kind, as which it comes back.

    Raises:
        ValueError: It is not, in one line.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        told = ": ".join(filter(None, (name, at, first["msg"])))
        raise ValueError(" ".join(told.splitlines())) from error
