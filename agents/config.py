"""Every setting of a run, documented once: the command line, the Python call and ``config.json``."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import tyro
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from agents.memory import ALL_TURNS, Memory
from agents.policies.engines import POLICIES, engine_of
from agents.prompts import Layout, Place, conversation
from distill.examples import Data
from distill.lm.load import Dtype
from distill.loss import Direction, Mode
from distill.optimizer import OptimizerKind
from distill.parallel import Sharding
from distill.teacher import TeacherKind
from envs.any_text import first_line
from envs.deadline import MAX_SECONDS
from envs.place import Vectorization
from envs.registry import settings_for
from envs.thinking import Replies
from experience.addresses import absolute
from experience.bounded_http import base_of
from experience.masking import keep_secrets_of, masked
from experience.seeds import STRIDE

TrackerName = Literal["tensorboard", "trackio", "wandb"]
INSIGHT_KINDS = ("auto", "outcomes", "llm", "raw")
Precision = Literal["auto", "float32", "mixed", "bfloat16"]
AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]
AtLeastZero = Annotated[int, Field(ge=0, le=10**9)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Beyond it numbers overflow, or do nothing."""
Episodes = Annotated[int, Field(ge=1, le=STRIDE)]
"""No more than there are seeds of a split."""

MACHINE = (
    "device",
    "max_nodes",
    "gradient_checkpointing",
    "engine",
    "store",
    "vectorization",
    "env_timeout",
    "tracker",
    "keep_checkpoints",
    "trust_remote_code",
)
"""Settings that do not change what is computed: a resumed run may have others."""
PLANNED = ("episodes", "steps", "validation_episodes", "test_episodes")
"""Settings that ``minutes`` may lower."""
ARGUMENTS = ("output", "resume")
"""Where a run is: no settings of it, and not written down in its folder, which may be moved."""
SERVED = ("policy", "teacher")
"""Settings that may be servers' URLs: a resumed run may have other servers."""

JsonObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda args: _json_object(args[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field."""


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)  # tyro turns the ValueError into a message
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, such as '{{\"is_slippery\": false}}', not {text}")
    return value


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is run, and where it goes."""

    env: str = "FrozenLake-v1"
    """Gymnasium id of the environment; `module:EnvId` for your own."""
    env_kwargs: JsonObject = field(default_factory=dict)
    """Its arguments, as JSON: '{"is_slippery": false}'."""
    model: str = "smollm2"
    """`smollm2` (embedded, 135M), a folder, a .gguf file, or a hub id."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000_000)] = 0
    """Everything drawn follows from it: the same command, the same numbers."""
    output: Path | None = None
    """The run's folder; by default runs/<env>-<time>-<four letters>."""
    resume: Path | None = None
    """Go on with the run in this folder."""
    store: str | None = None
    """The experience's database, as an SQLAlchemy URL; else SQLite in the run's folder."""
    tracker: TrackerName | None = None
    """Where the curves go beside metrics.jsonl."""
    keep_checkpoints: bool = False
    """Keep them when the run has ended well."""


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """How the agent plays."""

    rounds: AtLeastOne = 1
    """How often to play, draw insights, and train."""
    episodes: AtLeastOne = 1536
    """Train episodes per round."""
    waves: AtLeastOne = 24
    """Parts of a round's play: the first without experience, each further one with the insights so far. Where
    these are not from outcomes it is one part."""
    temperature: Temperature = 1.0
    """At which the agent plays and samples while training."""
    replies: Replies = "act"
    """What the agent replies: `act` is the action and no more. With `think` it thinks first, and ends with a
    line `Action: ...`. Where the reply is text it can be `act` only, whatever the text is."""
    max_new_tokens: AtLeastOne | None = None
    """Longest reply, in tokens; by default what the longest action takes, 256 where the agent is to think, or
    64 where the reply is text."""
    memory: str = "none"
    """What the agent remembers of the turns before the present one, as a conversation: `none`, `last-N`, or
    `full`. What does not fit the context window is left out, the oldest turns first."""
    num_envs: AtLeastOne = 64
    """Episodes played at once."""
    vectorization: Vectorization = "sync"
    """`async` gives each of them a process, for slow environments."""
    env_timeout: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 60.0
    """Seconds of processor time that a step of the environment may take; then its episode ends with an error.
    By the clock it may take ten times as long, and at least 30 s. 0 is no limit."""


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings:
    """What is learned from the traces, and how it is shown."""

    insights: str = "auto"
    """What draws insights: `outcomes` counts what followed each action; with `llm` a model reads traces and
    writes, and with a .toml file it does so with your prompts in place of experience/prompts.toml; `raw`
    shows whole transcripts, for the ablation. `auto` is outcomes where actions are words."""
    insights_per_prompt: AtLeastZero = 1
    """How many insights a prompt shows; 0 for all. Small models follow one, large ones can take all."""
    insight_model: str | None = None
    """With llm: the model that writes, or its name at insight_url; by default the agent itself."""
    insight_url: str | None = None
    """With llm: an OpenAI-compatible endpoint that writes. Its key is read from OPENAI_API_KEY."""
    context_file: Path | None = None
    """A text to train in, such as a system prompt, in place of insights."""
    context_place: Place = "after"
    """Where the context stands: `after` the observation or `before` it, behind the word "Experience:"; or as
    it is in the `system` message. `chat` is the system message and, in a context_file, example turns behind
    lines `### user`, `### assistant`."""


@dataclass(frozen=True, kw_only=True)
class DistilSettings:
    """How the context is trained into the weights."""

    steps: AtLeastZero | None = None
    """Optimiser steps per round; by default 4 for every 5 insights, 30 at least and 120 at most. 0 trains
    nothing, and measures what experience is worth in the prompt."""
    batch_size: AtLeastOne = 64
    """Completions per optimiser step, as many for each action that is advised."""
    lr: Annotated[float, Field(ge=1e-12, le=10)] = 1e-4
    """AdamW's learning rate, from which it falls linearly to 0 at the run's end. 1e-4 suits one-word replies
    of 135M weights, 2e-5 their sentences; 1e-6 to 5e-6 suits 1.7B and more."""
    optimizer: OptimizerKind = "adamw"
    """`adamw-8bit` keeps AdamW's moments in 8 bits, by bitsandbytes: 2 bytes a weight in place of 8."""
    lora_rank: AtLeastZero = 0
    """Train adapters of this rank in place of all weights; 0 trains all. Adapters want a higher lr."""
    teacher_temperature: Temperature = 0.4
    """Divides the teacher's logits; below 1 it follows its insight more strictly."""
    data: Data = "student"
    """Whose completions are trained on: `student` is on-policy, `teacher` off-policy."""
    direction: Direction = "gated"
    """`reverse` is KL(student || teacher), the paper's; `forward` is KL(teacher || student), with which
    off-policy is context distillation. `gated` is forward where the two disagree and reverse where they
    agree, by their total variation: so the student is taught what it never says."""
    off_policy_steps: AtLeastZero = 0
    """How many of a round's first steps are on the teacher's completions, with the forward KL: what the
    student never says, such as a format, it cannot be taught on its own completions."""
    loss: Mode = "tail"
    """The KL's form: `tail` puts all tokens outside the top k into one bucket, `truncated` drops them (the
    paper's), `renormalised` rescales the top k, and `full` compares the whole vocabulary."""
    top_k: AtLeastOne = 256
    """How many tokens the KL compares one by one at each position."""
    eval_every: AtLeastOne = 10
    """Optimiser steps between validations."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Models and engines: who teaches, who draws, and what it runs on."""

    chat_template_kwargs: JsonObject = field(default_factory=dict)
    """What the models' chat templates are told, as JSON: '{"enable_thinking": true}'."""
    teacher: str = "base"
    """Whose weights are imitated: `base` the initial ones, `round` the student's at each round's beginning,
    `ema` a running mean of the student's, `self` the student's own of the moment. Or another model of the
    same tokenizer: its name or folder. Or a server of one (`vllm serve`), by its URL, several separated by
    commas: it scores the student's top-k tokens and answers off-policy, and the gate is played by the initial
    weights."""
    policy: str = "auto"
    """Who draws replies: `hf` is transformers, which remembers what it computed; `vllm` is vLLM in this
    process, `vllm:2` one that two processes share (tensor parallelism; so with any number that divides that
    of the processes), and a URL such as http://localhost:8000 a server of it (`vllm serve`). Several are
    separated by commas; they have to see the run's folder. `auto` is vllm where it is installed, a GPU is
    there, and replies are longer than an action's word."""
    device: str = "auto"
    """A torch device; auto takes a GPU if there is one."""
    precision: Precision = "auto"
    """Of the weights and of matrix products: `float32` or `bfloat16` is both, `mixed` is weights in float32
    and products in bfloat16 (autocast). `auto` is mixed where the machine is faster with it, but float32 on a
    CPU if replies are an action's word."""
    max_nodes: AtLeastOne | None = None
    """Tokens of one forward and backward pass; by default 768 on a CPU, and on a GPU what fits its memory.
    Lower it when memory is short."""
    gradient_checkpointing: bool = False
    """Keep no activations but compute them again: less memory, a third more time."""
    engine: Sharding = "ddp"
    """How several processes share the model: `ddp` each a copy, `fsdp` each a part."""
    trust_remote_code: bool = False
    """Let code that comes with the model run; a run's folder cannot say so, also when it is resumed."""


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """What decides, and what is reported."""

    validation_episodes: Episodes = 256
    """Episodes by which insights are admitted and the best checkpoint is chosen."""
    test_episodes: Episodes = 1000
    """Episodes by which every arm is measured at the end."""
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """What the run may take. Some episodes and a step are timed; then test and validation episodes are
    lowered, and then train episodes and steps, until the rest fits. The result is printed as flags."""
    eval_temperature: Annotated[tuple[Literal[0] | Temperature, ...], Field(min_length=1, max_length=2)] = (
        0.0,
        0.7,
    )
    """One or two temperatures to measure at; 0 is greedy. The first gives the headline figures."""


@dataclass(frozen=True, kw_only=True)
class SelfImproveConfig(
    MeasuringSettings, ModelSettings, DistilSettings, ExperienceSettings, PlaySettings, RunSettings
):
    """An agent plays, learns from its traces, and has what it learned trained into its weights.

    Its defaults are Frozen Lake's.
    """

    @classmethod
    def for_env(cls, env: str, **settings: Any) -> Self:
        """The command's defaults for an environment, and what is given beside them.

        Raises:
            ConfigError: What the env recommends, or what is given, makes no sense.
        """
        recommended = settings_for(env)
        if unknown := recommended.keys() - {f.name for f in fields(cls)} | recommended.keys() & {"env"}:
            raise ConfigError(f"{env} recommends {', '.join(sorted(unknown))}, which is not a setting")
        return cls(env=env, **{**recommended, **settings})

    @property
    def teacher_kind(self) -> TeacherKind:
        """What the teacher has to do with the student; a model of its own is as frozen as the base."""
        kind = self.teacher
        return kind if kind in ("round", "ema", "self") else "base"  # type: ignore[return-value]

    @property
    def teacher_urls(self) -> tuple[str, ...]:
        """Of the servers of the teacher, if it is on any."""
        return _urls(self.teacher)

    @property
    def teacher_model(self) -> str | None:
        """The model that is imitated, if it is another and in this process."""
        return None if self.teacher_urls or self.teacher in get_args(TeacherKind) else self.teacher

    @property
    def policy_urls(self) -> tuple[str, ...]:
        """Of the servers that draw, if there are any."""
        return _urls(self.policy)

    @property
    def context_text(self) -> str:
        """What the context file holds."""
        assert self.context_file is not None
        return self.context_file.read_text(encoding="utf-8-sig").strip()

    @property
    def insight_prompts(self) -> Path | None:
        """The file of the user's own prompts, if there is one."""
        return Path(self.insights) if self.insights.endswith(".toml") else None

    @property
    def insight_kind(self) -> str:
        """Who draws insights: one of ``INSIGHT_KINDS``."""
        return "llm" if self.insight_prompts else self.insights

    @property
    def weights_dtype(self) -> Dtype:
        """What the weights are in: updates of 1e-5 vanish in 16 bits, so it is float32 unless asked for."""
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    @property
    def products_dtype(self) -> Dtype:
        """What matrix products run in."""
        return "bfloat16" if self.precision == "mixed" else self.precision

    @property
    def remembered(self) -> Memory:
        """Which turns before the present one the agent remembers."""
        if self.memory in ("none", "full"):
            return Memory(0 if self.memory == "none" else ALL_TURNS)
        if (last := re.fullmatch(r"last-([1-9]\d{0,8})", self.memory)) is None:
            raise ConfigError(f"memory must be none, full, or last-N such as last-3, not {self.memory!r}")
        return Memory(int(last[1]))

    @property
    def layout(self) -> Layout:
        """Where the context stands in a prompt, and in what words."""
        return Layout(place=self.context_place)

    def __post_init__(self) -> None:
        for url in (self.insight_url, self.store, *self.policy_urls, *self.teacher_urls):
            keep_secrets_of(url or "")
        for name, check in _checks().items():
            try:
                object.__setattr__(self, name, check.validate_python(getattr(self, name)))
            except ValidationError as error:
                raise ConfigError(f"{name} {_problem(error)}") from error
        if self.store is not None:  # the run may go on from another folder
            object.__setattr__(self, "store", absolute(self.store))
        _ = self.remembered
        if self.resume is not None and self.output is not None:
            raise ConfigError(f"output is where a new run goes; the one in {self.resume} stays there")
        if self.rounds * self.episodes > STRIDE:
            raise ConfigError(
                f"rounds x episodes must be at most {STRIDE}, not {self.rounds * self.episodes}"
            )
        if not self.policy_urls and self.policy not in POLICIES and engine_of(self.policy) is None:
            raise ConfigError(
                f"policy must be {', '.join(POLICIES)}, vllm:N, or servers' URLs, not {self.policy!r}"
            )
        if self.insight_kind not in INSIGHT_KINDS:
            raise ConfigError(
                f"insights must be {', '.join(INSIGHT_KINDS)}, or a .toml file of prompts, "
                f"not {self.insights!r}"
            )
        if self.teacher_urls and self.loss == "full":
            raise ConfigError("a teacher on a server is known at a top-k only: take a loss other than full")
        if shared := {*map(base_of, self.policy_urls)} & {*map(base_of, self.teacher_urls)}:
            raise ConfigError(
                f"{masked(shared.pop())} cannot be policy and teacher: it is given the student's weights, "
                "and a teacher on a server keeps its own. Take teacher base, or another server"
            )
        if self.insight_url is not None and self.insight_model is None and self.resume is None:
            raise ConfigError("insight_url needs insight_model: the model's name there")
        if self.resume is None:  # a begun run has its text
            if self.context_file is not None:
                _check_text(self.context_file, self.context_place)
            elif self.context_place == "chat":
                raise ConfigError("context_place chat needs a context_file: nobody else may write turns")


def _urls(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(",")))) if "://" in text else ()


@cache
def _checks() -> Mapping[str, TypeAdapter[Any]]:
    """Setting -> what it may be."""
    hints = get_type_hints(SelfImproveConfig, include_extras=True)
    finite = ConfigDict(allow_inf_nan=False)
    return {f.name: TypeAdapter(hints[f.name], config=finite) for f in fields(SelfImproveConfig)}


def _problem(error: ValidationError) -> str:
    """What pydantic found, as the end of a sentence about the setting."""
    first = error.errors()[0]
    text = re.sub(r"^\w+ should", "must", first["msg"].removeprefix("Value error, "))
    for theirs, ours in (
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
        ("greater than", "above"),
        ("less than", "below"),
    ):
        text = text.replace(theirs, ours)
    return f"{text}, not {first['input']!r}"


def flag(name: str) -> str:
    """A setting as it is given on the command line."""
    return f"--{name.replace('_', '-')}"


def _check_text(file: Path, place: Place) -> None:
    if not file.is_file():
        raise ConfigError(f"there is no context_file {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # as Windows' editors write it
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the context_file {file} cannot be read: {first_line(error)}") from error
    if not text.strip():
        raise ConfigError(f"the context_file {file} is empty")
    if place == "chat":
        try:
            conversation(text)
        except ValueError as error:
            raise ConfigError(f"the context_file {file}: {error}") from error
