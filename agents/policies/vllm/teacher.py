"""A teacher on servers, which score the tokens that the loss looks at, or name those they think likely.

Where the servers can, a completion is one request: it scores all positions of a prompt, at temperature 1. At
another temperature T one more number per position is enough, log Z, where Z is the sum of p^(1/T) over the
vocabulary: then log p_T = log p / T - log Z, exactly. Where the known tokens leave so little that the others
do not matter, Z comes from them alone (``normalisers``). For all other positions a server tells log p_T of
one token that is known, the likeliest, and log Z = log p / T - log p_T follows. That is one request for all
of a batch's, whose prefixes the server's cache has by then. A server whose model multiplies its logits by 1/T
needs no such number: what it calls temperature 1 is T (docs/vllm.md).

Servers that cannot are asked after each prefix for one token, with the log-probabilities of the ids.
"""

import math
import time
import warnings
from collections.abc import Sequence
from itertools import accumulate

import torch
from transformers import PreTrainedTokenizerBase

from agents.policies.vllm.policy import VLLMError
from agents.policies.vllm.server import MAX_IDS, Server, ServerDownError
from agents.policies.vllm.servers import Servers
from distill.lm.span import Prefix, Span
from distill.parallel import ALONE, Ranks
from experience.terminal import shown

PROBE = "Which way is the lake?"
EXACT = 2e-5
"""By how many nats a normaliser may be off; one that may be further off is asked for."""
ROUNDING = 1e-6
"""What rounding may take from the probability that the known tokens leave."""
AGREEMENT = 0.1
"""Between two ways to the same log-probability, in nats: 16 bits are no better than that."""
MISUNDERSTOOD = 4 * AGREEMENT
"""By how many nats, of temperature 1, a normaliser is beyond what bounds it when the server means something
else: as one that was begun anew without its flags does."""
MAX_TOKENS = 1 << 20
"""Of the prefixes in one request."""


class ServedTeacher:
    """A ``ScoringTeacher``."""

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        temperature: float,
        k: int = 8,
        ranks: Ranks = ALONE,
    ) -> None:
        """Make sure that the servers can be used.

        Args:
            urls: Of servers of one model.
            tokenizer: The student's.
            temperature: At which it will be asked to score.
            k: How many tokens it will be asked about at each position.
            ranks: See ``Servers``.

        Raises:
            VLLMError: One cannot be used, or does not apply the temperature.
        """
        self.servers = Servers(urls, tokenizer, weights=None, ranks=ranks)
        self.servers.window -= 1  # a completion is scored as a prompt of one token more
        self.window = self.servers.window
        self._seconds = 0.0
        self._requests = 0
        self._at_once = False
        probe = Span(tuple(tokenizer(PROBE, add_special_tokens=False)["input_ids"]), 1)
        ids_TK = torch.arange(min(k, len(tokenizer))).repeat(probe.size, 1)

        def score(temperature: float) -> torch.Tensor:
            return self.score([probe], [probe.size - 1], ids_TK[-1:], temperature)

        plain, cooled = score(1.0), score(temperature)
        if temperature != 1 and torch.allclose(plain, cooled, atol=1e-4):
            raise VLLMError(
                f"the teacher at {urls[0]} gives log-probabilities at temperature 1 only: start it with "
                "--logprobs-mode processed_logprobs, or take --teacher-temperature 1"
            )
        try:
            self.servers.all(lambda server: server.prompt_scores(probe, ids_TK.tolist()))
        except ServerDownError:
            raise
        except VLLMError as error:
            message = (
                f"the teacher is asked once per token, and not once per completion: {error}. What it takes "
                f"is vllm serve --enable-scale-out --max-logprobs {ids_TK.shape[1]}, on a GPU"
            )
            warnings.warn(shown(message), stacklevel=2)
        else:
            self._at_once = True
            if not torch.allclose(score(temperature), cooled, atol=AGREEMENT):
                raise _inconsistent(urls[0])
        self.cost()

    def score(
        self, spans: Sequence[Span], rows: Sequence[int], ids_TK: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """See ``ScoringTeacher``."""
        started = time.perf_counter()
        asked, ids = _runs(spans, rows), ids_TK.tolist()
        if self._at_once:
            ends = list(accumulate(run.size for run in asked))
            jobs = [(run, ids[end - run.size : end]) for run, end in zip(asked, ends, strict=True)]
            answers = self.servers.each(jobs, lambda server, job: (server, server.prompt_scores(*job)))
            self._requests += len(jobs)
            known_TK = torch.cat([torch.from_numpy(scores) for _, scores in answers])
            scores_TK = self._tempered(asked, [server for server, _ in answers], ids, known_TK, temperature)
        else:
            each = list(zip(_places(asked), ids, strict=True))
            scores_TK = torch.tensor(
                self.servers.each(
                    each, lambda server, job: server.score(_prefix(job[0]), job[1], temperature)
                )
            )
            self._requests += len(each) * -(-ids_TK.shape[1] // MAX_IDS)
        self._seconds += time.perf_counter() - started
        return scores_TK

    def top(
        self, spans: Sequence[Span], rows: Sequence[int], k: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``ScoringTeacher``."""
        started = time.perf_counter()
        asked = _runs(spans, rows)
        answers = self.servers.each(asked, lambda server, run: (server, server.prompt_top(run, k)))
        self._requests += len(asked)
        best = [scores for _, run in answers for scores in run]
        ids, known_TK = [list(scores) for scores in best], torch.tensor([list(s.values()) for s in best])
        scores_TK = self._tempered(
            asked, [server for server, _ in answers], ids, known_TK, temperature, are_likeliest=True
        )
        self._seconds += time.perf_counter() - started
        return torch.tensor(ids), scores_TK

    def _tempered(
        self,
        asked: Sequence[Span],
        servers: Sequence[Server],
        ids: Sequence[Sequence[int]],
        logprobs_TK: torch.Tensor,
        temperature: float,
        *,
        are_likeliest: bool = False,
    ) -> torch.Tensor:
        """What log-probabilities at temperature 1 are at another one.

        Args:
            asked: Where they stand.
            servers: Who gave those of each span, and so has its prefixes in its cache.
            ids: Whose they are, T times K.
            logprobs_TK: At temperature 1.
            temperature: The other one.
            are_likeliest: Whether no other token is likelier.
        """
        if temperature == 1:
            return logprobs_TK
        logprobs_TK = logprobs_TK.double()
        log_z_T, error_T = normalisers(logprobs_TK, temperature, are_likeliest=are_likeliest)
        places = _places(asked)
        near = [server for run, server in zip(asked, servers, strict=True) for _ in range(run.size)]
        jobs: list[list[int]] = []
        tokens = 0
        # One server's side by side.
        for t in sorted((error_T > EXACT).nonzero()[:, 0].tolist(), key=lambda t: near[t].url):
            tokens += places[t][1]
            if not jobs or tokens > MAX_TOKENS or near[t] is not near[jobs[-1][0]]:
                jobs.append([])
                tokens = places[t][1]
            jobs[-1].append(t)

        def ask(server: Server, batch: Sequence[int]) -> list[float]:
            prefixes = [_prefix(places[t]) for t in batch]
            answers = server.next_best(prefixes, temperature)
            numbers = []
            for t, prefix, told in zip(batch, prefixes, answers, strict=True):
                known = dict(zip(ids[t], logprobs_TK[t].tolist(), strict=True))
                if not told.keys() & known.keys():
                    told = {ids[t][0]: server.score(prefix, ids[t][:1], temperature)[0]}
                token = max(told.keys() & known.keys(), key=known.__getitem__)
                number = known[token] / temperature - told[token]
                if abs(number - float(log_z_T[t])) > float(error_T[t]) + MISUNDERSTOOD / temperature:
                    raise _inconsistent(server.url)
                numbers.append(number)
            return numbers

        self._requests += len(jobs)
        for batch, numbers in zip(
            jobs, self.servers.each(jobs, ask, [near[batch[0]] for batch in jobs]), strict=True
        ):
            log_z_T[batch] = torch.tensor(numbers, dtype=torch.float64)
        return (logprobs_TK / temperature - log_z_T[:, None]).float()

    def cost(self) -> dict[str, float]:
        """What scoring has cost since the last call, for the log."""
        cost = {"teacher_seconds": round(self._seconds, 3), "teacher_requests": self._requests}
        self._seconds, self._requests = 0.0, 0
        return cost


def _inconsistent(url: str) -> VLLMError:
    return VLLMError(
        f"the teacher at {url} scores the tokens of a prompt and the next one differently: start it with "
        "--logprobs-mode processed_logprobs"
    )


def normalisers(
    logprobs_TK: torch.Tensor, temperature: float, *, are_likeliest: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log Z, where Z is the sum of p^(1/temperature) over the vocabulary, from what is known of p.

    Below temperature 1 the other tokens' part of Z is at most their probability, times that of the likeliest
    of them to the power 1/temperature - 1; they are no likelier than all of them together. Half of it is
    counted.

    Args:
        logprobs_TK: Of the known tokens, at temperature 1, in fp64.
        temperature: The other one.
        are_likeliest: Whether no other token is likelier than the known ones.

    Returns:
        [T]: log Z, and by how much it may be off; infinity above temperature 1, where nothing bounds it.
    """
    log_known_T = (logprobs_TK / temperature).logsumexp(-1)
    if temperature > 1:
        return log_known_T, torch.full_like(log_known_T, torch.inf)
    others_T = (1 - logprobs_TK.exp().sum(-1)).clamp(min=0) + ROUNDING
    likeliest_T = others_T
    if are_likeliest:
        likeliest_T = torch.minimum(others_T, logprobs_TK.amin(-1).exp())
    log_half_T = others_T.log() + (1 / temperature - 1) * likeliest_T.log() - math.log(2)
    error_T = (log_half_T - log_known_T).exp().log1p()
    return log_known_T + error_T, error_T


def _runs(spans: Sequence[Span], rows: Sequence[int]) -> list[Span]:
    """The chosen rows of the spans' prefixes, laid end to end, as spans whose prefixes they are."""
    places = [
        (index, end) for index, span in enumerate(spans) for end in range(span.start, len(span.tokens) + 1)
    ]
    runs: list[list[tuple[int, int]]] = []
    for index, end in (places[row] for row in rows):
        if not runs or runs[-1][-1] != (index, end - 1):
            runs.append([])
        runs[-1].append((index, end))
    return [Span(spans[run[0][0]].tokens[: run[-1][1]], run[0][1]) for run in runs]


def _places(spans: Sequence[Span]) -> list[tuple[Span, int]]:
    """Each prefix of the spans as its span and length; cut, they would take the square of its length."""
    return [(span, end) for span in spans for end in range(span.start, len(span.tokens) + 1)]


def _prefix(place: tuple[Span, int]) -> Prefix:
    span, end = place
    return span.tokens[:end]
