"""A tiny random Llama, a byte tokenizer, and a scripted walker on the lake.

What takes seconds to import is imported where it is used: the process that hands out the tests reads this
file too, and the others begin when it has.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores
    import torch

    threads = max(1, (os.cpu_count() or 1) // int(workers))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)

hypothesis.settings.register_profile("steady", deadline=None)  # how long it takes is up to the machine
hypothesis.settings.load_profile("steady")

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens and two special ones: fast to make, and " right" takes several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(
    seed: int = 0,
    dtype: torch.dtype | None = None,
    *,
    tie: bool = True,
    head_dim: int = 8,
    window: int = 512,
) -> PreTrainedModel:
    """A random Llama, of float32 by default, with grouped-query attention and the byte tokenizer's words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.lm import tree_attention
    from distill.lm.ways import Support, set_support

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=4 * head_dim,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=tie,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3 * (8 / head_dim) ** 0.5,
    )
    model: Any = LlamaForCausalLM(config)
    assert model.config._attn_implementation == "sdpa"
    result: PreTrainedModel = model.to(dtype or torch.float32).eval()
    set_support(result, Support(way="tree", attention=tree_attention.NAME))  # to find it out takes longer
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first, so that at the end no process waits long for another."""
    long = {item.path for item in items if item.get_closest_marker("model")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_llama()


@contextmanager
def few_blind_policies() -> Iterator[None]:
    """The shortest patterns and successes: all that compete for the blind arm take a third of a tiny run."""
    with patch("evals.baselines.MAX_PATTERNS", 20), patch("agents.measurement.MAX_BLIND_CANDIDATES", 4):
        yield


@pytest.fixture(scope="session", autouse=True)
def blind_policies_are_few() -> Iterator[None]:
    with few_blind_policies():
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT do what it does at a terminal, also where the tests are a job in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def plain_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with an empty page, which takes no time: for tests that do not look at it."""
    monkeypatch.setattr("agents.run.run.write_report", lambda path, _: (path / "report.html").touch())


@pytest.fixture(scope="session")
def walker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_walker(tmp_path_factory.mktemp("walker"))


def save_walker(
    folder: Path, model: PreTrainedModel | None = None, *, says: str = " {}", window: int = 512
) -> Path:
    """A tiny model that knows four words, the lake's actions, as a Hugging Face folder for ``--model``.

    Args:
        folder: Where to.
        model: With a head of its own, of which nothing is kept; by default a Llama.
        says: What it writes for an action, as one token.
        window: The most that it reads, in bytes.
    """
    import torch

    from envs.games.frozen_lake import ACTIONS

    tokenizer, model = byte_tokenizer(), model or tiny_llama(tie=False, window=window)
    tokenizer.add_tokens([says.format(action) for action in ACTIONS])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        head_VD = model.get_output_embeddings().weight
        head_VD.zero_()
        head_VD[-len(ACTIONS) :].normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's databases, but for their name."""
    from tests import postgres

    with postgres.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A new database on the server."""
    from tests import postgres

    return postgres.new_database(postgres_server)


def run_main(main: Callable[[], int], capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """A command's exit code, and all that it printed, in one line."""
    with patch.object(sys, "argv", ["command", *args]):
        try:
            code = main()
        except SystemExit as stop:  # tyro's own errors
            code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())
