"""What answers as ``vllm serve`` does, or as vLLM in the process, with a transformers model.

The server can be told to misbehave.
"""

import base64
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from agents.policies.local import HFPolicy, Request
from agents.policies.policy import Sampling
from tests.conftest import byte_tokenizer
from tests.serving import Handler, serving


class FakeVLLM:
    """What is served, and how."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy = HFPolicy(model, tokenizer)
        self.url = ""
        self.version = "0.32.0"
        self.missing: set[str] = set()
        """Paths that it does not have."""
        self.status = 404
        """What it says of those."""
        self.truncates = False
        self.processed = False
        """Whether log-probabilities are those of the temperature."""
        self.scores_prompts = True
        """Whether it has the newer of the two model runners."""
        self.max_logprobs = 256
        self.lives: int | None = None
        """How many completions it gives until it hangs up on everybody."""
        self.longest = 512
        """Of its replies, whatever it is asked for."""
        self.loads_weights = True
        self.is_busy = False
        """With what somebody else has asked it."""
        self.answers: list[Any] = []
        """What it says to completions in place of what is true."""
        self.completions = 0
        self.requests = 0
        """For completions, and for a prompt's scores."""
        self.loads = 0
        self._lock = Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path in self.missing:
            return None
        if path == "/version":
            return {"version": self.version}
        if path == "/v1/models":
            return {"data": [{"id": "m", "max_model_len": 512}]}
        if path == "/tokenize":
            return {"tokens": self.policy.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/collective_rpc":
            self.loads += 1
            if self.loads_weights:
                files = Path(body["kwargs"]["weights_path"]).glob("*.safetensors")
                weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
                self.policy.lm.model.load_state_dict(weights)
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": not self.is_busy}
        self.requests += 1
        if self.answers:
            return self.answers.pop(0)
        if path == "/inference/v1/generate":
            return self.score(body) if self.scores_prompts else None
        assert path == "/v1/completions"
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        assert body.get("prompt_logprobs", 0) <= self.max_logprobs
        return {
            "choices": [
                {"index": index, **self.complete({**body, "prompt": prompt})}
                for index, prompt in enumerate(prompts)
            ]
        }

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, settings = body["token_ids"], body["sampling_params"]
        ids_TK, start = settings["prompt_logprob_token_ids"], settings["prompt_logprob_start"]
        assert len(ids_TK) == len(prompt) - 1 - start
        assert len(ids_TK[0]) <= self.max_logprobs
        with self._lock:
            logits_TV = self.policy.lm.logits([tuple(prompt[:end]) for end in range(start + 1, len(prompt))])
        scores_TK = logits_TV.log_softmax(-1).gather(-1, torch.tensor(ids_TK))
        file = io.BytesIO()
        np.save(file, scores_TK.float().numpy())
        return {
            "prompt_token_ids": prompt[-8:] if self.truncates else prompt,
            "prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode(),
        }

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"][-8:] if self.truncates else body["prompt"]
        temperature = body["temperature"]
        request = Request(tuple(prompt), body.get("seed", 0))
        assert body.get("top_p", 1.0) == 1
        sampling = Sampling(temperature=temperature, max_tokens=min(body["max_tokens"], self.longest))
        lm = self.policy.lm
        with self._lock:
            self.completions += 1
            self.policy._eos_ids = frozenset(body.get("stop_token_ids", ()))
            self.policy._answer([request], sampling)
            first = 0 if "prompt_logprobs" in body else len(prompt) - 1
            logits_TV = lm.logits([tuple(prompt[: end + 1]) for end in range(first, len(prompt))])
        logprobs_TV = logits_TV.log_softmax(-1)
        scale = temperature if self.processed and temperature > 0 else 1.0
        last_V = (logits_TV[-1] / scale).log_softmax(-1)
        asked = body.get("logprob_token_ids") or [*request.token_ids[:1], int(last_V.argmax())]
        token_logprobs = request.logprobs
        if self.processed:
            token_logprobs = [float(last_V[request.token_ids[0]]), *request.logprobs[1:]]
        return {
            "prompt_token_ids": prompt,
            "token_ids": request.token_ids,
            "finish_reason": request.finish_reason,
            "logprobs": {
                "token_logprobs": token_logprobs,
                "top_logprobs": [{f"token_id:{i}": float(last_V[i]) for i in asked}],
            },
            "prompt_logprobs": [
                None,
                *(
                    {
                        str(i): {"logprob": float(logprobs_V[i])}
                        for i in (token, *logprobs_V.topk(body.get("prompt_logprobs", 0)).indices.tolist())
                    }
                    for token, logprobs_V in zip(prompt[1:], logprobs_TV, strict=False)
                ),
            ],
        }

    @contextmanager
    def serve(self) -> Iterator["FakeVLLM"]:
        """Listen on a free port."""
        fake = self

        class Answer(Handler):
            def reply(self) -> None:
                if fake.lives is not None:
                    if fake.lives <= 0:
                        self.connection.close()
                        return
                    fake.lives -= self.path in ("/v1/completions", "/inference/v1/generate")
                with torch.no_grad():
                    answer = fake.answer(self.path, self.asked())
                found = answer is not None
                self.answer(answer if found else {"detail": "Not Found"}, 200 if found else fake.status)

        with serving(Answer) as server:
            self.url = server.url
            yield self


class FakeLLM:
    """``vllm.LLM``: where several processes share one, it makes sure that they give it the same at a time."""

    def __init__(self, **options: Any) -> None:
        config = AutoConfig.from_pretrained(options["model"])
        self.policy = HFPolicy(AutoModelForCausalLM.from_config(config), byte_tokenizer())
        self.loads = 0
        self.is_asleep = True
        size, rank = options.get("tensor_parallel_size", 1), 0
        groups: list[Any] = [None]
        if size > 1:
            assert options["distributed_executor_backend"] == "external_launcher"
            rank = dist.get_rank()
            groups = [
                dist.new_group(range(first, first + size)) for first in range(0, dist.get_world_size(), size)
            ]
        self._size, self._group = size, groups[rank // size]
        shutdown = SimpleNamespace(shutdown=lambda: None)
        self.llm_engine = SimpleNamespace(engine_core=shutdown)
        self.slip = 0
        """Turns what this process draws into something else."""

    def wake_up(self) -> None:
        self.is_asleep = False

    def sleep(self, level: int) -> None:
        assert level == 2
        self.is_asleep = True

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.is_asleep = False
        self.policy.lm.model.load_state_dict(dict(kwargs["weights_iterator"]))
        self.loads += 1

    def reset_prefix_cache(self) -> bool:
        return True

    def generate(self, prompts: list[Any], settings: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert prompts
        assert not self.is_asleep
        if self._size > 1:
            weights = sum(
                float(weight.detach().double().sum()) for weight in self.policy.lm.model.parameters()
            )
            given: list[Any] = [None] * self._size
            dist.all_gather_object(given, (prompts, list(map(vars, settings)), weights), group=self._group)
            assert all(each == given[0] for each in given)
        return [
            self._answer(tuple(prompt["prompt_token_ids"]), vars(each))
            for prompt, each in zip(prompts, settings, strict=True)
        ]

    def _answer(self, prompt: tuple[int, ...], settings: dict[str, Any]) -> Any:
        request = Request(prompt, settings.get("seed", 0))
        assert settings.get("top_p", 1.0) == 1
        sampling = Sampling(temperature=settings.get("temperature", 1.0), max_tokens=settings["max_tokens"])
        self.policy._answer([request], sampling)
        scores: list[Any] = []
        if "prompt_logprobs" in settings:
            logits_TV = self.policy.lm.logits([prompt[:end] for end in range(1, len(prompt))])
            own = logits_TV.log_softmax(-1)[range(len(prompt) - 1), list(prompt[1:])].tolist()
            scores = [None, *map(_score, prompt[1:], own)]
        token_ids = [token ^ self.slip for token in request.token_ids]
        output = SimpleNamespace(token_ids=token_ids, logprobs=list(map(_score, token_ids, request.logprobs)))
        return SimpleNamespace(outputs=[output], prompt_logprobs=scores)


def _score(token: int, logprob: float) -> dict[int, Any]:
    return {token: SimpleNamespace(logprob=logprob)}


def install() -> None:
    """Let ``import vllm`` find it in this process."""
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    sys.modules["vllm"] = module
