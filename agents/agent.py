"""The models of a run: the agent as it was, the agent that is trained, and who it imitates."""

import copy
import importlib.util
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.config import ConfigError, Precision, SelfImproveConfig
from agents.policies.chat_template import unknown_settings
from agents.policies.engines import ENGINES, engine_of
from agents.policies.local import HFPolicy
from agents.policies.vllm.policy import Engine, EnginePolicy, VLLMPolicy, check_temperature
from agents.policies.vllm.servers import Servers
from agents.policies.vllm.teacher import ServedTeacher
from agents.run.folder import clear_errors
from distill.lm.autocast import narrow_for_good
from distill.lm.freezing import freeze_unreached
from distill.lm.load import Dtype, LoadedModel, compute_dtype, load_model
from distill.lm.save import save_reader, save_weights
from distill.lm.shards import weights_of, whole
from distill.lora import LoRA
from distill.optimizer import check_available
from distill.parallel import Ranks, cast_shards
from distill.teacher import FollowingTeacher, FrozenTeacher, ScoringTeacher, Teacher, check_same_tokens
from envs.words import EnvWords
from experience.whole import appearing

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

        Nothing is written yet to ``path``, the run's folder, through which servers get new weights.

        Raises:
            ConfigError: The processes cannot be dealt out to engines.
            DistillError: Teacher or adapters do not fit the model, or the optimizer's package is missing.
            ModelError: The model cannot be had.
            VLLMError: vLLM cannot be used.
        """
        check_available(config.optimizer)
        _, together = engine_of(config.policy) or ("", 1)
        if ranks.size % together:
            raise ConfigError(
                f"policy {config.policy} takes {together} processes to an engine, and the run has "
                f"{ranks.size}: launch a multiple of {together}"
            )
        self._console, self._ranks = console, ranks
        self.config = config
        self._is_sharded = config.engine == "fsdp" and ranks.size > 1
        follows = config.teacher_kind in ("round", "ema")
        if self._is_sharded and ranks.device is not None:  # what shards are gathered in is part of them
            precise = ranks.from_main(partial(precision_on, ranks.device, config, words))
            self.config = config = replace(config, precision=precise)
        [(loaded, self.lora), *others] = self._copies(1 + (not config.lora_rank) + follows)
        self.config = config = replace(
            config,
            precision=ranks.from_main(lambda: precision_on(loaded.model.device, config, words)),
            policy=ranks.from_main(lambda: self._policy_of(loaded.model, words)),
        )
        """With what ``auto`` has turned out to be."""
        self.engine = None if config.policy == "hf" else self._make_engine(loaded, path)
        """Who draws for the agent, where it does not do so itself."""
        self.student = self._drawing(loaded)
        self.base = (
            self._drawing(loaded, self.lora) if self.lora else self._drawing(self._kept(others.pop()[0]))
        )
        if config.policy_urls and config.resume is None and isinstance(self.base, VLLMPolicy):
            self.base.adopt()  # before anything is sent to servers that may be somebody else's
        self.scorer: ServedTeacher | None = None
        """What is imitated, where it is on a server; ``teacher`` then plays in its place."""
        if config.teacher_urls:
            self.scorer = ServedTeacher(
                config.teacher_urls, loaded.tokenizer, config.teacher_temperature, config.top_k, ranks
            )
        self.teacher = as_policy(others.pop()[0], config) if follows else self._make_teacher(loaded.tokenizer)
        """What is imitated, as a policy; ``Training`` lets it follow the student where it has to."""
        self.writer = self.teacher
        if self.scorer is not None:
            self.writer = as_policy(loaded, config, partial(EnginePolicy, engine=self.scorer.servers))
        """Who answers off-policy: what is imitated, wherever it is."""
        self.max_tokens = reply_tokens(config, self.base, words)
        """Of a reply."""
        self._step = 0

    @property
    def teacher_window(self) -> int:
        """Tokens that a prompt with context and the reply to it may take: of who plays and of who scores."""
        return min(self.teacher.window, self.scorer.window if self.scorer else self.teacher.window)

    @property
    def step(self) -> int:
        """After which optimiser step the student's weights are."""
        return self._step

    def adopt(self, step: int) -> None:
        """Note that the student's weights are those after ``step``."""
        self._step = step

    def weights_of(self, policy: HFPolicy) -> str:
        """Which weights a policy has, for the record."""
        if policy is self.base:
            return "base"
        return f"step{self.step}" if policy is self.student else "teacher"

    def load_policy(self, name: str) -> HFPolicy:
        """Another model, to be used as it is."""
        return as_policy(self._kept(self._load(name)), self.config)

    def imitated(self) -> Teacher | ScoringTeacher:
        """The teacher as what scores completions, with a memo of its own where it stays as it is."""
        if self.scorer is not None:
            return self.scorer
        if self.config.teacher_kind in ("round", "ema"):
            return FollowingTeacher(self.teacher.lm)
        if self.config.teacher_kind == "self":
            return self.student.lm
        return FrozenTeacher(self.teacher.lm.fresh())

    def save(self, folder: Path) -> None:
        """Write the student as a plain Hugging Face folder ``model``, and adapters beside it as ``adapter``.

        With LoRA the model has the adapters in its weights, which are then in fp32. Every process has to take
        part; the main one writes.

        Raises:
            RunFolderError: It cannot be written.
        """
        model, lora = self.student.lm.model, self.lora
        self._ranks.meeting.join()
        adapters = [(name, whole(p.detach())) for name, p in model.named_parameters() if "lora_" in name]
        weights = lora.weights(merged=True, dtype=torch.float32) if lora else weights_of(model)
        if not self._ranks.is_main:
            deque(weights, maxlen=0)  # helps to gather them
            return
        with _replaced(folder / "model") as tmp:
            save_weights(model, weights, tmp)
            save_reader(model, self.student.tokenizer, tmp)
        if lora is not None:
            with _replaced(folder / "adapter") as tmp:
                lora.save(tmp, adapters, base=self.config.model)

    def _copies(self, count: int) -> list[tuple[LoadedModel, LoRA | None]]:
        """The agent's model, so often, as it is before training, and the adapters in the first, if any."""
        if self._is_sharded:
            return cast_shards(self._whole, lambda made: made[0].model, count, self._ranks, self._gathered)
        loaded, lora = self._whole()
        copies = (replace(loaded, model=copy.deepcopy(loaded.model)) for _ in range(1, count))
        return [(loaded, lora), *((another, None) for another in copies)]

    def _whole(self) -> tuple[LoadedModel, LoRA | None]:
        """The same once, in one piece."""
        config = self.config
        loaded = self._load(config.model)
        lora = None
        if config.lora_rank:
            lora = LoRA(loaded.model, rank=config.lora_rank, alpha=LORA_ALPHA, seed=config.seed)
        if self._is_sharded:  # later it could not be found out
            freeze_unreached(loaded.model)
        return loaded, lora

    def _load(self, name: str) -> LoadedModel:
        config = self.config
        self._console.print(f"loading {name}", markup=False)
        loaded = load_model(
            name,
            device="cpu" if self._is_sharded else str(self._ranks.device or config.device),
            dtype=config.weights_dtype,
            trust_remote_code=config.trust_remote_code,
        )
        unknown = unknown_settings(loaded.tokenizer, config.chat_template_kwargs)
        for note in (*loaded.notes, f"computed {loaded.support}", *unknown):
            self._console.print(note, markup=False)
        return loaded

    @property
    def _gathered(self) -> torch.dtype | None:
        """What shards are gathered in, where it is not what the weights are in."""
        return torch.bfloat16 if self.config.precision == "mixed" else None

    def _policy_of(self, model: PreTrainedModel, words: EnvWords) -> str:
        """What ``auto`` is: where replies are a few words, remembering them beats computing them fast."""
        if self.config.policy != "auto":
            return self.config.policy
        has_vllm = importlib.util.find_spec("vllm") is not None
        suits = model.device.type == "cuda" and not replies_are_words(self.config, words)
        return "vllm" if has_vllm and suits else "hf"

    def _make_engine(self, loaded: LoadedModel, path: Path) -> Engine:
        config, model = self.config, loaded.model
        for temperature in (config.temperature, *config.eval_temperature):
            check_temperature(temperature)
        if config.policy_urls:
            return Servers(config.policy_urls, loaded.tokenizer, weights=path, ranks=self._ranks)
        self._console.print(f"starting {config.policy}", markup=False)
        named = engine_of(config.policy)
        assert named is not None
        return ENGINES[named[0]](
            model,
            dtype=autocast(model, config.products_dtype) or model.dtype,
            window=max(VLLM_WINDOW, 2 * (config.max_new_tokens or 0)),
            ranks=self._ranks,
            together=named[1],
        )

    def _drawing(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The agent's own model as a policy; with ``lora`` its adapters are off."""
        kind: Callable[..., HFPolicy] = HFPolicy
        if self.engine is not None:
            weights = None if self.lora is None else partial(self.lora.weights, merged=lora is None)
            kind = partial(VLLMPolicy, engine=self.engine, ranks=self._ranks, weights=weights)
        return as_policy(loaded, self.config, kind, within=nullcontext if lora is None else lora.off)

    def _make_teacher(self, tokenizer: PreTrainedTokenizerBase) -> HFPolicy:
        config = self.config
        if (name := config.teacher_model) is None:
            return self.student if config.teacher_kind == "self" else self.base
        load = partial(self._load, name)
        [other] = (
            cast_shards(load, attrgetter("model"), 1, self._ranks, self._gathered)
            if self._is_sharded
            else [load()]
        )
        check_same_tokens(tokenizer, other.tokenizer)
        return as_policy(self._kept(other), config)

    def _kept(self, loaded: LoadedModel) -> LoadedModel:
        """A model that stays as it is, in less memory."""
        if not self._is_sharded:  # what is gathered is narrowed on its way
            narrow_for_good(loaded.model, autocast(loaded.model, self.config.products_dtype))
        return loaded


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder to be written, which then takes the place of ``target``."""
    with clear_errors(target), appearing(target) as tmp:
        yield tmp
        shutil.rmtree(target, ignore_errors=True)


def replies_are_words(config: SelfImproveConfig, words: EnvWords) -> bool:
    """Whether a reply is an action's word and nothing else."""
    return bool(words.actions) and config.replies == "act"


def precision_on(device: torch.device, config: SelfImproveConfig, words: EnvWords) -> Precision:
    """What ``auto`` is: whatever is faster, with weights that take small updates.

    On a CPU that is float32 where a reply is one of a few words, whatever its instructions: prompts are few
    and computed once, so narrow products save little, and which word is likelier they can change.
    """
    if config.precision != "auto":
        return config.precision
    if device.type == "cpu" and replies_are_words(config, words):
        return "float32"
    return "mixed" if compute_dtype("auto", device) == "bfloat16" else "float32"


def as_policy(
    loaded: LoadedModel,
    config: SelfImproveConfig,
    kind: Callable[..., HFPolicy] = HFPolicy,
    *,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HFPolicy:
    """A model as a policy, which computes as the settings say, ``within`` as in ``LanguageModel``."""
    return kind(
        loaded.model,
        loaded.tokenizer,
        compute_dtype=autocast(loaded.model, config.products_dtype),
        within=within,
        template_settings=config.chat_template_kwargs,
    )


def autocast(model: PreTrainedModel, dtype: Dtype) -> torch.dtype | None:
    """What the model's matrix products are narrowed to, if its weights are wider; see ``compute_dtype``."""
    compute: torch.dtype = getattr(torch, compute_dtype(dtype, model.device))
    read = model.get_input_embeddings().weight  # products may have narrow weights already
    assert isinstance(read, torch.Tensor)
    return compute if compute.itemsize < read.dtype.itemsize else None


def reply_tokens(config: SelfImproveConfig, policy: HFPolicy, words: EnvWords) -> int:
    """The longest reply, in tokens: as configured, or as long as its kind asks for."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.replies == "think":
        return THINKING_TOKENS
    if not words.actions:
        return FREE_TEXT_TOKENS
    return policy.longest_action(words.reply_prefix, words.actions)
