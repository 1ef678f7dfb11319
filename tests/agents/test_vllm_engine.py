"""vLLM in the process, without vLLM: what is said when it cannot start, who has the GPU when, who draws."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, field_validator
from transformers import PreTrainedModel

from agents.cli import USER_ERRORS
from agents.config import ConfigError, SelfImproveConfig
from agents.policies.engines import engine_of
from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import VLLMError, VLLMPolicy
from agents.run.resume import may_differ
from agents.self_improve import self_improve
from distill.parallel import Ranks
from tests import processes
from tests.agents.test_self_improve import QUIET, open_gate, with_open_gate
from tests.agents.test_vllm_servers import SHORT
from tests.conftest import byte_tokenizer, tiny_llama
from tests.fake_vllm import install


class NotingLLM:
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
    module.LLM, module.SamplingParams = NotingLLM, SimpleNamespace
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


def test_a_configuration_that_vllm_refuses(fake_vllm: Any, model: PreTrainedModel) -> None:
    """As it refuses most: a pydantic model's check fails, and the first line names the model alone."""

    class VllmConfig(BaseModel):
        is_chunked: bool

        @field_validator("is_chunked")
        @classmethod
        def is_required(cls, is_chunked: bool) -> bool:
            raise ValueError("chunked prefill is required\nSee there.")

    fake_vllm.LLM = lambda **_: VllmConfig(is_chunked=False)
    with pytest.raises(VLLMError, match=r"LlamaForCausalLM.*chunked prefill is required"):
        start(model)


def test_on_a_cpu_embeddings_are_not_tied(fake_vllm: Any, model: PreTrainedModel) -> None:
    engine = start(model)
    assert engine._llm.has_config
    assert engine._llm.options["max_num_batched_tokens"] >= engine.window == 256
    assert model.config.tie_word_embeddings  # the model itself stays as it is
    engine.release()
    assert engine._llm.calls == []


def test_weights_that_vllm_does_not_take(fake_vllm: Any, model: PreTrainedModel) -> None:
    engine = start(model)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("model.layers.0.mlp.gate")

    engine._llm.collective_rpc = fail
    with pytest.raises(VLLMError, match=r"KeyError: 'model\.layers\.0\.mlp\.gate'.*take --policy hf"):
        engine.load(model.state_dict().items())


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


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ("vllm", ("vllm", 1)),
        ("vllm:1", ("vllm", 1)),
        ("vllm:16", ("vllm", 16)),
        ("vllm:0", None),
        ("vllm:-2", None),
        ("vllm:2.0", None),
        ("vllm: 2", None),
        ("vllm:2\n", None),
        ("vllm:\u0662", None),
        ("vllm:", None),
        ("hf", None),
        ("http://vllm:2", None),
    ],
)
def test_an_engine_and_how_many_share_it(policy: str, named: tuple[str, int] | None) -> None:
    assert engine_of(policy) == named


def test_a_run_goes_on_with_engines_of_other_sizes() -> None:
    assert may_differ("policy", "vllm", "vllm:2")
    assert may_differ("policy", "vllm:2", "vllm")
    assert not may_differ("policy", "vllm:2", "hf")
    assert not may_differ("policy", "vllm:2", "http://vllm:2")
    assert not may_differ("teacher", "vllm:2", "vllm")


def test_processes_that_cannot_be_dealt_out(walker_folder: Path, tmp_path: Path) -> None:
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", policy="vllm:2")
    assert ConfigError in USER_ERRORS
    with pytest.raises(ConfigError, match="takes 2 processes to an engine, and the run has 1: launch a mult"):
        self_improve(config, QUIET)
    assert not (tmp_path / "run").exists()


PROMPTS = [(5, 6, number) for number in range(12)]
GREEDY = Sampling(temperature=0, max_tokens=5)
DRAWN = Sampling(temperature=0.8, max_tokens=5)


def sharing() -> None:
    """In each of four processes, of which two share an engine."""
    install()
    ranks, model, tokenizer = Ranks.connect("cpu"), tiny_llama(), byte_tokenizer()
    engine = LocalEngine(model, dtype=torch.float32, window=256, ranks=ranks, together=2)
    llm: Any = engine._llm
    engine._sleeps = True  # as on a GPU
    policy = VLLMPolicy(model, tokenizer, engine=engine, ranks=ranks)
    alone = HFPolicy(model, tokenizer)

    def drawn(sampling: Sampling, mine: list[Any]) -> list[tuple[int, ...]]:
        return [c.token_ids for c in policy.complete(mine, sampling, range(len(mine)))]

    def expected(sampling: Sampling, mine: list[Any]) -> list[tuple[int, ...]]:
        return [c.token_ids for c in alone.complete(mine, sampling, range(len(mine)))]

    for turn in range(2):
        policy.prepare()
        assert llm.loads == turn + 1
        # As often as it likes, with as many as it likes; one has nothing to ask.
        for count in range(ranks.rank):
            mine, sampling = PROMPTS[count : count + ranks.rank], (GREEDY, DRAWN)[count % 2]
            assert drawn(sampling, mine) == expected(sampling, mine)
        policy.clear()
        assert ranks.sums([1]) == [4]
        assert llm.is_asleep  # when all have released it
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)

    # What the main process does alone, the others help with, be it that it needs the weights.
    if ranks.is_main:
        policy.clear()
    assert ranks.from_main(partial(drawn, DRAWN, PROMPTS)) == expected(DRAWN, PROMPTS)
    assert llm.loads == 3
    assert not llm.is_asleep  # the others have not released it
    policy.clear()
    ranks.meeting.join()
    assert llm.is_asleep

    # Those of one engine that do not draw the same are found out, and nobody waits for them.
    llm.slip = int(ranks.rank == 3)
    engine.load(model.state_dict().items(), ranks)
    engine.holds = policy._own
    if ranks.rank < 2:
        assert drawn(GREEDY, PROMPTS[:1]) == expected(GREEDY, PROMPTS[:1])
    else:
        with pytest.raises(VLLMError, match="the processes from 2 to 3 share an engine and have drawn diff"):
            drawn(GREEDY, PROMPTS[:1])


def test_processes_share_an_engine(tmp_path: Path) -> None:
    processes.launch(4, sharing, said=tmp_path / "said")


def with_fake_vllm(*arguments: str) -> int:
    """The command, for a process of its own."""
    install()
    return with_open_gate(*arguments)


@pytest.mark.parametrize(
    ("policy", "more"),
    [("vllm:2", {}), ("vllm", {"engine": "fsdp", "lora_rank": 2})],
    ids=["engine in parts", "model in parts"],
)
@pytest.mark.usefixtures("plain_reports")
def test_two_processes_do_what_one_does(
    policy: str,
    more: dict[str, Any],
    walker_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main one rehearses alone before that, with weights that take both to be handed over."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = SHORT | more | {"model": str(walker_folder), "lr": 1e-5}
    monkeypatch.setitem(sys.modules, "vllm", None)  # to be put back
    install()
    with open_gate():
        self_improve(SelfImproveConfig(output=one, policy="vllm", **settings), QUIET)
    arguments = processes.flags(output=two, policy=policy, **settings)
    processes.launch(2, with_fake_vllm, *arguments, said=tmp_path / "said")
    columns = ["phase", "seed", "num_turns", "success", "stop_reason"]
    traces, losses = zip(
        *(processes.traces_and_losses(output, columns) for output in (one, two)), strict=True
    )
    assert traces[0].equals(traces[1])
    assert len(losses[0]) == SHORT["steps"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
