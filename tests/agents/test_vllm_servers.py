"""Servers that draw, and what can be wrong with them; the real ones are in test_vllm.py."""

import base64
import copy
import io
import json
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.cli import parse_args
from agents.config import ConfigError, SelfImproveConfig
from agents.measurement import _empty_context
from agents.policies.local import HFPolicy
from agents.policies.policy import Completion, Message, Prompt, Sampling
from agents.policies.vllm.policy import Drawn, EnginePolicy, VLLMError, VLLMPolicy, check_temperature
from agents.policies.vllm.server import Server, scores_in
from agents.policies.vllm.servers import Servers
from agents.policies.vllm.teacher import EXACT, ServedTeacher, normalisers
from agents.run.resume import saved_config
from agents.self_improve import self_improve
from distill.examples import DistillExample
from distill.lm.load import load_model
from distill.lm.prefix_lm import PrefixLM
from distill.lm.span import Span
from distill.loss import Direction
from distill.opcd import OPCD, DistillError
from distill.teacher import FrozenTeacher, ScoringTeacher, Teacher
from tests import processes
from tests.agents.test_self_improve import QUIET, TINY, open_gate, with_open_gate
from tests.conftest import byte_tokenizer, tiny_llama
from tests.fake_vllm import FakeVLLM


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), reply_prefix="I move")


PROMPTS = [prompt(str(i)) for i in range(24)]
SHORT = {
    **TINY, "rounds": 1, "episodes": 4, "steps": 2, "validation_episodes": 2, "test_episodes": 2,
    "precision": "float32",  # also where auto is not: servers are compared to the fourth digit
}  # fmt: skip
SAMPLING = Sampling(temperature=0.8, max_tokens=4)


@pytest.fixture
def fakes(tokenizer: PreTrainedTokenizerFast) -> Iterator[list[FakeVLLM]]:
    """Three servers of the same model."""
    with ExitStack() as stack:
        yield [stack.enter_context(FakeVLLM(tiny_llama(), tokenizer).serve()) for _ in range(3)]


@pytest.fixture
def student(model: PreTrainedModel) -> PreTrainedModel:
    """Weights after something like an optimiser step."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def over(fakes: list[FakeVLLM], model: PreTrainedModel, folder: Path) -> VLLMPolicy:
    tokenizer = fakes[0].policy.tokenizer
    servers = Servers([fake.url for fake in fakes], tokenizer, weights=folder / "weights")
    return VLLMPolicy(model, tokenizer, engine=servers)


def same(ours: list[Completion], theirs: list[Completion]) -> bool:
    return [(c.text, c.token_ids, c.finish_reason) for c in ours] == [
        (c.text, c.token_ids, c.finish_reason) for c in theirs
    ]


def test_replies_are_the_models_and_the_load_is_even(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, student, tmp_path)
    (tmp_path / "weights").mkdir()
    theirs = tmp_path / "weights" / "model.safetensors"
    theirs.touch()
    replies = policy.generate(PROMPTS, SAMPLING, range(24))
    assert same(replies, HFPolicy(student, policy.tokenizer).generate(PROMPTS, SAMPLING, range(24)))
    assert [fake.loads for fake in fakes] == [1, 1, 1]
    assert min(fake.completions for fake in fakes) >= 4
    assert list((tmp_path / "weights").iterdir()) == [theirs]
    policy.generate(PROMPTS, SAMPLING, range(24))
    assert [fake.loads for fake in fakes] == [1, 1, 1]


def test_a_server_that_has_the_weights_is_taken_as_it_is(
    fakes: list[FakeVLLM], model: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, model, tmp_path)
    policy.adopt()
    policy.generate(PROMPTS, SAMPLING, range(24))
    assert [fake.loads for fake in fakes] == [0, 0, 0]


def test_a_server_that_dies_loses_no_reply(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, student, tmp_path)
    fakes[1].lives = 7  # four of them for the proof
    with pytest.warns(UserWarning, match="not asked any more"):
        replies = policy.generate(PROMPTS, SAMPLING, range(24))
    assert same(replies, HFPolicy(student, policy.tokenizer).generate(PROMPTS, SAMPLING, range(24)))
    for fake in (fakes[0], fakes[2]):
        fake.lives = 3
    with (
        pytest.warns(UserWarning, match="not asked any more"),
        pytest.raises(VLLMError, match="no server is left"),
    ):
        policy.generate(PROMPTS, SAMPLING, range(24))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"missing": {"/v1/completions"}, "status": 429}, "not asked any more.*RateLimitError: 429"),
        ({"longest": 3}, "ended a reply by itself"),
    ],
    ids=["has too much to do", "is being stopped"],
)
def test_what_one_does_not_do_another_does_at_once(
    fault: dict[str, Any], says: str, fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, student, tmp_path)
    policy.prepare()
    for name, value in fault.items():
        setattr(fakes[1], name, value)
    with pytest.warns(UserWarning, match=says):
        replies = policy.generate(PROMPTS, SAMPLING, range(24))
    assert same(replies, HFPolicy(student, policy.tokenizer).generate(PROMPTS, SAMPLING, range(24)))


def test_one_that_is_dead_when_new_weights_come_stays_out(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, student, tmp_path)
    fakes[0].lives = 0
    with pytest.warns(UserWarning, match="not asked any more"):
        policy.generate(PROMPTS, SAMPLING, range(24))
    fakes[0].lives = None
    policy.generate(PROMPTS, SAMPLING, range(24))
    assert fakes[0].completions == 0


def test_weights_that_do_not_arrive_are_found_out(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    fakes[2].loads_weights = False
    policy = over(fakes, student, tmp_path)
    with pytest.raises(VLLMError, match=f"{fakes[2].url} does not compute what the model computes"):
        policy.generate(PROMPTS, SAMPLING, range(24))
    assert policy.engine.holds is None


def test_a_server_that_was_begun_anew_is_found_out(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    """It has the weights that it had at first, and nothing has told so: nobody asked it meanwhile."""
    policy = over(fakes, student, tmp_path)
    policy.prepare()
    policy.prepare()
    assert [fake.loads for fake in fakes] == [1, 1, 1]
    fakes[1].policy.lm.model.load_state_dict(tiny_llama().state_dict())
    with pytest.raises(VLLMError, match=f"{fakes[1].url} does not compute what the model computes"):
        policy.prepare()


def test_servers_take_new_weights_at_the_same_time(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    """Else many of them would keep a run waiting for one after the other, at every step."""
    policy, all_there = over(fakes, student, tmp_path), Barrier(3, timeout=60)
    with patch.object(Server, "reload", lambda self, folder: all_there.wait()):
        policy.engine.load(student.state_dict().items())


def test_who_works_for_somebody_else_is_given_no_weights(
    fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, student, tmp_path)
    for fake in fakes:
        fake.is_busy = True
    with pytest.raises(VLLMError, match="at work for somebody else"):
        policy.prepare()
    assert [fake.loads for fake in fakes] == [0, 0, 0]


def test_another_model_is_found_out(fakes: list[FakeVLLM], student: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(VLLMError, match="other weights or another model"):
        over(fakes, student, tmp_path).adopt()
    assert [fake.loads for fake in fakes] == [0, 0, 0]


def test_another_tokenizer_is_found_out(fakes: list[FakeVLLM], tmp_path: Path) -> None:
    other = byte_tokenizer()
    other.add_tokens(["lake"])
    with pytest.raises(VLLMError, match="another tokenizer"):
        Servers([fakes[0].url], other, weights=tmp_path)


def test_other_marks_of_a_chat_are_found_out(fakes: list[FakeVLLM], tmp_path: Path) -> None:
    """The words are the same, as in a model that somebody has taught another chat template."""
    other = byte_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    other.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    with pytest.raises(VLLMError, match=r"another tokenizer: '<\|im_start\|>Which way"):
        Servers([fakes[0].url], other, weights=tmp_path)


def test_one_server_however_it_is_written(fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast) -> None:
    url = fakes[0].url
    assert len(Servers([url, f"{url}/", f"{url}/v1", f"{url}/v1/"], tokenizer, weights=None)._servers) == 1


def test_truncated_prompts_are_found_out(
    fakes: list[FakeVLLM], model: PreTrainedModel, tmp_path: Path
) -> None:
    fakes[0].truncates = True
    with pytest.raises(VLLMError, match="truncates"):
        over(fakes, model, tmp_path).adopt()


def test_logprobs_of_another_temperature_are_found_out(
    fakes: list[FakeVLLM], model: PreTrainedModel, tmp_path: Path
) -> None:
    fakes[0].processed = True
    with pytest.raises(VLLMError, match="without --logprobs-mode"):
        over(fakes, model, tmp_path).adopt()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/version", "has no endpoint /version"),
        ("/tokenize", r"\(vLLM 0.32.0\) has no endpoint /tokenize"),
        ("/reset_prefix_cache", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_missing_endpoint_is_named(
    fakes: list[FakeVLLM], model: PreTrainedModel, tmp_path: Path, path: str, says: str
) -> None:
    fakes[0].missing = {path}
    with pytest.raises(VLLMError, match=says):
        over(fakes, model, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        "text",
        {"choices": []},
        {"choices": [{"prompt_token_ids": [5, 6]}]},
        {
            "choices": [
                {"prompt_token_ids": [5, 6], "token_ids": ["x"], "logprobs": {"token_logprobs": [0.0]}}
            ]
        },
        {"choices": [{"prompt_token_ids": [5, 6], "token_ids": [7] * 9, "logprobs": {"token_logprobs": []}}]},
    ],
)
def test_answers_that_are_none(fakes: list[FakeVLLM], answer: Any) -> None:
    fakes[0].answers = [answer]
    with pytest.raises(VLLMError, match=fakes[0].url):
        Server(fakes[0].url).draw([(5, 6)], [0], SAMPLING, [])


@pytest.mark.parametrize(
    ("token_ids", "says"),
    [([7, 1, 9], "draws on behind token 1"), ([7, 7], r"by itself \(abort\), after 2 of 4")],
)
def test_a_reply_ends_where_it_is_to(fakes: list[FakeVLLM], token_ids: list[int], says: str) -> None:
    logprobs = {"token_logprobs": [-1.0] * len(token_ids)}
    choice = {"token_ids": token_ids, "logprobs": logprobs, "finish_reason": "abort"}
    fakes[0].answers = [{"choices": [{"prompt_token_ids": [5, 6], **choice}]}]
    with pytest.raises(VLLMError, match=says):
        Server(fakes[0].url).draw([(5, 6)], [0], SAMPLING, [1])


def test_a_proof_with_tokens_that_the_model_does_not_have(
    fakes: list[FakeVLLM], model: PreTrainedModel, tmp_path: Path
) -> None:
    policy = over(fakes, model, tmp_path)
    drawn = Drawn(token_ids=(9999,), logprobs=(-1.0,))
    with (
        patch.object(Server, "draw", return_value=[drawn, drawn]),
        pytest.raises(VLLMError, match=f"{fakes[0].url} drew token 9999, and the model has"),
    ):
        policy.adopt()


def test_an_old_server_is_refused(fakes: list[FakeVLLM]) -> None:
    fakes[0].version = "0.9.2"
    with pytest.raises(VLLMError, match=r"runs vLLM 0\.9\.2"):
        Server(fakes[0].url)


def test_a_url_with_a_key_in_it() -> None:
    with pytest.raises(VLLMError, match="put a key in VLLM_API_KEY") as caught:
        Server("http://user:secret@host")
    assert "secret" not in str(caught.value)


def test_a_key_that_is_none(fakes: list[FakeVLLM]) -> None:
    fakes[0].missing, fakes[0].status = {"/version"}, 401
    with pytest.raises(VLLMError, match=r"AuthenticationError: 401.* Its key is read from VLLM_API_KEY"):
        Server(fakes[0].url)


def test_a_dead_url() -> None:
    with pytest.raises(VLLMError, match="no vLLM answers"):
        Server("http://127.0.0.1:9", timeout=5)


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(VLLMError, match=r"/version: Timeout: no whole answer in 0\.2 s"):
            Server(url, timeout=0.2)


COMPLETIONS = [
    DistillExample(student_prompt_ids=(9, i), teacher_prompt_ids=(7, 8, i), completion_ids=(i, 30, 31))
    for i in range(40, 44)
]


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1.5])
@pytest.mark.filterwarnings("ignore:the teacher is asked once per token")
def test_a_served_teacher_teaches_what_a_local_one_does(
    fakes: list[FakeVLLM],
    tokenizer: PreTrainedTokenizerFast,
    temperature: float,
    at_once: bool,
    direction: Direction,
) -> None:
    for fake in fakes:
        fake.processed, fake.scores_prompts = True, at_once
        fake.policy.lm.model.load_state_dict(tiny_llama(seed=5).state_dict())
    served = ServedTeacher([fake.url for fake in fakes], tokenizer, temperature, 200)
    teachers: list[Teacher | ScoringTeacher] = [FrozenTeacher(PrefixLM(tiny_llama(seed=5))), served]
    students, losses = [tiny_llama(), tiny_llama()], []
    for student, teacher in zip(students, teachers, strict=True):
        trainer = OPCD(student, teacher, lr=1e-2, teacher_temperature=temperature, k=200, direction=direction)
        losses.append([trainer.step(COMPLETIONS).kl for _ in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for mine, theirs in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-2)
    if at_once or direction == "forward":
        # A completion each; and beside temperature 1 up to one more for each server.
        most = 4 if temperature == 1 else 4 + len(fakes)
        assert 2 * 4 <= served.cost()["teacher_requests"] <= 2 * most
    else:
        assert served.cost()["teacher_requests"] == 2 * 2 * 12  # two parts of 200 ids, twice 12 prefixes


@pytest.mark.parametrize(("temperature", "requests"), [(1.0, 16), (0.4, 17)])
def test_a_completion_is_scored_in_one_request(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast, temperature: float, requests: int
) -> None:
    fake, local = fakes[0], PrefixLM(tiny_llama())
    fake.processed = True
    teacher = ServedTeacher([fake.url], tokenizer, temperature, 64)
    torch.manual_seed(0)
    spans = [Span((7, i, *torch.randint(3, 250, (127,)).tolist()), 2) for i in range(16)]
    logits_TV = torch.cat(
        [local.logits([span.tokens[:end] for end in range(2, len(span.tokens) + 1)]) for span in spans]
    )
    rows = [row for row in range(16 * 128) if row % 128 != 5]  # one of each is not asked about
    ids_TK = (logits_TV + torch.randn(logits_TV.shape)).topk(64).indices[rows]
    expected_TK = (logits_TV[rows] / temperature).log_softmax(-1).gather(-1, ids_TK)
    before = fake.requests
    scores_TK = teacher.score(spans, rows, ids_TK, temperature)
    torch.testing.assert_close(scores_TK, expected_TK, atol=1e-4, rtol=0)
    gaps = 16  # what is asked about is in two parts
    assert fake.requests - before == teacher.cost()["teacher_requests"] == requests + gaps


def test_prefixes_that_are_not_asked_about_are_not_made(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sure(_: Server, span: Span, ids_TK: Any) -> Any:
        return np.tile(np.array([[0.0, -30.0]], np.float32), (span.size, 1))

    fakes[0].processed = True
    teacher = ServedTeacher([fakes[0].url], tokenizer, 0.4)
    monkeypatch.setattr(Server, "prompt_scores", sure)
    span = Span(tuple(range(4096)), 1)
    tracemalloc.start()
    teacher.score([span], range(4096), torch.tensor([[1, 2]] * 4096), 0.4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # all prefixes: 67 MB


@pytest.mark.parametrize("temperature", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("are_likeliest", [True, False])
def test_a_normaliser_is_no_further_off_than_it_says(temperature: float, are_likeliest: bool) -> None:
    torch.manual_seed(0)
    scales_T1 = torch.logspace(-1, 2, 500, dtype=torch.float64)[:, None]
    logprobs_TV = (scales_T1 * torch.randn(500, 300, dtype=torch.float64)).log_softmax(-1)
    ids_TK = logprobs_TV.topk(40).indices
    if not are_likeliest:
        ids_TK = ids_TK[:, torch.arange(40) != 3]
    known_TK = logprobs_TV.gather(-1, ids_TK)
    log_z_T, error_T = normalisers(known_TK, temperature, are_likeliest=are_likeliest)
    off_T = (log_z_T - (logprobs_TV / temperature).logsumexp(-1)).abs()
    assert (off_T <= error_T + 1e-9).all()
    assert error_T.min() < EXACT < error_T.max()


def test_a_teacher_whose_servers_score_no_prompts_is_asked_once_per_token(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    fakes[1].missing = {"/inference/v1/generate"}
    with pytest.warns(UserWarning, match=r"no endpoint /inference/v1/generate.* --max-logprobs 64"):
        teacher = ServedTeacher([fake.url for fake in fakes], tokenizer, 1.0, 64)
    teacher.score([Span((5, 6, 7), 1)], range(3), torch.arange(64).repeat(3, 1), 1.0)
    assert teacher.cost()["teacher_requests"] == 3


@pytest.mark.parametrize("scores", ["", "AAAA", 5, None, "\x00", "k05VTVBZAQAQAHsnZGVzY3InOiAnPGY0J30K"])
def test_scores_that_are_none(fakes: list[FakeVLLM], scores: Any) -> None:
    fakes[0].answers = [{"prompt_token_ids": [5, 6, 6], "prompt_token_id_logprobs": scores}]
    with pytest.raises(VLLMError, match=fakes[0].url):
        Server(fakes[0].url).prompt_scores(Span((5, 6), 1), [[1, 2], [3, 4]])


@pytest.mark.parametrize("shape", ["-" * 9_000 + "1", "(" * 9_000, "1" + "+1" * 4_000, "a" + ".b" * 4_000])
def test_the_header_of_scores_is_not_parsed(fakes: list[FakeVLLM], shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    scores = base64.b64encode(array).decode()
    fakes[0].answers = [{"prompt_token_ids": [5, 6, 6], "prompt_token_id_logprobs": scores}]
    with pytest.raises(VLLMError, match=fakes[0].url):
        Server(fakes[0].url).prompt_scores(Span((5, 6), 1), [[1, 2], [3, 4]])


def test_scores_that_are_no_distributions(fakes: list[FakeVLLM]) -> None:
    ids, server = [7, 8, 9], Server(fakes[0].url)
    rows = [None, {str(token): {"logprob": -0.1} for token in ids}]
    top = {f"token_id:{token}": -0.1 for token in ids}
    fakes[0].answers = [
        {"choices": [{"prompt_token_ids": [5, 5], "prompt_logprobs": rows}]},
        {"choices": [{"prompt_token_ids": [5], "logprobs": {"top_logprobs": [top]}}]},
    ]
    with pytest.raises(VLLMError, match=r"add up to 2\.71"):
        server.prompt_top(Span((5,), 1), 3)
    with pytest.raises(VLLMError, match=r"add up to 2\.71"):
        server.score((5,), ids, 1.0)


@pytest.mark.parametrize("row", ["x", [1], 5, {"7": 1}, {"7": None}])
def test_rows_that_are_none(fakes: list[FakeVLLM], row: Any) -> None:
    server, choice = (
        Server(fakes[0].url),
        {"index": 0, "prompt_token_ids": [5, 5], "prompt_logprobs": [None, row]},
    )
    fakes[0].answers = [
        {"choices": [choice]},
        {"choices": [choice | {"logprobs": {"top_logprobs": [row]}, "prompt_token_ids": [5]}]},
    ]
    with pytest.raises(VLLMError, match=fakes[0].url):
        server.prompt_top(Span((5,), 1), 1)
    with pytest.raises(VLLMError, match=fakes[0].url):
        server.next_best([(5,)], 1.0)


@pytest.mark.parametrize("token", [-1, 1 << 31, 1 << 70])
def test_a_likely_token_that_is_none(fakes: list[FakeVLLM], token: int) -> None:
    rows = [None, {"5": {"logprob": -1.0}, str(token): {"logprob": -1.0}}]
    fakes[0].answers = [{"choices": [{"prompt_token_ids": [5, 5], "prompt_logprobs": rows}]}]
    with pytest.raises(VLLMError, match=f"a token is {token}"):
        Server(fakes[0].url).prompt_top(Span((5,), 1), 2)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3), np.float32), "not of float32"),
        (np.zeros((2, 2), np.float64), "not of float32"),
        (np.ones((2, 2), np.float32), "a log-probability is not a finite number of at most 0"),
        (np.full((2, 2), np.nan, np.float32), "a log-probability is not a finite number of at most 0"),
        (np.array([[-3, -3], [0, -2]], np.float32), "add up to 1.14"),
        (np.full((2, 2), -np.inf, np.float32), "a log-probability is not a finite number of at most 0"),
    ],
)
def test_arrays_that_are_no_scores(array: Any, says: str) -> None:
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(ValueError, match=says):
        scores_in(base64.b64encode(file.getvalue()).decode(), (2, 2))


def test_a_served_teacher_has_to_apply_the_temperature(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(VLLMError, match="--logprobs-mode processed_logprobs"):
        ServedTeacher([fakes[0].url], tokenizer, 0.4)
    ServedTeacher([fakes[0].url], tokenizer, 1.0)


def test_a_teacher_that_was_begun_anew_without_its_flags_is_found_out(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    fakes[0].processed = True
    teacher = ServedTeacher([fakes[0].url], tokenizer, 0.4, 8)
    spans, ids_TK = [Span(tuple(range(20, 40)), 1)], torch.arange(8).repeat(20, 1)
    teacher.score(spans, range(20), ids_TK, 0.4)
    fakes[0].processed = False
    for ask in (
        lambda: teacher.score(spans, range(20), ids_TK, 0.4),
        lambda: teacher.top(spans, [0, 9], 8, 0.4),
    ):
        with pytest.raises(VLLMError, match=f"the teacher at {fakes[0].url} scores .* differently"):
            ask()


@pytest.mark.parametrize("settings", [{"mode": "full"}, {"k": 258}], ids=["full", "all"])
def test_what_a_served_teacher_cannot_do(
    fakes: list[FakeVLLM], tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> None:
    teacher = ServedTeacher([fakes[0].url], tokenizer, 1.0)
    with pytest.raises(DistillError, match="top-k only"):
        OPCD(tiny_llama(), teacher, lr=1e-2, **{"k": 64, **settings})


def test_a_run_on_servers(walker_folder: Path, tmp_path: Path) -> None:
    walker = load_model(str(walker_folder))
    with ExitStack() as stack:
        fakes = [FakeVLLM(copy.deepcopy(walker.model), walker.tokenizer) for _ in range(3)]
        urls = [stack.enter_context(fake.serve()).url for fake in fakes]
        fakes[2].processed = True
        with open_gate():
            self_improve(
                SelfImproveConfig(
                    model=str(walker_folder),
                    output=tmp_path / "run",
                    policy=",".join(urls[:2]),
                    teacher=urls[2],
                    top_k=16,
                    off_policy_steps=1,
                    **SHORT,
                ),
                QUIET,
            )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert len(steps) == 2
    assert "rollout_gap" not in steps[0]  # the teacher's servers wrote what it is trained on
    assert steps[1]["rollout_gap_max"] < 1e-3
    assert all(step["teacher_requests"] > 0 for step in steps)
    assert fakes[0].loads == fakes[1].loads >= 2
    assert fakes[2].loads == 0
    saved = saved_config(tmp_path / "run")
    assert (saved.policy_urls, saved.teacher_urls) == (tuple(urls[:2]), (urls[2],))
    resume = ["--resume", str(tmp_path / "run")]
    assert parse_args(resume).policy_urls == tuple(urls[:2])
    assert parse_args([*resume, "--policy", "http://other:1"]).policy_urls == ("http://other:1",)


def test_two_processes_share_the_servers(walker_folder: Path, tmp_path: Path) -> None:
    """Each has its own, which one of them gives the weights; one that dies is named, and the others go on."""
    walker = load_model(str(walker_folder))
    settings = SHORT | {"model": str(walker_folder)}
    one, two = tmp_path / "one", tmp_path / "two"
    with ExitStack() as stack:
        alone, *fakes = (
            stack.enter_context(FakeVLLM(copy.deepcopy(walker.model), walker.tokenizer).serve())
            for _ in range(3)
        )
        with open_gate():
            self_improve(SelfImproveConfig(output=one, policy=alone.url, **settings), QUIET)
        fakes[1].lives = 40
        urls = ",".join(fake.url for fake in fakes)
        arguments = processes.flags(output=two, policy=urls, **settings)
        said = processes.launch(2, with_open_gate, *arguments, said=tmp_path / "said")
    columns = ["phase", "seed", "num_turns", "success"]
    traces, losses = zip(
        *(processes.traces_and_losses(output, columns) for output in (one, two)), strict=True
    )
    assert traces[0].equals(traces[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert fakes[0].loads in (alone.loads, alone.loads + 1)  # the rehearsal's engine is handed none again
    assert fakes[0].loads > fakes[1].loads >= 1
    assert min(fake.completions for fake in fakes) >= 30
    assert f"not asked any more: {fakes[1].url}" in "".join(said.splitlines())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "llvm"}, "policy must be auto, hf, vllm, vllm:N, or servers' URLs, not 'llvm'"),
        ({"policy": "vllm:0"}, "not 'vllm:0'"),
        ({"policy": "vllm:two"}, "not 'vllm:two'"),
        ({"policy": "hf:2"}, "not 'hf:2'"),
        ({"teacher": "http://x:1", "loss": "full"}, "a loss other than full"),
        ({"policy": "http://x:1,http://y:1", "teacher": "http://y:1/v1/"}, "http://y:1 cannot be policy and"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SelfImproveConfig(**settings)


def test_what_vllm_does_not_draw_at_is_said_before_anything_is_spent() -> None:
    with pytest.raises(VLLMError, match="greedily at 0, not at 3: take"):
        check_temperature(3.0)
    check_temperature(0.0)


def test_the_control_that_vllm_cannot_play_is_left_out() -> None:
    """Both temperatures are fine; what the student would be sharpened to is not."""
    teacher = EnginePolicy.__new__(EnginePolicy)
    agent = SimpleNamespace(teacher=teacher, base=teacher, scorer=None)
    config = SelfImproveConfig(temperature=0.3, teacher_temperature=1.0)
    run: Any = SimpleNamespace(config=config, agent=agent)
    assert _empty_context(run, 0.7, pd.DataFrame()) is None
