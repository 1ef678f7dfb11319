"""Several vLLM servers that share the work: they draw for the agent, or score for its teacher.

New weights travel through a folder that the servers see too.
"""

import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from agents.policies.policy import Sampling
from agents.policies.vllm.policy import Drawer, Drawn, Gap, VLLMError, Weights
from agents.policies.vllm.server import Server, ServerDownError
from distill.lm.span import Prefix
from distill.parallel import ALONE, Ranks
from experience.bounded_http import base_of, in_parallel
from experience.terminal import shown

PARALLEL = 64
"""Requests at a time, per server."""
FILE_BYTES = 1 << 30
"""Of weights on their way that are in memory at a time, and in one file."""
Job = TypeVar("Job")
Result = TypeVar("Result")


class Servers:
    """An ``Engine`` of one or more servers: replies are spread evenly, and asked again when one dies."""

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: Path | None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Make sure that all of them can be used.

        Args:
            urls: Of the servers.
            tokenizer: The agent's.
            weights: A folder that the servers see too, for new weights on their way; made when needed.
                Without one they keep the weights that they have.
            ranks: The processes that do this. Each asks its share of the servers, as long as one of it is
                left, or one of them where there are fewer servers than processes.

        Raises:
            VLLMError: One cannot be used.
        """
        self.name = "vLLM"
        self.holds: object = None
        self.together = 1
        self._servers = [Server(url) for url in dict.fromkeys(map(base_of, urls))]
        self._mine = self._servers[ranks.rank :: ranks.size] or [
            self._servers[ranks.rank % len(self._servers)]
        ]
        for server in self._servers:
            server.check_tokenizer(tokenizer)
        if weights is not None:
            ranks.from_main(self._reset)
        self.window = min(server.window for server in self._servers)
        self._weights = weights
        self._lock = threading.Lock()
        self._at_work = dict.fromkeys(self._servers, 0)

    def load(self, weights: Weights, ranks: Ranks = ALONE) -> None:
        """See ``Engine``: one process hands them over. Who fails to take them is not asked any more."""
        if self._weights is None:
            raise VLLMError("these servers are not to be given weights")
        if ranks.is_main:
            self._hand_over(weights, self._weights)
        else:
            for _ in weights:  # it may take all to put each of them together
                pass
        reasons = ranks.from_main(lambda: [server.down for server in self._servers])
        for server, reason in zip(self._servers, reasons, strict=True):
            server.down = server.down or reason  # of which the main process has told already

    def _reset(self) -> None:
        for server in self._servers:
            server.reset()

    def _hand_over(self, weights: Weights, into: Path) -> None:
        # Of its own, as it is removed again: who else has what in theirs is not known.
        folder = into.absolute() / f"served-weights-{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True)
            for number, tensors in enumerate(_files(weights)):
                save_file(tensors, folder / f"model-{number:05}.safetensors")
            alive = self._alive()
            in_parallel(partial(self._reload, folder), alive, len(alive))  # each takes as long as one
            self._alive()
        except (OSError, SafetensorError) as error:
            raise VLLMError(f"the servers' weights cannot be written to {folder}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _reload(self, folder: Path, server: Server) -> None:
        try:
            server.reload(folder)
        except ServerDownError as error:
            self._drop(server, str(error))

    def draw(
        self, prompts: Sequence[Prefix], seeds: Sequence[int], sampling: Sampling, stop_ids: Sequence[int]
    ) -> list[Drawn]:
        """See ``Engine``."""
        jobs = list(zip(prompts, seeds, strict=True))
        return self.each(jobs, lambda server, job: server.draw([job[0]], [job[1]], sampling, stop_ids)[0])

    def logprobs(self, sequences: Sequence[Prefix]) -> list[list[float]]:
        """See ``Engine``."""
        return self.each(sequences, lambda server, ids: server.logprobs([ids])[0])

    def tested(self, test: Callable[[Drawer], Gap]) -> list[Gap]:
        """See ``Engine``."""
        return self.all(test)

    def all(self, work: Callable[[Server], Result]) -> list[Result]:
        """Let each of this process's servers do the same; one that fails is dropped.

        Raises:
            VLLMError: No server is left, or one refuses.
        """
        results = []
        for server in self._near():
            try:
                results.append(work(server))
            except ServerDownError as error:
                self._drop(server, str(error))
        return results or self.all(work)  # until there is no server left

    def release(self) -> None:
        """See ``Engine``: their memory is their own."""

    def each(
        self,
        jobs: Sequence[Job],
        work: Callable[[Server, Job], Result],
        near: Sequence[Server | None] | None = None,
    ) -> list[Result]:
        """Let the servers do the jobs; one that fails is dropped, and another one does its jobs.

        Args:
            jobs: What is to be done.
            work: Does one.
            near: Who would do each best, as it is there.

        Raises:
            VLLMError: No server is left, or one refuses.
        """
        near = near or [None] * len(jobs)
        return in_parallel(
            lambda pair: self._anywhere(pair[0], work, pair[1]),
            list(zip(jobs, near, strict=True)),
            PARALLEL * len(self._near()),
        )

    def _anywhere(self, job: Job, work: Callable[[Server, Job], Result], first: Server | None) -> Result:
        while True:
            with self._lock:
                alive = self._near()
                server = first if first in alive else min(alive, key=lambda server: self._at_work[server])
                self._at_work[server] += 1
            try:
                return work(server, job)
            except ServerDownError as error:
                self._drop(server, str(error))
            finally:
                with self._lock:
                    self._at_work[server] -= 1

    def _alive(self) -> list[Server]:
        alive = [server for server in self._servers if server.down is None]
        if not alive:
            reasons = "; ".join(server.down or "" for server in self._servers)
            raise VLLMError(f"no server is left ({reasons}). Start them again and resume the run")
        return alive

    def _near(self) -> list[Server]:
        """Those that this process asks."""
        alive = self._alive()
        return [server for server in self._mine if server in alive] or alive

    def _drop(self, server: Server, reason: str) -> None:
        """It would miss new weights, so it stays out for good."""
        with self._lock:
            is_news, server.down = server.down is None, reason
        if is_news:
            warnings.warn(shown(f"not asked any more: {reason}"), stacklevel=2)


def _files(weights: Weights) -> Iterator[dict[str, torch.Tensor]]:
    """Weights in host memory, as many at a time as go into one file."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        tensors[name] = tensor.detach().cpu().clone()  # tied ones are two
        if sum(tensor.nbytes for tensor in tensors.values()) >= FILE_BYTES:
            yield tensors
            tensors = {}
    yield tensors
