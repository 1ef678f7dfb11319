"""How far a student is from its teacher at the places of a batch, whoever the teacher is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from distill.chunked_loss import KLResult, chunked_kl, topk_ids
from distill.examples import DistillError, DistillExample, Scored, scored
from distill.kl_rows import ScoredTopK
from distill.lm.head import LMHead
from distill.lm.language_model import LanguageModel
from distill.lm.span import Span
from distill.lm.transfer import sent
from distill.loss import Direction, Mode, check_top_k
from distill.teacher import ScoringTeacher, Teacher

COMPARED = 16
"""Completions that are compared at once, where nothing is trained."""


class States(NamedTuple):
    """What a model has at the places of a batch."""

    hidden_TD: torch.Tensor
    head: LMHead
    """What reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLComparison:
    """The KL between a student and a teacher; its settings are those of ``OPCD``."""

    teacher: Teacher | ScoringTeacher
    k: int
    mode: Mode
    temperature: float
    teacher_temperature: float
    vocabulary: int
    chunk: int
    narrow: torch.dtype | None
    """What the loss multiplies in; a CPU widens instead, and loses nothing."""

    def __post_init__(self) -> None:
        try:
            check_top_k(self.k, self.mode)
        except ValueError as error:
            raise DistillError(str(error)) from error
        if isinstance(self.teacher, ScoringTeacher) and (self.mode == "full" or self.k >= self.vocabulary):
            raise DistillError(
                "a teacher on a server is known at a top-k only: take a loss other than full, and a top-k "
                f"below the {self.vocabulary} tokens"
            )

    def teachers(self, places: Scored, rows: slice | torch.Tensor) -> States | None:
        """What the teacher has at the places' ``rows_of``.

        ``None`` of one that is asked about the student's likeliest tokens.
        """
        if isinstance(self.teacher, ScoringTeacher):
            return None
        return States(self.teacher.along(places.teacher)[rows], self.teacher.head)

    def kl(
        self,
        student: States,
        teacher: States | None,
        places: Scored,
        weight_T: torch.Tensor,
        direction: Direction,
    ) -> KLResult:
        """What the student says next at each place, against what the teacher says there; see ``teachers``.

        ``weight_T`` is what each place counts.

        Raises:
            DistillError: The teacher's likeliest tokens are none of the student's.
        """
        mine, theirs, known = self._read(student, self.temperature), None, None
        if isinstance(self.teacher, ScoringTeacher):
            known = self._asked(self.teacher, mine, places, direction)
        else:
            assert teacher is not None
            theirs = self._read(teacher, self.teacher_temperature)
        return chunked_kl(
            direction,
            mine.hidden_TD,
            mine.head.weight_VD,
            theirs and theirs.hidden_TD,
            theirs and theirs.head.weight_VD,
            k=self.k,
            mode=self.mode,
            chunk=self.chunk,
            weights_T=weight_T,
            student_map=mine.head.map,
            teacher_map=theirs and theirs.head.map,
            scored=known,
        )

    def _read(self, states: States, temperature: float) -> States:
        head = states.head.cut(self.vocabulary).at(temperature).narrowed(self.narrow)
        return States(states.hidden_TD.to(self.narrow or states.hidden_TD.dtype), head)

    def _asked(
        self, teacher: ScoringTeacher, student: States, places: Scored, direction: Direction
    ) -> ScoredTopK:
        hidden_TD, head = student
        spans, rows, temperature = places.teacher, places.rows, self.teacher_temperature
        if direction != "forward":
            head_VD = head.weight_VD.detach()
            ids_TK = topk_ids(hidden_TD.detach(), head_VD, k=self.k, chunk=self.chunk, map=head.map)
            scores_TK = teacher.score(spans, rows, ids_TK, temperature)
        else:
            ids_TK, scores_TK = teacher.top(spans, rows, self.k, temperature)
            if (strange := int(ids_TK.max())) >= self.vocabulary:
                raise DistillError(
                    f"token {strange} is among the teacher's likeliest, and the student knows "
                    f"{self.vocabulary}: lower --top-k, or take another direction than forward"
                )
        return ScoredTopK(*(tensor.to(hidden_TD.device) for tensor in (ids_TK, scores_TK)))

    @torch.no_grad()
    def divergences(self, student: LanguageModel, examples: Sequence[DistillExample]) -> list[float]:
        """KL(student || teacher) of each completion, the mean over its tokens, in nats; nothing is trained.

        Both are at the temperatures of the training, and what is not in the student's top-k is one bucket.
        All completions are on this process.

        Raises:
            DistillError: A sequence does not fit a context window.
        """
        self.check_windows(examples, student.window)
        # Detached, since the loss makes gradients on its way there, whether torch keeps any or not.
        head = replace(student.head, weight_VD=student.head.weight_VD.detach())
        judge, device = replace(self, mode="tail"), head.weight_VD.device
        passes = []
        for first in range(0, len(examples), COMPARED):
            places = scored(examples[first : first + COMPARED])
            rows = rows_of(places, device)
            mine = States(student.along(places.student)[rows], head)
            weight_T = torch.tensor(places.weights, device=device)
            result = judge.kl(mine, self.teachers(places, rows), places, weight_T, "reverse")
            passes.append((places, result.kl_T))
        return list(of_each(examples, passes))

    def check_windows(self, examples: Sequence[DistillExample], student_window: int) -> None:
        """Make sure that the examples can be read.

        Raises:
            DistillError: A sequence does not fit a context window.
        """
        for e in examples:
            for who, prompt_ids, window in (
                ("student", e.student_prompt_ids, student_window),
                ("teacher", e.teacher_prompt_ids, self.teacher.window),
            ):
                if (length := len(prompt_ids) + len(e.completion_ids)) > window:
                    raise DistillError(
                        f"a prompt of {len(prompt_ids)} tokens and its completion of "
                        f"{len(e.completion_ids)} make {length}, and the {who}'s context window is "
                        f"{window}: shorten the prompt or its context"
                    )


def of_each(
    examples: Sequence[DistillExample], passes: Sequence[tuple[Scored, torch.Tensor]]
) -> tuple[float, ...]:
    """The mean KL over each completion's tokens."""
    found: dict[tuple[Span, Span], float] = {}
    for places, kl_T in passes:
        kls = kl_T.tolist()
        for pair, rows in zip(zip(places.student, places.teacher, strict=True), places.of_pair, strict=True):
            found[pair] = sum(kls[row] for row in rows) / len(rows)
    return tuple(found[example.spans] for example in examples)


def rows_of(places: Scored, device: torch.device) -> slice | torch.Tensor:
    """The index of the distinct ones among the prefixes; everything, where all are, costs nothing."""
    total = sum(span.size for span in places.student)
    return slice(None) if len(places.rows) == total else sent(places.rows, device)
