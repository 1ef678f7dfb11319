"""The checkpoint of a training, and its best weights: files of the run's folder, and what they cost."""

import math
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from agents.dealing import Distances
from agents.run.folder import BEST, CHECKPOINT, TRAIN_AGAIN, RunFolderError, clear_errors
from agents.run.parts import Parts
from agents.run.run import Run
from distill.lm.sealed import save_sealed
from distill.opcd import StepStats

WRITING_SHARE = 0.05
"""Of the time that training takes, what writing its files may take."""
LOST_SECONDS, LOST_FILES = 600.0, 5.0
"""Of training, what a kill may cost at most, but for one step, even if writing then takes more than that: so
many seconds, or where it is longer as long as this many files take."""

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
    best_round: int = 0
    """The round that this step was of; 0 is the beginning."""
    first: StepStats | None = None
    """The figures by which a collapse is known: those of the first step on the present kind of data."""
    distances: Distances = field(default_factory=dict)
    """What is known of this round's moments."""


_PROGRESS = TypeAdapter(Progress)


class Checkpoints:
    """The files of a training: the main process's, and of shards those of all."""

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
        """The checkpoint, from which every process looks up the same tensors; nothing if there is none.

        Raises:
            RunFolderError: It is damaged.
        """
        tensors, about = self._read(CHECKPOINT)
        if about is None:
            return tensors, None
        try:
            return tensors, _PROGRESS.validate_python(about)
        except ValidationError as error:
            raise RunFolderError(
                f"{CHECKPOINT} is damaged: {error.errors()[0]['msg']}. {TRAIN_AGAIN}"
            ) from error

    def save_best(self, weights: Tensors, step: int, score: float) -> None:
        """Write the best weights so far, those after ``step``.

        Raises:
            RunFolderError: They cannot be written.
        """
        self._write(BEST, weights, {"step": step, "score": score})

    def load_best(self, step: int) -> Tensors:
        """The best weights, which are those after ``step``; every process looks up the same.

        Raises:
            RunFolderError: They are damaged, missing, or others.
        """
        weights, about = self._read(BEST)
        if about is None or about.get("step") != step:
            raise RunFolderError(f"{BEST} is not the one of step {step}, which was the best. {TRAIN_AGAIN}")
        return weights

    def _write(self, name: str, mine: Tensors, about: Mapping[str, Any]) -> None:
        """Whole or not at all: of shards each process writes its own, and the main one last."""
        run, ranks, started = self._run, self._run.ranks, time.monotonic()
        parts = Parts(run.path / name, ranks.from_main(lambda: secrets.token_hex(4)), ranks.size)
        error: RunFolderError | None = None
        if mine and not ranks.is_main:
            try:
                with clear_errors(parts.file(ranks.rank)) as path:
                    save_sealed(mine, path, {})
            except RunFolderError as failed:
                error = failed
        others = ranks.gather([(error, bool(mine))])[1:]
        if failures := [error for error, _ in others if error is not None]:
            raise failures[0]
        if ranks.is_main:
            is_split = any(has for _, has in others)
            run.folder.save_tensors(name, mine, {**about, "parts": parts.as_dict()} if is_split else about)
            parts.remove_others()
        self._last_writing = time.monotonic() - started
        self._writing += self._last_writing

    def _read(self, name: str) -> tuple[Tensors, dict[str, Any] | None]:
        loaded: tuple[Tensors, dict[str, Any]] | None = None

        def read() -> dict[str, Any] | None:
            nonlocal loaded
            loaded = self._run.folder.load_tensors(name)
            return None if loaded is None else loaded[1]

        about = self._run.ranks.from_main(read)
        return self._run.ranks.mapping({} if loaded is None else loaded[0]), about
