"""vLLM in the process, without vLLM: what is said when it cannot start, and who has the GPU when."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import VLLMError
from tests.conftest import tiny_llama


class FakeLLM:
    """Notes what it is told."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[str] = []
        self.options = options
        self.has_config = (Path(options["model"]) / "config.json").exists()

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.calls.append("wake")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(f"{method} {len(list(kwargs['weights_iterator']))}")

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def start(model: PreTrainedModel) -> LocalEngine:
    return LocalEngine(model, dtype=torch.float32, window=256, memory=0.3)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_what_to_install_is_said(model: PreTrainedModel) -> None:
    with pytest.raises(VLLMError, match=r"pip install 'opcd-gym\[vllm\]'"):
        start(model)


def test_too_little_memory(fake_vllm: Any, model: PreTrainedModel) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("No available memory for the cache blocks.\nMore of it.")

    fake_vllm.LLM = fail
    with pytest.raises(VLLMError, match=r"No available memory for the cache blocks\.\. If memory is short"):
        start(model)


def test_on_a_cpu_embeddings_are_not_tied(fake_vllm: Any, model: PreTrainedModel) -> None:
    engine = start(model)
    assert engine._llm.has_config
    assert engine._llm.options["max_num_batched_tokens"] >= engine.window == 256
    assert model.config.tie_word_embeddings  # the model itself stays as it is
    engine.release()
    assert engine._llm.calls == []


def test_on_a_gpu_it_sleeps_while_the_trainer_works(fake_vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_llama()
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    engine = start(model)
    assert engine._llm.options["enable_sleep_mode"]
    assert engine._llm.options["gpu_memory_utilization"] == 0.3
    engine.load(model.state_dict().items())
    engine.holds = "somebody's"
    engine.release()
    engine.release()
    assert engine.holds is None  # its weights are gone, so they have to be loaded again
    engine.load(model.state_dict().items())
    load = f"reload_weights {len(model.state_dict())}"
    assert engine._llm.calls == [load, "reset", "sleep 2", "wake", load, "reset"]
