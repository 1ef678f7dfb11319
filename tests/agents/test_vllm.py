"""The real vLLM, in the environment of ``make test-vllm``."""

import copy
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from scipy.stats import chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import FinishReason, Message, Prompt, Sampling
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import EnginePolicy, VLLMError, VLLMPolicy
from agents.policies.vllm.servers import Servers
from agents.policies.vllm.teacher import ServedTeacher
from agents.self_improve import self_improve
from distill.lm.span import Span
from distill.lora import LoRA
from experience import ExperienceError
from experience.endpoint import Endpoint
from experience.store import ExperienceStore
from experience.writer import WritingTask
from tests.agents.test_self_improve import QUIET, TINY, open_gate, with_open_gate
from tests.benchmarks.rollout import bench
from tests.conftest import byte_tokenizer, save_walker, tiny_llama
from tests.distill.test_parallel import dies, torchrun
from tests.processes import flags

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
]
HEAD_DIM = 32
"""The smallest that vLLM's attention takes on a CPU."""
GENTLE = TINY | {"lr": 1e-5, "precision": "float32"}
"""A walker of this size is certain at first: larger steps turn it to noise, which ends the round. In float32
also where the machine has fast products in bfloat16: the engines are compared to the fourth digit."""
INTERPRETED = Path(__file__).parents[1] / "interpreted_triton"
"""What lets it run its newer model runner there."""
NEW_RUNNER = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": f"{INTERPRETED}:{os.environ.get('PYTHONPATH', '')}",
}


def prompt(text: str, prefix: str = "I move") -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), reply_prefix=prefix)


def changed(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Weights after something like an optimiser step."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(tiny_llama(head_dim=HEAD_DIM), dtype=torch.float32, window=512, memory=0.5)


@pytest.fixture
def pair(engine: LocalEngine) -> tuple[HFPolicy, VLLMPolicy]:
    """The same model, tied embeddings and all, played by transformers and by vLLM."""
    model, tokenizer = tiny_llama(head_dim=HEAD_DIM), byte_tokenizer()
    return HFPolicy(model, tokenizer), VLLMPolicy(model, tokenizer, engine=engine)


def test_greedy_is_the_same(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    prompts = [prompt(text) for text in ("a", "bb", "a long question", "a")]
    ours, theirs = (p.generate(prompts, Sampling(temperature=0, max_tokens=8), [0] * 4) for p in pair)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert (mine.text, mine.token_ids, mine.finish_reason, mine.prompt_tokens) == (
            other.text,
            other.token_ids,
            other.finish_reason,
            other.prompt_tokens,
        )


def test_logprobs_are_those_of_temperature_1(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    sampling = Sampling(temperature=0.5, max_tokens=12)
    asked = [prompt(str(i)) for i in range(8)]
    completions = policy.generate(asked, sampling, range(8))
    gap = policy.gap(
        (policy.encode(p), c.token_ids, c.logprobs) for p, c in zip(asked, completions, strict=True)
    )
    assert gap.max < 1e-3


def test_a_completion_depends_on_prompt_and_seed_only(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    sampling, seeds = Sampling(max_tokens=6), [2**64 - 1 - i for i in range(12)]
    prompts = [prompt(str(i % 4)) for i in range(12)]
    together = policy.generate(prompts, sampling, seeds)
    alone = [policy.generate([p], sampling, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together[::4]}) == 3


def test_draws_follow_the_models_distribution(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    n, sampling = 2000, Sampling(temperature=2.0, max_tokens=1)
    counts = [Counter(c.token_ids for c in p.generate([prompt("x")] * n, sampling, range(n))) for p in pair]
    common = [token for token in counts[0] | counts[1] if counts[0][token] + counts[1][token] >= 10]
    table = [[side[token] for token in common] for side in counts]
    assert len(common) > 5
    assert chi2_contingency(table).pvalue > 1e-3


def test_endings(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    completions = policy.generate([prompt("s")] * 200, Sampling(temperature=2.0, max_tokens=40), range(200))
    stopped = [c for c in completions if c.finish_reason == FinishReason.STOP]
    assert stopped
    assert all(c.token_ids[-1] == 1 and 1 not in c.token_ids[:-1] for c in stopped)
    assert all(len(c.token_ids) == 40 for c in completions if c.finish_reason == FinishReason.LENGTH)
    long, short = policy.generate([prompt("x" * 600), prompt("x")], Sampling(max_tokens=2), [0, 0])
    assert (long.finish_reason, long.token_ids) == (FinishReason.OVERFLOW, ())
    assert len(short.token_ids) > 0


def test_more_prompts_than_a_pass_takes(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    prompts = [prompt(f"{i} " * 60) for i in range(64)]
    completions = policy.generate(prompts, Sampling(max_tokens=2), range(64))
    assert all(c.prompt_tokens + len(c.token_ids) <= 512 and c.token_ids for c in completions)


def test_new_weights_are_used_at_once(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    ours, theirs = pair
    asked, sampling = [prompt(str(i)) for i in range(6)], Sampling(temperature=0, max_tokens=6)
    before = theirs.generate(asked, sampling, range(6))
    for seed in (1, 2):
        changed(theirs.lm.model, seed)
        after = theirs.generate(asked, sampling, range(6))
        assert [c.token_ids for c in after] == [c.token_ids for c in ours.generate(asked, sampling, range(6))]
        assert theirs.prove().max < 1e-3
    assert [c.logprobs for c in before] != [c.logprobs for c in after]


def test_policies_share_an_engine(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, first = pair
    second = VLLMPolicy(changed(copy.deepcopy(first.lm.model)), first.tokenizer, engine=first.engine)
    asked, sampling = [prompt(str(i)) for i in range(4)], Sampling(max_tokens=6)
    turns = [p.generate(asked, sampling, range(4)) for p in (first, second, first, second)]
    assert turns[0] == turns[2] != turns[1] == turns[3]


def test_lora_is_drawn_with_and_without(engine: LocalEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(head_dim=HEAD_DIM)
    lora = LoRA(model, rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    student = VLLMPolicy(model, tokenizer, engine=engine, weights=lambda: lora.weights(merged=True))
    base = VLLMPolicy(
        model, tokenizer, engine=engine, weights=lambda: lora.weights(merged=False), within=lora.off
    )
    asked, sampling = [prompt(str(i)) for i in range(4)], Sampling(max_tokens=6)
    with_adapters, without = (p.generate(asked, sampling, range(4)) for p in (student, base))
    assert with_adapters != without
    plain = VLLMPolicy(tiny_llama(head_dim=HEAD_DIM), tokenizer, engine=engine)
    assert plain.generate(asked, sampling, range(4)) == without


def test_an_engine_with_other_weights_is_found_out(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    stale = VLLMPolicy(
        changed(copy.deepcopy(policy.lm.model)),
        policy.tokenizer,
        engine=policy.engine,
        weights=lambda: policy.lm.model.state_dict().items(),
    )
    with pytest.raises(VLLMError, match="off by"):
        stale.generate([prompt("a")], Sampling(), [0])
    assert policy.engine.holds is None
    assert policy.generate([prompt("a")], Sampling(), [0])


@pytest.mark.parametrize("temperature", [2.5, 0.001])
def test_temperatures_that_vllm_would_change_are_refused(
    pair: tuple[HFPolicy, VLLMPolicy], temperature: float
) -> None:
    with pytest.raises(VLLMError, match="temperature"):
        pair[1].generate([prompt("a")], Sampling(temperature=temperature), [0])


def test_a_model_that_vllm_does_not_know() -> None:
    model = tiny_llama(head_dim=HEAD_DIM)
    model.__class__ = type("NobodysForCausalLM", (type(model),), {})
    with pytest.raises(VLLMError, match="NobodysForCausalLM"):
        LocalEngine(model, dtype=torch.float32, window=512, memory=0.5)


def test_the_benchmark_compares_policies(tmp_path: Path) -> None:
    result = bench(
        policies=("hf", "vllm"),
        model=str(save_walker(tmp_path, tiny_llama(head_dim=HEAD_DIM, tie=False))),
        steps=500,
        num_envs=32,
    )
    rows = result["policies"]
    assert rows.keys() == {"hf", "vllm", "generate"}
    assert min(rows["vllm"]["p"], rows["generate"]["p"]) > 1e-3
    assert rows["vllm"]["same_greedy"] == 1.0


@contextmanager
def serve(folder: Path, *flags: str, **environment: str) -> Iterator[str]:
    """The URL of a real server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512"]
    command += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096", *flags]
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urlopen(f"http://127.0.0.1:{port}/version", timeout=5)
                break
            except (URLError, TimeoutError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_a_run_with_vllm(tmp_path: Path) -> None:
    model, run = save_walker(tmp_path, tiny_llama(head_dim=HEAD_DIM, tie=False)), tmp_path / "run"
    with open_gate():
        self_improve(SelfImproveConfig(model=str(model), output=run, policy="vllm", **GENTLE), QUIET)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [entry["rollout_gap_max"] for entry in metrics if entry["kind"] == "train"]
    assert len(gaps) == 6
    assert max(gaps) < 1e-3
    assert (run / "results.json").exists()


@pytest.fixture(scope="module")
def run_of_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The settings and the folder of a run in one process."""
    folder = tmp_path_factory.mktemp("run-of-one")
    model = save_walker(folder, tiny_llama(tie=False, head_dim=HEAD_DIM))
    settings = GENTLE | {"rounds": 1, "model": str(model)}
    with open_gate():
        self_improve(SelfImproveConfig(output=folder / "run", policy="vllm", **settings), QUIET)
    return settings, folder / "run"


@pytest.mark.parametrize(
    ("policy", "engine"), [("vllm", "ddp"), ("vllm:2", "ddp"), ("vllm:2", "fsdp")], ids=lambda name: name
)
def test_two_processes_do_what_one_does(
    policy: str, engine: str, run_of_one: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """The same episodes and losses, up to rounding, from the same seeds: an engine each, or one for both."""
    settings, one = run_of_one
    runs = one, tmp_path / "two"
    arguments = flags(output=runs[1], policy=policy, engine=engine, **settings)
    done = torchrun(with_open_gate, *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    columns = ["phase", "seed", "num_turns", "success", "stop_reason"]
    tables, losses = [], []
    for run in runs:
        with ExperienceStore(run / "experience.db") as store:
            tables.append(store.traces()[columns].sort_values(columns).reset_index(drop=True))
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses.append([entry for entry in map(json.loads, lines) if entry["kind"] == "train"])
    assert tables[0].equals(tables[1])
    assert len(losses[0]) == 3
    for one, two in zip(*losses, strict=True):
        assert max(one["rollout_gap_max"], two["rollout_gap_max"]) < 1e-3
        names = ("kl", "entropy", "grad_norm", "completion_tokens")
        assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-3)


def test_a_run_goes_on_with_one_engine_when_the_other_is_gone(tmp_path: Path) -> None:
    model, run = save_walker(tmp_path, tiny_llama(tie=False, head_dim=HEAD_DIM)), tmp_path / "run"
    settings = GENTLE | {"rounds": 1, "model": model, "policy": "vllm"}
    done = torchrun(dies, *flags(output=run, **settings), folder=tmp_path)
    assert done.returncode != 0
    assert "another process of this run has died (rank 1)" in done.stderr
    with open_gate():
        self_improve(SelfImproveConfig(resume=run), QUIET)
    assert json.loads((run / "results.json").read_text())["processes"] == 1


def test_a_real_server_draws_and_takes_new_weights(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(head_dim=HEAD_DIM, tie=False), byte_tokenizer()
    model.save_pretrained(tmp_path / "served")
    tokenizer.save_pretrained(tmp_path / "served")
    asked, seeds = [prompt(str(i)) for i in range(12)], range(12)
    with serve(tmp_path / "served") as url:
        servers = Servers([url], tokenizer, weights=tmp_path / "weights")
        policy, local = VLLMPolicy(model, tokenizer, engine=servers), HFPolicy(model, tokenizer)
        policy.adopt()
        for seed in (None, 1, 2):
            if seed is not None:
                changed(model, seed)
            greedy = Sampling(temperature=0, max_tokens=6)
            ours, theirs = (p.generate(asked, greedy, seeds) for p in (local, policy))
            assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        drawn = policy.generate(asked, Sampling(temperature=0.7, max_tokens=6), seeds)
        assert policy.generate(asked[:3], Sampling(temperature=0.7, max_tokens=6), seeds[:3]) == drawn[:3]
        with pytest.raises(VLLMError, match="processed_logprobs"):
            ServedTeacher([url], tokenizer, 0.4)


@pytest.mark.parametrize("runner", ["old", "new"])
@pytest.mark.filterwarnings("ignore:the teacher is asked once per token")
def test_a_real_served_teacher_scores_as_a_local_one(tmp_path: Path, runner: str) -> None:
    model, tokenizer = tiny_llama(head_dim=HEAD_DIM, tie=False), byte_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # so that some distributions are sharp
    model.save_pretrained(tmp_path / "served")
    tokenizer.save_pretrained(tmp_path / "served")
    policy = HFPolicy(model, tokenizer)
    asked = [Span(policy.encode(prompt(text)), 2) for text in ("a", "bb", "a long one")]
    prefixes = [span.tokens[:end] for span in asked for end in range(2, len(span.tokens) + 1)]
    rows, n = range(len(prefixes)), len(prefixes)
    logits_NV = policy.lm.logits(prefixes)
    ids_NK = (logits_NV + torch.randn(logits_NV.shape)).topk(200).indices
    flags = ("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--max-logprobs", "200")
    with serve(tmp_path / "served", *flags, **(NEW_RUNNER if runner == "new" else {})) as url:
        teacher = ServedTeacher([url], tokenizer, 0.4, 200)
        greedy = [prompt(text) for text in ("a", "bb")], Sampling(temperature=0, max_tokens=6), (0, 0)
        drawn = EnginePolicy(tiny_llama(seed=7, head_dim=HEAD_DIM), tokenizer, engine=teacher.servers)
        assert [c.token_ids for c in drawn.generate(*greedy)] == [
            c.token_ids for c in policy.generate(*greedy)
        ]
        writer = Endpoint(f"{url}/v1", str(tmp_path / "served"), max_tokens=8, temperature=1.0)
        with pytest.raises(ExperienceError, match="used up all of 8 tokens"):  # it never comes to an end
            writer([WritingTask(system="Write.", user="A lesson?")], [0])
        for temperature in (1.0, 0.4, 1.5):
            logprobs_NV = (logits_NV / temperature).log_softmax(-1)
            # A span each, and one for all positions where that tells too little.
            at_once = (3,) if temperature == 1 else (4,) if temperature > 1 else (3, 4)
            scores_NK = teacher.score(asked, rows, ids_NK, temperature)
            torch.testing.assert_close(scores_NK, logprobs_NV.gather(-1, ids_NK), atol=1e-4, rtol=0)
            assert teacher.cost()["teacher_requests"] in (at_once if runner == "new" else (2 * n,))
            best_NK, scores_NK = teacher.top(asked, rows, 200, temperature)
            torch.testing.assert_close(scores_NK, logprobs_NV.gather(-1, best_NK), atol=1e-4, rtol=0)
            torch.testing.assert_close(
                scores_NK.sort(descending=True).values, logprobs_NV.topk(200).values, atol=1e-4, rtol=0
            )
            assert teacher.cost()["teacher_requests"] in at_once


def test_a_server_sharpens_by_itself(tmp_path: Path) -> None:
    """Then its temperature 1 is 0.4 of the model, and a completion is one request at every position."""
    model, tokenizer = tiny_llama(head_dim=HEAD_DIM, tie=False), byte_tokenizer()
    model.save_pretrained(tmp_path / "served")
    tokenizer.save_pretrained(tmp_path / "served")
    spans = [Span((9, i, *range(10 * i, 10 * i + 8)), 2) for i in range(1, 17)]
    prefixes = [span.tokens[:end] for span in spans for end in range(2, len(span.tokens) + 1)]
    logits_NV = HFPolicy(model, tokenizer).lm.logits(prefixes)
    ids_NK = (logits_NV + torch.randn(logits_NV.shape)).topk(64).indices
    flags = ("--enable-scale-out", "--max-logprobs", "64", "--hf-overrides", '{"logit_scale": 2.5}')
    with serve(tmp_path / "served", *flags, **NEW_RUNNER) as url:
        teacher = ServedTeacher([url], tokenizer, 1.0, 64)
        scores_NK = teacher.score(spans, range(len(prefixes)), ids_NK, 1.0)
    expected_NK = (logits_NV / 0.4).log_softmax(-1).gather(-1, ids_NK)
    torch.testing.assert_close(scores_NK, expected_NK, atol=1e-4, rtol=0)
    assert teacher.cost()["teacher_requests"] == 16
