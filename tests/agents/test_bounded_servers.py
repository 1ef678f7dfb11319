"""Servers that drip, flood, redirect, or answer nonsense: bounded, with a clear error."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.policies.policy import Sampling
from agents.policies.vllm.policy import VLLMError
from agents.policies.vllm.server import Server
from experience import ExperienceError
from experience.bounded_http import in_parallel
from experience.endpoint import Endpoint
from experience.writer import WritingTask
from tests.fake_vllm import FakeVLLM

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
Say = Callable[[socket.socket], None]


@contextmanager
def raw_server(say: Say) -> Iterator[tuple[str, list[bytes]]]:
    """Its URL, and what it was asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        try:
            with connection:
                asked.append(connection.recv(65536))
                say(connection)
        except OSError:
            pass

    def listen() -> None:
        try:
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            pass

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()


def whole(body: bytes, headers: bytes = b"") -> Say:
    data = OK + headers + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
    return lambda connection: connection.sendall(data)


def drip(connection: socket.socket) -> None:
    connection.sendall(OK + b"content-length: 100000\r\n\r\n")
    for _ in range(200):
        connection.sendall(b" ")
        time.sleep(0.05)


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(OK + b"x-long: ")
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    connection.sendall(OK + b"transfer-encoding: chunked\r\n\r\n")
    piece = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    for _ in range(4000):
        connection.sendall(piece)


def cut_off(connection: socket.socket) -> None:
    connection.sendall(OK + b"content-length: 1000\r\n\r\n{")


PACKED = zlib.compress(b"x" * 1000)
BOMB = gzip.compress(b" " * (80 << 20))
KINDS: dict[str, Say] = {
    "drip": drip,
    "drip headers": drip_headers,
    "flood": flood,
    "gzip bomb": whole(BOMB, b"content-encoding: gzip\r\n"),
    "cut off": cut_off,
    "hang up": lambda connection: None,
    "no HTTP": lambda connection: connection.sendall(b"SSH-2.0-x\r\n"),
    "no gzip": whole(b"garbage", b"content-encoding: gzip\r\n"),
    "many headers": lambda connection: connection.sendall(OK + b"x: y\r\n" * 300_000),
    "deep": whole(b"[" * 200_000),
    "deep in a field": whole(b'{"choices": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"),
    "no JSON": whole(b"<html>"),
    "no UTF-8": whole(b'{"choices": "\xff\xfe"}'),
    "NUL": whole(b"\x00" * 100),
    "empty": whole(b""),
    "a long number": whole(b'{"choices": ' + b"9" * 9000 + b"}"),
    "NaN": whole(b'{"choices": [NaN], "version": NaN, "data": [Infinity]}'),
    "a list": whole(b'[{"choices": []}]'),
    "an empty object": whole(b"{}"),
    "choices of another kind": whole(b'{"choices": {"0": 1}, "version": "0.32.0", "data": {"0": 1}}'),
    "a choice of another kind": whole(b'{"choices": ["x"], "version": [9, 9], "data": [3]}'),
    "a version like no other": whole(b'{"choices": 3, "version": "' + b"9" * 9000 + b'.1", "data": 3}'),
    "a window of another kind": whole(
        b'{"choices": true, "version": "0.32.0", "data": [{"id": "m", "max_model_len": "many"}]}'
    ),
    "no window": whole(b'{"version": "0.32.0", "data": [{"id": "m", "max_model_len": -1}]}'),
    "a header without an end": lambda connection: connection.sendall(OK + b"y" * 80_000 + b"\r\n\r\n"),
    "a text that is packed": lambda connection: connection.sendall(
        b"HTTP/1.1 400 no\r\ncontent-type: text/plain; charset=zlib\r\ncontent-length: %d\r\n\r\n"
        % len(PACKED)
        + PACKED
    ),
    "a page for an error": lambda connection: connection.sendall(
        b"HTTP/1.1 418 no\r\ncontent-length: 100006\r\n\r\n<html>" + b"z" * 100_000
    ),
    "an error of blanks": lambda connection: connection.sendall(
        b"HTTP/1.1 400 no\r\ncontent-length: 26\r\n\r\n" + b'{"error": {"message": " "}}'[:26]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_endpoint_is_bounded(kind: str) -> None:
    with raw_server(KINDS[kind]) as (url, _), patch("experience.bounded_http.MAX_PAUSE", 0.5):
        endpoint = Endpoint(url + "/v1", "m", max_tokens=9, temperature=0.5, timeout=0.8, retries=0)
        started = time.monotonic()
        with pytest.raises(ExperienceError, match="gave no insights") as error:
            endpoint([WritingTask(system="s", user="u")], [0])
    assert time.monotonic() - started < 6
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("kind", KINDS)
def test_a_vllm_is_bounded(kind: str) -> None:
    started = time.monotonic()
    with (
        raw_server(KINDS[kind]) as (url, _),
        patch("experience.bounded_http.MAX_PAUSE", 0.2),
        pytest.raises(VLLMError) as error,
    ):
        Server(url, timeout=0.8)
    assert time.monotonic() - started < 9
    assert len(str(error.value)) < 800


NO_URLS = [
    *("localhost:8000", "ftp://host", "http://", "http://[::1", "http://host:abc", "http://host:99999"),
    *("http://.:1", "http://a..b:1", f"http://{'a' * 64}:1", "http://h\\@u:secret-1@[::1"),
]
NO_CLIENTS_URLS = ["http://\u2603.x", "http://host/\0", "http://host/\ud800", f"http://{'a.' * 40_000}b:1"]


@pytest.mark.parametrize(
    ("url", "says"),
    [(url, "give http://host:port") for url in NO_URLS]
    + [(url, "cannot be asked") for url in NO_CLIENTS_URLS],
)
def test_a_url_that_is_none(url: str, says: str) -> None:
    for make in (Server, partial(Endpoint, model="m", max_tokens=9, temperature=0.5)):
        with pytest.raises((VLLMError, ExperienceError), match=says) as error:
            make(url)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PROXY", "socks9://host:1", "cannot be asked, with the proxies"),
        ("HTTP_PROXY", "http://[::1", "cannot be asked, with the proxies"),
        ("SSL_CERT_FILE", "/no/such/file", "cannot be asked, with the proxies and certificates"),
        ("KEY", "sk-secret\u2019", "holds characters that no key has"),
        ("KEY", "sk-secret\nsk-secret", "holds characters that no key has"),
    ],
)
def test_an_environment_that_no_client_takes(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("OPENAI_API_KEY", "VLLM_API_KEY") if name == "KEY" else (name,):
        monkeypatch.setenv(key, value)
    for make in (Server, partial(Endpoint, model="m", max_tokens=9, temperature=0.5)):
        with pytest.raises((VLLMError, ExperienceError), match=says) as error:
            make("http://127.0.0.1:9")
        assert "secret" not in str(error.value)


def test_what_follows_a_question_mark_goes_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a version, or a key; and a key of the environment is as it was meant, without a line's end."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1\n")
    with raw_server(whole(b"{}")) as (url, asked):
        endpoint = Endpoint(url + "/v1?version=2&key=k", "m", max_tokens=9, temperature=0.5, retries=0)
        endpoint.reach()
        with pytest.raises(ExperienceError, match="not a chat completion"):
            endpoint([WritingTask(system="s", user="u")], [0])
        with pytest.raises(VLLMError, match=r"key=\*\*\* is not a server's URL"):
            Server(url + "?key=k")
    assert [request.split()[1] for request in asked] == [
        b"/v1/models?version=2&key=k",
        b"/v1/chat/completions?version=2&key=k",
    ]
    assert all(b"Bearer sk-secret-1\r\n" in request for request in asked)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with raw_server(whole(b"{}")) as (target, asked):
        moved = f"HTTP/1.1 {status} x\r\nlocation: {target}/v1\r\ncontent-length: 0\r\n\r\n".encode()
        with raw_server(lambda connection: connection.sendall(moved)) as (url, _):
            endpoint = Endpoint(url + "/v1", "m", max_tokens=9, temperature=0.5, retries=0)
            with pytest.raises(ExperienceError, match=f"it redirects to {target}"):
                endpoint([WritingTask(system="s", user="u")], [0])
            with pytest.raises(VLLMError, match=f"it redirects to {target}"):
                Server(url)
        assert asked == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("token_ids", [-3]),
        ("token_ids", [1.5]),
        ("token_ids", [True]),
        ("token_ids", ["1"]),
        ("token_ids", [None]),
        ("token_ids", [[1]]),
        ("token_ids", {"1": 1}),
        ("token_logprobs", [float("nan")]),
        ("token_logprobs", [float("inf")]),
        ("token_logprobs", [float("-inf")]),
        ("token_logprobs", ["-1"]),
        ("token_logprobs", [None]),
        ("token_logprobs", [3.0]),
        ("token_logprobs", [-(10**400)]),
        ("token_logprobs", [True]),
        ("token_logprobs", "x"),
    ],
)
def test_numbers_are_checked(
    name: str, values: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    fields = {"token_ids": [1], "token_logprobs": [-1.0], name: values}
    with FakeVLLM(model, tokenizer).serve() as fake:
        server = Server(fake.url)
        fake.answers.append(
            {
                "choices": [
                    {
                        "prompt_token_ids": [5, 6],
                        "token_ids": fields["token_ids"],
                        "logprobs": {"token_logprobs": fields["token_logprobs"]},
                    }
                ]
            }
        )
        with pytest.raises(VLLMError, match="is not a completion"):
            server.draw([(5, 6)], [0], Sampling(max_tokens=4), [])


@pytest.mark.parametrize("score", [float("nan"), "x", None, True, 3.5, float("-inf"), {}, [-1.0]])
def test_scores_are_checked(score: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with FakeVLLM(model, tokenizer).serve() as fake:
        server = Server(fake.url)
        fake.answers.append(
            {"choices": [{"prompt_token_ids": [5], "logprobs": {"top_logprobs": [{"token_id:7": score}]}}]}
        )
        with pytest.raises(VLLMError):
            server.score((5,), [7], 1.0)
        fake.answers.append(
            {"choices": [{"prompt_token_ids": [5, 7], "prompt_logprobs": [None, {"7": {"logprob": score}}]}]}
        )
        with pytest.raises(VLLMError):
            server.logprobs([(5, 7)])


def test_a_servers_words_are_shown_safely(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "vllm-secret-1")
    body = json.dumps({"message": "no\nway \x1b]0;x\x07 vllm-secret-1"}).encode()
    answer = b"HTTP/1.1 400 no\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with (
        raw_server(lambda connection: connection.sendall(answer)) as (url, _),
        pytest.raises(VLLMError) as error,
    ):
        Server(url)
    assert "vllm-secret-1" not in str(error.value)


def test_an_error_does_not_wait_for_the_others() -> None:
    """As Ctrl-C does not: what a server takes its time for is left to itself."""
    goes_on, begun = threading.Event(), threading.Barrier(3, timeout=30)

    def work(job: int) -> int:
        begun.wait()
        if job == 0:
            raise KeyboardInterrupt
        goes_on.wait(30)
        return job

    with pytest.raises(KeyboardInterrupt):
        in_parallel(work, [0, 1, 2, 3, 4], 3)
    assert not goes_on.is_set()
    goes_on.set()
    assert in_parallel(lambda job: 2 * job, range(100), 7) == [2 * job for job in range(100)]
