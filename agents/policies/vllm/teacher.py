"""A teacher on servers, which score the student's top-k tokens.

Each scored prefix is one request for one token, with the log-probabilities of the ids that are asked about.
So the scores have the teacher's temperature in them, whatever it is; the server's prefix cache computes what
prefixes share once. (``prompt_logprob_token_ids`` would score a whole completion in one request, but at
temperature 1 only, and not with every runner of vLLM.)
"""

import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from agents.policies.vllm.policy import VLLMError
from agents.policies.vllm.servers import MAX_IDS, Servers
from distill.lm.span import Span

PROBE = "Which way is the lake?"


class ServedTeacher:
    """A ``ScoringTeacher``."""

    def __init__(self, urls: Sequence[str], tokenizer: PreTrainedTokenizerBase, temperature: float) -> None:
        """Make sure that the servers can be used.

        Args:
            urls: Of servers of one model.
            tokenizer: The student's.
            temperature: At which it will be asked to score.

        Raises:
            VLLMError: One cannot be used, or does not apply the temperature.
        """
        self._servers = Servers(urls, tokenizer, weights=None)
        self.window = self._servers.window
        self._seconds = 0.0
        self._requests = 0
        prefix = tuple(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        ids_1K = torch.tensor([list(range(8))])
        plain, cooled = (self.score([Span.of(prefix)], [0], ids_1K, t) for t in (1.0, temperature))
        if temperature != 1 and torch.allclose(plain, cooled, atol=1e-4):
            raise VLLMError(
                f"the teacher at {urls[0]} gives log-probabilities at temperature 1 only: start it with "
                "--logprobs-mode processed_logprobs, or take --teacher-temperature 1"
            )
        self.cost()

    def score(
        self, spans: Sequence[Span], rows: Sequence[int], ids_TK: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """See ``ScoringTeacher``."""
        started = time.perf_counter()
        prefixes = [span.tokens[:end] for span in spans for end in range(span.start, len(span.tokens) + 1)]
        jobs = [(prefixes[row], ids_K) for row, ids_K in zip(rows, ids_TK.tolist(), strict=True)]
        scores = self._servers.each(jobs, lambda server, job: server.score(*job, temperature))
        self._seconds += time.perf_counter() - started
        self._requests += len(jobs) * -(-ids_TK.shape[1] // MAX_IDS)
        return torch.tensor(scores)

    def cost(self) -> dict[str, float]:
        """What scoring has cost since the last call, for the log."""
        cost = {"teacher_seconds": round(self._seconds, 3), "teacher_requests": self._requests}
        self._seconds, self._requests = 0.0, 0
        return cost
