"""The checkpoint of a training, and its best weights: files of the run's folder, and what they cost."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from agents.dealing import Distances
from agents.run.folder import BEST, CHECKPOINT, TRAIN_AGAIN, RunFolderError
from agents.run.run import Run
from distill.opcd import StepStats

WRITING_SHARE = 0.05
"""Of the time that training takes, what writing its files may take."""
LOST_SECONDS, LOST_FILES = 600.0, 5.0
"""Of training, what a kill may cost at most, but for one step, even if writing then takes more than that: so
many seconds, or where it is longer as long as so many files take."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is: what a checkpoint says beside its tensors."""

    round: int = 0
    """The last that was trained."""
    round_start: int = 0
    """Optimiser steps before it."""
    is_stopped: bool = False
    """Whether it was ended early."""
    best_score: float = -math.inf
    """On validation, of the best weights so far."""
    best_step: int = -1
    """The optimiser step after which they were saved; below 0 there are none."""
    first: StepStats | None = None
    """The figures by which a collapse is known: those of the first step on the present kind of data."""
    distances: Distances = field(default_factory=dict)
    """What is known of this round's moments."""


class Checkpoints:
    """The files of a training. The main process writes and reads them."""

    def __init__(self, run: Run) -> None:
        """Of a run whose folder is open; nothing is read yet."""
        self._run = run
        self._training = self._writing = self._last_writing = self._kept = 0.0
        """Seconds so far: of training, of writing files, of the last file, and of training that is kept."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """What is done within is training, and its time pays for writing."""
        started = time.monotonic()
        yield
        self._training += time.monotonic() - started

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint, at the price of the last file, leaves enough time to training; or has to be.

        When it is written says nothing about what is computed: from any of them a run ends the same.
        """

        def decide() -> bool:
            is_cheap = self._writing + self._last_writing <= WRITING_SHARE * self._training
            lost = self._training - self._kept
            return is_cheap or lost >= max(LOST_SECONDS, LOST_FILES * self._last_writing)

        return self._run.ranks.from_main(decide)

    def save(self, tensors: Tensors, progress: Progress) -> None:
        """Write the checkpoint: all that the next step depends on.

        Raises:
            RunFolderError: It cannot be written.
        """
        self._write(CHECKPOINT, tensors, asdict(progress))
        self._kept = self._training

    def load(self) -> tuple[Tensors, Progress | None]:
        """The checkpoint, its tensors on the main process; nothing if there is none.

        Raises:
            RunFolderError: It is damaged.
        """
        tensors, about = self._read(CHECKPOINT)
        if about is None:
            return tensors, None
        first = about["first"]
        return tensors, Progress(**about | {"first": None if first is None else StepStats(**first)})

    def save_best(self, weights: Tensors, step: int, score: float) -> None:
        """Write the best weights so far, those after ``step``.

        Raises:
            RunFolderError: They cannot be written.
        """
        self._write(BEST, weights, {"step": step, "score": score})

    def load_best(self, step: int) -> Tensors:
        """The best weights, which are those after ``step``; on the main process.

        Raises:
            RunFolderError: They are damaged, missing, or others.
        """
        weights, about = self._read(BEST)
        if about is None or about["step"] != step:
            raise RunFolderError(f"{BEST} is not the one of step {step}, which was the best. {TRAIN_AGAIN}")
        return weights

    def _write(self, name: str, tensors: Tensors, about: Mapping[str, Any]) -> None:
        if self._run.ranks.is_main:
            started = time.monotonic()
            self._run.folder.save_tensors(name, tensors, about)
            self._last_writing = time.monotonic() - started
            self._writing += self._last_writing

    def _read(self, name: str) -> tuple[Tensors, dict[str, Any] | None]:
        loaded = self._run.folder.load_tensors(name) if self._run.ranks.is_main else None
        tensors, about = loaded or ({}, None)
        return tensors, self._run.ranks.broadcast(about)
