"""The models of a run: the agent as it was, the agent that is trained, and who it imitates."""

import copy
import importlib.util
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from agents.config import ConfigError, Precision, SelfImproveConfig
from agents.policies.chat_template import unknown_settings
from agents.policies.local import HFPolicy
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import Engine, VLLMPolicy
from agents.policies.vllm.servers import Servers
from agents.policies.vllm.teacher import ServedTeacher
from agents.run.folder import clear_errors
from distill.lm.load import Dtype, LoadedModel, compute_dtype, load_model
from distill.lm.sealed import seal_folder
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.parallel import Ranks
from distill.teacher import FollowingTeacher, FrozenTeacher, ScoringTeacher, Teacher, check_same_tokens
from envs.words import EnvWords

FREE_TEXT_TOKENS = 64
"""The longest reply where it is text, unless the config says otherwise."""
THINKING_TOKENS = 256
"""The same where it thinks before it acts."""
VLLM_WINDOW = 8192
"""The longest prompt and reply together, in tokens, unless replies are long: vLLM's cache has to hold it."""
LORA_ALPHA = 16
"""The adapters' outputs are scaled by it over their rank. The learning rate does the same job, so it is no
setting."""


class Agent:
    """One model as three policies: ``base`` before training, ``student`` in training, ``teacher``."""

    def __init__(
        self, config: SelfImproveConfig, words: EnvWords, path: Path, *, console: Console, ranks: Ranks
    ) -> None:
        """Load the models.

        Args:
            config: Which, and how they compute.
            words: The env's: they say how long replies are.
            path: The run's folder, through which servers get new weights. Nothing is written yet.
            console: Where to report progress.
            ranks: This process among those of the run.

        Raises:
            ConfigError: vLLM and several processes do not go together.
            DistillError: Teacher or adapters do not fit the model.
            ModelError: The model cannot be had.
            VLLMError: vLLM cannot be used.
        """
        self._console, self._ranks = console, ranks
        self.config = config
        loaded = self._load(config.model)
        self.config = config = replace(
            config,
            precision=ranks.from_main(lambda: self._precision_of(loaded.model)),
            policy=ranks.from_main(lambda: self._policy_of(loaded.model, words)),
        )
        """With what ``auto`` has turned out to be."""
        self.engine = self._make_engine(loaded, path) if config.policy_kind == "vllm" else None
        """Who draws for the agent, where it does not do so itself."""
        self.lora: LoRA | None = None
        if config.lora_rank:
            self.lora = LoRA(loaded.model, rank=config.lora_rank, alpha=LORA_ALPHA, seed=config.seed)
            self.base = self._drawing(loaded, self.lora)
            self.student = self._drawing(loaded)
        else:
            self.student = self._drawing(replace(loaded, model=copy.deepcopy(loaded.model)))
            self.base = self._drawing(loaded)
        if config.policy_urls and config.resume is None and isinstance(self.base, VLLMPolicy):
            self.base.adopt()  # before anything is sent to servers that may be somebody else's
        self.scorer: ServedTeacher | None = None
        """What is imitated, where it is on a server; ``teacher`` then plays in its place."""
        if config.teacher_urls:
            self.scorer = ServedTeacher(config.teacher_urls, loaded.tokenizer, config.teacher_temperature)
        self.teacher = self._make_teacher(loaded)
        """What is imitated, as a policy; ``Training`` lets it follow the student where it has to."""
        self.max_tokens = reply_tokens(config, self.base, words)
        """Of a reply."""
        self._step = 0

    @property
    def step(self) -> int:
        """After which optimiser step the student's weights are."""
        return self._step

    def adopt(self, trained: OPCD, step: int) -> None:
        """The student becomes what is trained, whose weights are those after ``step``."""
        if trained.student is not self.student.lm.model:  # it is sharded: the policy plays with a whole copy
            trained.copy_to(self.student.lm.model)
        self._step = step

    def weights_of(self, policy: HFPolicy) -> str:
        """Which weights a policy has, for the record."""
        if policy is self.base:
            return "base"
        return f"step{self.step}" if policy is self.student else "teacher"

    def load_policy(self, name: str) -> HFPolicy:
        """Another model, to be used as it is."""
        return self._policy(self._load(name))

    def imitated(self) -> Teacher | ScoringTeacher:
        """The teacher as what scores completions, with a memo of its own where it stays as it is."""
        if self.scorer is not None:
            return self.scorer
        if self.config.teacher_kind in ("round", "ema"):
            return FollowingTeacher(self.teacher.lm)
        if self.config.teacher_kind == "self":
            return self.student.lm
        return FrozenTeacher(self.teacher.lm.fresh())

    def save(self, target: Path) -> None:
        """Write the student and its tokenizer as a plain Hugging Face folder, adapters merged in.

        Raises:
            RunFolderError: It cannot be written.
        """
        model = self.student.lm.model if self.lora is None else self.lora.merged()
        tmp = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        with clear_errors(target):
            try:
                model.save_pretrained(tmp)
                seal_folder(tmp)
                self.student.tokenizer.save_pretrained(tmp)
                shutil.rmtree(target, ignore_errors=True)
                tmp.rename(target)
            finally:
                shutil.rmtree(tmp, ignore_errors=True)

    def _load(self, name: str) -> LoadedModel:
        config = self.config
        self._console.print(f"loading {name}", markup=False)
        loaded = load_model(
            name,
            device=str(self._ranks.device or config.device),
            dtype=config.weights_dtype,
            trust_remote_code=config.trust_remote_code,
        )
        unknown = unknown_settings(loaded.tokenizer, config.chat_template_kwargs)
        for note in (*loaded.notes, f"computed {loaded.support}", *unknown):
            self._console.print(note, markup=False)
        return loaded

    def _precision_of(self, model: PreTrainedModel) -> Precision:
        """What ``auto`` is: whatever is faster, with weights that take small updates."""
        if self.config.precision != "auto":
            return self.config.precision
        return "mixed" if compute_dtype("auto", model) == "bfloat16" else "float32"

    def _policy_of(self, model: PreTrainedModel, words: EnvWords) -> str:
        """What ``auto`` is: where replies are a few words, remembering them beats computing them fast."""
        if self.config.policy != "auto":
            return self.config.policy
        has_vllm = importlib.util.find_spec("vllm") is not None
        is_short = bool(words.actions) and self.config.replies == "act"
        suits = model.device.type == "cuda" and not is_short and self._ranks.size == 1
        return "vllm" if has_vllm and suits else "hf"

    def _make_engine(self, loaded: LoadedModel, path: Path) -> Engine:
        config, model = self.config, loaded.model
        if self._ranks.size > 1:
            raise ConfigError("policy vllm is for a run in one process: take policy hf")
        if config.policy_urls:
            return Servers(config.policy_urls, loaded.tokenizer, weights=path)
        self._console.print("starting vLLM")
        return LocalEngine(
            model,
            dtype=autocast(model, config.products_dtype) or model.dtype,
            window=max(VLLM_WINDOW, 2 * (config.max_new_tokens or 0)),
        )

    def _drawing(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The agent's own model as a policy; with ``lora`` its adapters are off."""
        if self.engine is None:
            return self._policy(loaded, lora)
        return VLLMPolicy(
            loaded.model,
            loaded.tokenizer,
            engine=self.engine,
            weights=None if self.lora is None else partial(self.lora.weights, merged=lora is None),
            compute_dtype=autocast(loaded.model, self.config.products_dtype),
            within=nullcontext if lora is None else lora.off,
            compute=loaded.support.way,
            template_settings=self.config.chat_template_kwargs,
        )

    def _policy(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The model as a policy; with ``lora`` its adapters are off."""
        return as_policy(loaded, self.config, within=nullcontext if lora is None else lora.off)

    def _make_teacher(self, loaded: LoadedModel) -> HFPolicy:
        config = self.config
        if config.teacher_model is not None:
            other = self._load(config.teacher_model)
            check_same_tokens(loaded.tokenizer, other.tokenizer)
            return self._policy(other)
        if config.teacher_kind == "base":
            return self.base
        if config.teacher_kind == "self":
            return self.student
        return self._policy(replace(loaded, model=copy.deepcopy(self.student.lm.model)))


def as_policy(
    loaded: LoadedModel,
    config: SelfImproveConfig,
    *,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HFPolicy:
    """A model as a policy.

    Args:
        loaded: The model.
        config: How it computes, and what its chat template is told.
        within: See ``LanguageModel``.
    """
    return HFPolicy(
        loaded.model,
        loaded.tokenizer,
        compute_dtype=autocast(loaded.model, config.products_dtype),
        within=within,
        compute=loaded.support.way,
        template_settings=config.chat_template_kwargs,
    )


def autocast(model: PreTrainedModel, dtype: Dtype) -> torch.dtype | None:
    """What the model's matrix products are narrowed to, if its weights are wider; see ``compute_dtype``."""
    compute: torch.dtype = getattr(torch, compute_dtype(dtype, model))
    return compute if compute.itemsize < model.dtype.itemsize else None


def reply_tokens(config: SelfImproveConfig, policy: HFPolicy, words: EnvWords) -> int:
    """The longest reply, in tokens: as configured, or as long as its kind asks for."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.replies == "think":
        return THINKING_TOKENS
    if not words.actions:
        return FREE_TEXT_TOKENS
    return policy.longest_action(words.reply_prefix, words.actions)
