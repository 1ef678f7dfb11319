"""Every knob of a run, documented once: the command line, the Python call and ``config.json``."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.prompts import Layout, Place, conversation
from agents.rollout import Vectorization
from distill.examples import Average, Data
from distill.lm.load import Dtype
from distill.lm.support import Compute
from distill.loss import Direction, Mode
from distill.parallel import Engine
from distill.teacher import TeacherKind
from envs.text_env import ALL_TURNS
from experience.seeds import STRIDE

TrackerName = Literal["tensorboard", "trackio", "wandb"]
LRSchedule = Literal["constant", "linear"]
InsightKind = Literal["auto", "outcomes", "llm", "raw"]
PolicyKind = Literal["auto", "hf", "vllm"]
Urls = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]

MAX_SEED = 1_000_000_000
MACHINE = (
    "device",
    "max_nodes",
    "gradient_checkpointing",
    "engine",
    "store",
    "vectorization",
    "env_timeout",
    "tracker",
    "forgetting",
    "json",
    "vllm_url",
    "vllm_memory",
    "teacher_url",
    "vllm_weights",
)
"""Settings that do not change what is computed: a resumed run may have others."""

RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "Math-v0": {
        "rounds": 1,
        "episodes": 240,
        "waves": 1,
        "steps": 15,
        "eval_every": 5,
        "batch_size": 16,
        "lr": 1e-5,
        "teacher_temperature": 1.0,
        "test_episodes": 512,
        "eval_temperature": (0.0,),
        "insight_traces": 64,
        "gate_temperature": 0.0,
        "context_place": "before",
        "validation_episodes": 128,
        "max_new_tokens": 32,
    },
    "Taxi-v4": {
        "rounds": 1,
        "episodes": 256,
        "waves": 8,
        "steps": 100,
        "off_policy_steps": 25,
        "eval_every": 25,
        "lr": 1e-4,
        "lr_schedule": "linear",
        "batch_size": 32,
        "action_power": 0.5,
        "validation_episodes": 64,
        "test_episodes": 500,
        "max_invalid_replies": 20,
    },
    "OPCD/RandomFrozenLake-v0": {
        "rounds": 1,
        "episodes": 1536,
        "waves": 16,
        "steps": 80,
        "off_policy_steps": 40,
        "lr": 5e-5,
        "lr_schedule": "linear",
        "batch_size": 40,
        "validation_episodes": 95,
        "test_episodes": 128,
    },
    "Choice-v0": {
        "rounds": 1,
        "episodes": 128,
        "waves": 1,
        "steps": 20,
        "off_policy_steps": 6,
        "eval_every": 5,
        "batch_size": 8,
        "validation_episodes": 64,
        "test_episodes": 300,
        "teacher_temperature": 1.0,
        "gate_temperature": 0.0,
        "eval_temperature": (0.0,),
        "max_new_tokens": 12,
    },
}
"""Where an env wants other defaults than the ones below, which are Frozen Lake's."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfImproveConfig:
    """An agent plays, learns from its traces, and has what it learned trained into its weights."""

    env: str = "FrozenLake-v1"
    """Gymnasium id of the environment; `module:EnvId` imports the module first."""
    env_kwargs: JsonObject = field(default_factory=dict)
    """Arguments for the environment, as JSON: '{"is_slippery": false}'."""
    model: str = "smollm2"
    """`smollm2` (embedded, 135M), a folder, a .gguf file, or a hub id."""
    seed: int = 0
    """Everything that is drawn follows from it: the same command gives the same numbers."""
    output: Path | None = None
    """The run's folder; by default runs/<env>-<time>."""
    store: str | None = None
    """Database of the experience, an SQLAlchemy URL such as postgresql+psycopg://user@host/name, which many
    runs can share; by default a SQLite file in the run's folder."""
    tracker: TrackerName | None = None
    """Where to send training's and validation's figures beside metrics.jsonl; TensorBoard's go to the run's
    folder."""
    resume: Path | None = None
    """Go on with the run in this folder; of its configuration, only the machine's part may differ."""

    rounds: int = 2
    """How often to play, draw insights, and train."""
    episodes: int = 768
    """Train episodes per round."""
    waves: int = 12
    """Parts of a round's play: the first without experience, each further one with the insights so far."""
    steps: int = 30
    """Optimiser steps per round; 0 trains nothing, and measures what experience is worth in the prompt."""
    temperature: float = 1.0
    """At which the agent plays and samples while training."""

    insights: InsightKind = "auto"
    """What draws insights: `outcomes` counts what followed each action; with `llm` a model reads traces and
    writes; `raw` shows whole transcripts, for the ablation. `auto` is outcomes where actions are words."""
    insights_per_prompt: int = 1
    """How many insights a prompt shows; 0 for all. Small models follow one, large ones can take all."""
    insight_traces: int = 16
    """With llm and raw: of so many traces of each round."""
    insight_model: str | None = None
    """With llm: the model that writes, or its name at insight_url; by default the agent itself."""
    insight_url: str | None = None
    """With llm: an OpenAI-compatible endpoint that writes. Its key is read from OPENAI_API_KEY."""
    insight_prompts: Path | None = None
    """With llm: a file of prompts in place of experience/prompts.toml."""
    insight_tokens: int = 64
    """With llm: the longest reply of the writer."""
    insight_temperature: float = 0.7
    """With llm: at which the writer samples."""
    gate_temperature: float | None = None
    """At which the teacher plays at the gate; by default teacher_temperature."""
    candidates: int = 64
    """With llm: so many insights at most are tried at the gate in each round."""
    context_file: Path | None = None
    """A text to train in, such as a system prompt, in place of insights."""
    context_tokens: int = 1024
    """What the insights may take together where a prompt shows all, to the agent or to a writer of more; the
    least useful are left out. 0 is no limit."""
    context_place: Place = "after"
    """Where the context stands: `after` the observation, `before` it, or in the `system` message. `chat` is
    the system message and, in a context_file, example turns behind lines `### user`, `### assistant`."""
    context_wrapper: str = "Experience: {}"
    """The words around it."""
    batch_size: int = 64
    """Completions per optimiser step, spread over the actions advised, and evenly over the observations of
    each."""
    action_power: float = 0.0
    """An action that is advised at n observations gets completions in proportion to n to this power: 0 is as
    many for each action, 1 as many for each observation."""
    lr: float = 2e-5
    """AdamW's learning rate. 2e-5 suits 135M weights; 1e-6 to 5e-6 suits 1.7B and more."""
    warmup_steps: int = 0
    """Over so many optimiser steps the learning rate rises to lr."""
    lr_schedule: LRSchedule = "constant"
    """What it does then: it stays, or falls linearly, to 0 at the run's end."""
    weight_decay: float = 0.0
    """AdamW's; the paper has 0.01."""
    lora_rank: int = 0
    """Train adapters of this rank in place of all weights; 0 trains all. Adapters want a higher lr."""
    lora_alpha: float = 16.0
    """The adapters' outputs are scaled by alpha / rank."""
    lora_targets: str = "all-linear"
    """The linear layers that get adapters, by name, separated by commas."""

    teacher: TeacherKind = "base"
    """Whose weights are imitated: `base` the initial ones, `round` the student's at each round's beginning,
    `ema` a running mean of the student's, `self` the student's own of the moment."""
    teacher_model: str | None = None
    """Another model as the teacher, of the same tokenizer; larger, for instance."""
    teacher_url: Urls = ()
    """A server (`vllm serve`) whose model is the teacher, of the same tokenizer; may be given several times.
    It scores the student's top-k tokens; the gate is played by the initial weights."""
    ema_decay: float = 0.95
    """With teacher ema: what is kept of it per optimiser step."""
    teacher_temperature: float = 0.4
    """Divides the teacher's logits; below 1 it follows its insight more strictly."""
    data: Data = "student"
    """Whose completions are trained on: `student` is on-policy, `teacher` off-policy."""
    direction: Direction = "reverse"
    """KL(student || teacher) or KL(teacher || student). Off-policy and forward is context distillation."""
    off_policy_steps: int = 0
    """So many first steps of a round are on the teacher's completions, with the forward KL: what the student
    never says, such as a format, it cannot be taught on its own completions."""
    loss: Mode = "tail"
    """The KL's form; see distill/loss.py."""
    top_k: int = 256
    """The tokens that the KL looks at one by one."""
    average: Average = "completions"
    """The loss is a mean over completions of their means, or over all tokens alike."""
    trust_region: float = 0.0
    """Weight of KL(student || initial weights) on the bare prompt; 0 is none."""
    eval_every: int = 10
    """Optimiser steps between validations, each with a checkpoint."""
    stop_when_worse: bool = False
    """End a round's training, with the best weights, when validation falls significantly below the best."""
    stop_on_collapse: bool = True
    """The same when the completions shrink to nothing, repeat themselves, or turn to noise."""

    validation_episodes: int = 256
    """Episodes by which insights are admitted and the best checkpoint is chosen."""
    test_episodes: int = 1000
    """Episodes by which every arm is measured at the end."""
    eval_temperature: tuple[float, ...] = (0.0, 0.7)
    """One or two temperatures to measure at; 0 is greedy. The first gives the headline figures."""
    forgetting: bool = False
    """Measure at the end what else the agent can do, before and after, for the report: held-out text, sums, a
    lake, and instructions (evals/forgetting.py). Takes a minute on two cores; sums need opcd-gym[math]."""
    max_new_tokens: int | None = None
    """Longest reply; by default what the longest action takes, or 64 where the reply is text."""
    max_invalid_replies: int = 3
    """So many unreadable replies in a row end an episode."""
    history: str = "none"
    """What the agent is told of the turns before the present one: `none`, `last-N`, or `full`. What is older
    than 4,000 characters is left out."""
    num_envs: int = 64
    """Episodes played at once."""
    vectorization: Vectorization = "sync"
    """`async` gives each of them a process, for slow environments."""
    env_timeout: float = 60.0
    """Seconds that a step of the environment may take; then its episode ends with an error. 0 is no limit."""

    policy: PolicyKind = "auto"
    """Who draws replies: `hf` is transformers, which remembers what it computed; `vllm` is vLLM, in this
    process or at vllm_url. `auto` is vllm where it is installed, a GPU is there, and replies are text."""
    vllm_url: Urls = ()
    """With policy vllm: a server (`vllm serve`), such as http://localhost:8000, that draws. May be given
    several times: replies are spread over the servers."""
    vllm_weights: Path | None = None
    """With vllm_url: a folder that the servers see too, through which they get new weights; by default one in
    the run's folder."""
    vllm_window: int = 8192
    """With policy vllm: the longest prompt and reply together, in tokens."""
    vllm_memory: float = 0.4
    """With policy vllm in this process: the share of the GPU's memory that vLLM may take while it draws."""

    device: str = "auto"
    """A torch device; auto takes a GPU if there is one."""
    dtype: Dtype = "auto"
    """Of the weights; auto is float32."""
    compute_dtype: Dtype = "auto"
    """What matrix products run in (autocast); auto is bfloat16 where the machine is faster with it."""
    compute: Compute = "auto"
    """How a model's forward passes are made: as a prefix `tree`, which computes once what prompts share, or
    as `padded` batches, which every causal model can do. `auto` is the tree where it is exact."""
    max_nodes: int = 768
    """Tokens of one forward and backward pass; lower it when memory is short."""
    gradient_checkpointing: bool = False
    """Keep no activations but compute them again: less memory, a third more time."""
    engine: Engine = "ddp"
    """How several processes share the model: `ddp` each a copy, `fsdp` each a part."""
    trust_remote_code: bool = False
    """Let code that comes with the model run."""
    json: bool = False
    """Of the command: print the results as one JSON object, and nothing else, on standard output."""

    @classmethod
    def for_env(cls, env: str, **settings: Any) -> "SelfImproveConfig":
        """The command's defaults for an environment, and what is given beside them."""
        return cls(env=env, **{**RECOMMENDED.get(env, {}), **settings})

    @property
    def turns_of_history(self) -> int:
        """How many turns before the present one the agent is told."""
        if self.history in ("none", "full"):
            return 0 if self.history == "none" else ALL_TURNS
        if (last := re.fullmatch(r"last-([1-9]\d{0,8})", self.history)) is None:
            raise ConfigError(f"history must be none, full, or last-N such as last-3, not {self.history!r}")
        return int(last[1])

    @property
    def layout(self) -> Layout:
        """Where the context stands in a prompt, and in what words."""
        return Layout(place=self.context_place, wrapper=self.context_wrapper)

    def __post_init__(self) -> None:
        at_least_one = (
            "rounds episodes waves batch_size top_k max_nodes eval_every validation_episodes "
            "test_episodes max_invalid_replies num_envs insight_traces insight_tokens candidates "
            "vllm_window"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("temperature", "teacher_temperature", "lr", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in (
            "steps",
            "warmup_steps",
            "weight_decay",
            "lora_rank",
            "trust_region",
            "insight_temperature",
            "context_tokens",
            "env_timeout",
            "off_policy_steps",
            "action_power",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.gate_temperature is not None and not self.gate_temperature >= 0:
            raise ConfigError(f"gate_temperature must be at least 0, not {self.gate_temperature}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be from 0 to below 1, not {self.ema_decay}")
        if self.teacher_model is not None and self.teacher != "base":
            raise ConfigError(
                f"teacher {self.teacher} follows the student: it cannot be another teacher_model"
            )
        if not 0 <= self.seed < MAX_SEED or self.insights_per_prompt < 0:
            raise ConfigError(f"seed must be from 0 to {MAX_SEED - 1}, insights_per_prompt at least 0")
        has_waves = self.insights in ("auto", "outcomes") and self.context_file is None
        if has_waves and self.episodes % self.waves:
            raise ConfigError(f"episodes ({self.episodes}) must be a multiple of waves ({self.waves})")
        for name, size in (
            ("rounds x episodes", self.rounds * self.episodes),
            ("validation_episodes", self.validation_episodes),
            ("test_episodes", self.test_episodes),
        ):
            if size > STRIDE:
                raise ConfigError(f"{name} must be at most {STRIDE}, not {size}")
        if len(self.eval_temperature) not in (1, 2) or min(self.eval_temperature) < 0:
            raise ConfigError(
                f"eval_temperature takes one or two numbers from 0 up, not {self.eval_temperature}"
            )
        if self.teacher_url:
            if self.teacher != "base" or self.teacher_model is not None:
                raise ConfigError(
                    "teacher_url is a teacher of its own: it takes no other teacher, no teacher_model"
                )
            if (self.data, self.direction) != ("student", "reverse") or self.loss == "full":
                raise ConfigError(
                    "a teacher at teacher_url only scores the student's top-k tokens: take data student, "
                    "direction reverse, and a loss other than full"
                )
            if self.off_policy_steps:
                raise ConfigError("a teacher at teacher_url writes nothing: take off_policy_steps 0")
        if not 0 < self.vllm_memory < 1:
            raise ConfigError(f"vllm_memory must be between 0 and 1, not {self.vllm_memory}")
        if self.vllm_url and self.policy != "vllm" and self.resume is None:  # a begun run has its policy
            raise ConfigError(f"vllm_url needs policy vllm, not {self.policy}")
        if self.insight_url is not None and self.insight_model is None:
            raise ConfigError("insight_url needs insight_model: the model's name there")
        if self.context_file is not None and self.resume is None:  # a begun run has its text
            if not self.context_file.is_file():
                raise ConfigError(f"there is no context_file {self.context_file}")
            try:
                text = self.context_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the context_file {self.context_file} cannot be read: {error}") from error
            if not text.strip():
                raise ConfigError(f"the context_file {self.context_file} is empty")
            if self.context_place == "chat":
                try:
                    conversation(text)
                except ValueError as error:
                    raise ConfigError(f"the context_file {self.context_file}: {error}") from error
        elif self.context_place == "chat" and self.resume is None:
            raise ConfigError("context_place chat needs a context_file: nobody else may write turns")
        _ = self.turns_of_history
        try:
            _ = self.layout
        except ValueError as error:
            raise ConfigError(f"context_wrapper: {error}") from error
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
