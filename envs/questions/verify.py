"""Whether a reply gives the right answer. Replies are hostile until shown otherwise.

How a verdict comes about, with a file for each step, most of them in ``judge/``. The end of what a reply says
is written in one way (``notation``), and what it takes back or only checks is left out (``corrections``). Its
answer stands in a box or behind a mark (``marks``), else it is what the text comes to (``conclusions``): of
that the first clause counts (``clauses``), of a clause its formula (``formulas``), and a number that is said
twice once (``restated``). So the final answer is read, cut and uncut (``answers``, beside this). It is
compared with the right one (``equality``): as a letter (``options``), a ratio or a time (``ratios``), the
value of an equation (``equations``) which has to be worked out (``solved``), a number with its unit
(``numbers``, ``units``), items of a list (``lists``, ``sets``) or words (``wording``). What this does not
decide is made LaTeX (``typed``), and judged by math-verify in worker processes that have a deadline, a memory
limit and few rights (``verify_worker``, beside this); there a task's own scorer runs too.
A reply that may mean several things (``readings``) is right if one of them is.
"""

import atexit
import base64
import json
import os
import pickle
import re
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from envs.questions.answers import final_answer, gold_answer, statement_of, uncut_answers, whole_answers
from envs.questions.judge.equality import Undecided, compare
from envs.questions.judge.notation import depths
from envs.questions.judge.numbers import MAX_CHARS, MAX_DIGITS
from envs.questions.judge.options import labelled
from envs.questions.judge.readings import readings
from envs.questions.judge.wording import is_text, same_words
from envs.words import EnvError

CPU_SECONDS = 1.0
"""Processor time that judging one answer may take, unless the verifier is told otherwise."""
HANG_SECONDS = 60.0
"""By the clock: what has not judged by then hangs. A busy machine must not get here."""
WORKERS = 2
"""Processes of a pool at most."""
MEMORY_BYTES = 1 << 30
"""Address space of a worker."""
MAX_DEPTH = 12
"""Brackets in brackets that a parser is given."""
_WORKER = Path(__file__).with_name("verify_worker.py")
START_SECONDS = 100.0
"""A worker that is not ready by then never will be."""
STARTS = 3
"""How many workers may end before they are ready, as when memory is short, until no other is begun."""

_Job = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found in a reply."""

    is_correct: bool
    answer: str | None
    """The final answer as it was read; ``None`` if there is none that can be read."""
    reason: str
    """Why it is right, wrong, unreadable or not judged."""
    is_judged: bool = True
    """Whether the answer was judged at all; if not, it is neither right nor wrong."""


class Verifier(AbstractContextManager["Verifier", None]):
    """Judges replies, with worker processes that start when they are first needed."""

    def __init__(self, scorer: tuple[str, str] | None = None, *, cpu_seconds: float = CPU_SECONDS) -> None:
        """Prepare a pool; for ``score`` with a reasoning-gym task and its config as JSON."""
        task = None if scorer is None else (scorer[0], json.loads(scorer[1]))
        limits = {"cpu_s": cpu_seconds, "hang_s": HANG_SECONDS, "memory_bytes": MEMORY_BYTES}
        self._settings = json.dumps({"scorer": task, **limits})
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, reply: str, gold: str) -> Verdict:
        """Whether the reply's final answer equals ``gold``; see ``verify_many``."""
        return self.verify_many([(reply, gold)])[0]

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        r"""A verdict per reply.

        Args:
            pairs: Replies, of any content, each with the right answer, which may be the end of a solution
                (``#### 42``, ``\boxed{42}``).

        Raises:
            EnvError: No worker starts.
        """
        decided = [_without_worker(reply, gold) for reply, gold in pairs]
        hard = [rest for item in decided if isinstance(item, list) for _, rest in item]
        results = iter(self._run([{"answer": rest.answer, "gold": rest.gold} for rest in hard]))
        return [
            item if isinstance(item, Verdict) else _best([_verdict(said, next(results)) for said, _ in item])
            for item in decided
        ]

    def score(self, reply: str, entry: dict[str, Any]) -> Verdict:
        """Whether the task's own scorer is content with the reply's answer."""
        answers = whole_answers(reply)
        if not answers:
            return Verdict(is_correct=False, answer=None, reason="the reply has no answer")
        pickled = base64.b64encode(pickle.dumps(entry)).decode()
        [result] = self._run([{"answers": answers, "entry": pickled}])
        return _verdict(answers[0], result)

    def close(self) -> None:
        """End the workers; the next answer starts others."""
        with self._lock:
            for worker in self._workers:
                worker.close()
            self._workers.clear()

    def _run(self, jobs: Sequence[_Job]) -> list[_Job]:
        """The result of each job, in order; what was not judged is asked again once."""
        try:
            with self._lock:
                results = self._run_locked(jobs)
                again = [number for number, result in enumerate(results) if "not_judged" in result]
                for number, result in zip(again, self._run_locked([jobs[n] for n in again]), strict=True):
                    results[number] = result
                return results
        except BaseException:  # Ctrl-C, too: a worker's late answer must not pass for the next one
            self.close()
            raise

    def _run_locked(self, jobs: Sequence[_Job]) -> list[_Job]:
        results: list[_Job] = [{}] * len(jobs)
        waiting, missing, unborn = deque(enumerate(jobs)), len(jobs), 0
        with selectors.DefaultSelector() as selector:
            while missing:
                while len(self._workers) < min(WORKERS, missing + 1):  # one to spare for the next answer
                    self._workers.append(_Worker(self._settings))
                for worker in self._workers:
                    if worker.is_idle and waiting:
                        worker.send(*waiting.popleft())
                for worker in self._workers:
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                soonest = min(worker.deadline for worker in self._workers)
                ready = [key.data for key, _ in selector.select(max(0.0, soonest - time.monotonic()))]
                for worker in list(self._workers):
                    selector.unregister(worker.output)
                    number = worker.number
                    result = worker.receive() if worker in ready else worker.overdue()
                    if result is None:
                        continue
                    if worker.is_dead:
                        worker.close()
                        self._workers.remove(worker)
                        unborn += not worker.is_ready
                        if unborn == STARTS:
                            raise EnvError(
                                f"a verification worker did not start (exit code {worker.exit_code})"
                            )
                    if number is not None:
                        results[number] = result
                        missing -= 1
        return results


class _Worker:
    """One worker process and the job that it is at."""

    def __init__(self, settings: str) -> None:
        # By its path, so that it imports nothing of this program; one thread, since it forks.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        self.number: int | None = None
        """The job's, if there is one."""
        self.is_idle = False
        self.is_dead = False
        self.deadline = time.monotonic() + START_SECONDS
        self.is_ready = False
        self._line = b""

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def send(self, number: int, job: _Job) -> None:
        assert self._process.stdin is not None
        self.number, self.is_idle = number, False
        # The worker ends itself in time; this is for one that cannot.
        self.deadline = time.monotonic() + 1.5 * HANG_SECONDS
        with suppress(BrokenPipeError):  # which the end of its output tells
            self._process.stdin.write(json.dumps(job).encode() + b"\n")

    def receive(self) -> _Job | None:
        """What the worker says; ``None`` if it is not finished."""
        chunk = os.read(self.output, 1 << 16)
        self._line += chunk
        if not chunk:
            return self._died("its judge was ended")
        if not self._line.endswith(b"\n"):
            return None
        result: _Job = json.loads(self._line.splitlines()[-1])
        self._line, self.is_ready = b"", True
        self.is_idle, self.number, self.deadline = True, None, float("inf")
        return result

    def overdue(self) -> _Job | None:
        """What to say of a job whose time is up; ``None`` if it is not."""
        return self._died("its judge hangs") if time.monotonic() > self.deadline else None

    def _died(self, reason: str) -> _Job:
        self.is_dead = True
        return {"not_judged": reason}

    def close(self) -> None:
        self._process.kill()  # its child, if at a job, ends itself in time
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def can_be_given(gold: str) -> bool:
    """Whether a reply that is ``gold`` to the letter is right: thoughts and what is too long are not read."""
    verdict = _without_worker(gold, gold)
    return isinstance(verdict, Verdict) and verdict.is_correct


def shared_verifier(scorer: tuple[str, str] | None = None) -> Verifier:
    """This process's ``Verifier``, which lives as long as the process."""
    return _shared_verifier(os.getpid(), scorer)


@cache
def _shared_verifier(pid: int, scorer: tuple[str, str] | None) -> Verifier:
    # By process id: a fork must not talk to its parent's workers.
    verifier = Verifier(scorer)
    atexit.register(verifier.close)
    return verifier


def _without_worker(reply: str, gold: str) -> Verdict | list[tuple[str, Undecided]]:
    """The verdict, if it can be given here; otherwise what is to be compared, of each reading."""
    gold, wrong, hard = _gold_answer(gold), [], []
    for reading in readings(reply, gold):
        found = _decided(reading, gold)
        if not isinstance(found, Verdict):
            hard.append(found)
        elif found.is_correct:
            return found
        else:
            wrong.append(found)
    return hard or wrong[0]


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several readings: one is right, or not judged, or all are wrong."""
    return max(verdicts, key=lambda verdict: (verdict.is_correct, not verdict.is_judged))


def _decided(reply: str, gold: str) -> Verdict | tuple[str, Undecided]:
    answer = None
    if (statement := statement_of(reply)) is not None:
        if same := next((said for said in uncut_answers(statement) if same_words(said, gold)), None):
            return Verdict(is_correct=True, answer=same, reason="the same")
        letter, words = labelled(gold)
        is_choice = letter is not None and not words
        answer = final_answer(statement, is_text=is_text(gold.replace(",", " ")), is_choice=is_choice)
    if answer is None:
        return Verdict(is_correct=False, answer=None, reason="the reply has no answer")
    if (reason := refusal(answer)) is not None:
        return Verdict(is_correct=False, answer=None, reason=reason)
    decision = compare(answer, gold)
    if isinstance(decision, Undecided):
        return answer, decision
    return Verdict(is_correct=decision.is_correct, answer=answer, reason=decision.reason)


_gold_answer = lru_cache(maxsize=4096)(gold_answer)


def refusal(answer: str) -> str | None:
    """Why the answer is not worth a parser's time; ``None`` if it is."""
    if len(answer) > MAX_CHARS:
        return f"the answer has {len(answer)} characters, more than {MAX_CHARS}"
    if (deepest := max(depths(answer), default=0)) > MAX_DEPTH:
        return f"the answer has brackets {deepest} deep, more than {MAX_DEPTH}"
    if re.search(f"[0-9]{{{MAX_DIGITS + 1}}}", answer):
        return f"the answer has a number of more than {MAX_DIGITS} digits"
    if re.search(r"(?:\^|\*\*)[\s{(+-]*[0-9,]{5,}|[0-9]{4,}[\s})]*!", answer):
        return "the answer has a power or factorial that is too large"
    if "__" in answer:
        return "the answer is not mathematics"
    return None


def _verdict(answer: str, result: _Job) -> Verdict:
    """A worker's result as a verdict."""
    if (reason := result.get("not_judged")) is not None:
        return Verdict(is_correct=False, answer=answer, reason=f"not judged: {reason}", is_judged=False)
    if (failure := result.get("failed")) is not None:
        return Verdict(is_correct=False, answer=answer, reason=f"the answer {failure}")
    is_correct = result.get("is_correct") is True
    return Verdict(is_correct=is_correct, answer=answer, reason="equal" if is_correct else "not equal")
