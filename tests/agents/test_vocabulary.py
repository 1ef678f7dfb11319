"""Which token ids a student is compared with another model in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, models

from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.training import make_opcd
from distill.lm.prefix_lm import PrefixLM
from distill.parallel import ALONE
from distill.teacher import FrozenTeacher
from tests.conftest import byte_tokenizer, tiny_llama


def test_ids_that_a_tokenizer_leaves_out_hide_none(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    words = {token: index for token, index in tokenizer.get_vocab().items() if index != 200}
    tokenizer._tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    assert len(tokenizer) == 257
    agent: Any = SimpleNamespace(
        student=HFPolicy(tiny_llama(), tokenizer),
        imitated=lambda: FrozenTeacher(PrefixLM(tiny_llama(seed=1))),
    )
    run: Any = SimpleNamespace(
        config=SelfImproveConfig(output=tmp_path, teacher="other", policy="hf"), agent=agent, ranks=ALONE
    )
    assert make_opcd(run).comparison.vocabulary == 258
