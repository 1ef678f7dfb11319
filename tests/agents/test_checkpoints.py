"""When a checkpoint is written: neither so often that it costs much, nor so rarely that a kill does."""

import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.run.checkpoints import LOST_SECONDS, WRITING_SHARE, Checkpoints, Progress
from agents.run.folder import RunFolderError
from agents.run.interrupt import deferred_interrupt
from distill.parallel import Ranks

STEP = 20.0
"""Seconds that an optimiser step takes here."""


def hours_of_training(hours: float, writing: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When checkpoints are written, in seconds of training, if one takes ``writing`` seconds."""
    clock, trained, written = 0.0, 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: clock)

    def save(*_: Any) -> None:
        nonlocal clock
        clock += writing

    folder = SimpleNamespace(save_tensors=save)
    run: Any = SimpleNamespace(ranks=Ranks(), folder=folder, path=Path("nowhere"))
    checkpoints = Checkpoints(run)
    checkpoints.save_best({}, 0, 0.5)
    while trained < hours * 3600:
        with checkpoints.training():
            clock += STEP
            trained += STEP
        if checkpoints.is_due:
            checkpoints.save({}, Progress())
            written.append(trained)
    return written


@pytest.mark.parametrize("writing", [0.1, 5.0, 29.0])
def test_writing_takes_little_of_the_time_of_training(
    writing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = hours_of_training(5, writing, monkeypatch)
    assert (1 + len(written)) * writing <= WRITING_SHARE * 5 * 3600
    assert max(after - before for before, after in zip([0.0, *written], written, strict=False)) <= (
        2 * max(STEP, writing / WRITING_SHARE)
    )


@pytest.mark.parametrize(("writing", "lost"), [(60.0, LOST_SECONDS), (360.0, 1800.0)])
def test_a_kill_costs_ten_minutes_or_what_five_files_take(
    writing: float, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = hours_of_training(5, writing, monkeypatch)
    gaps = [after - before for before, after in zip([0.0, *written], written, strict=False)]
    assert lost <= min(gaps) <= max(gaps) <= lost + STEP


@pytest.mark.parametrize("damage", [{"round": "one"}, {"first": {"kl": 1.0}}, {"distances": [1]}])
def test_what_a_checkpoint_says_is_checked(damage: dict[str, Any]) -> None:
    folder = SimpleNamespace(load_tensors=lambda _: ({}, asdict(Progress()) | damage))
    run: Any = SimpleNamespace(ranks=Ranks(), folder=folder, path=Path("nowhere"))
    with pytest.raises(RunFolderError, match=r"is damaged: .*remove"):
        Checkpoints(run).load()


def test_an_interrupt_waits_and_then_comes_as_ever() -> None:
    """What its handler says of it is kept, such as which process is gone; and who ignores it still does."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt(1)

    done: list[int] = []

    def ends(number: int) -> None:
        with deferred_interrupt():
            signal.raise_signal(signal.SIGTERM)
            done.append(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            ends(1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ends(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done, caught.value.args) == ([1, 2], (1,))
