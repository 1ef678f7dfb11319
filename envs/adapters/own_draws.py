"""Draws of its own for code that draws from Python's and numpy's common generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class OwnDraws:
    """The state of the common generators, as one game sees it.

    Without it what an episode draws would depend on the others that are played beside it.
    """

    def __init__(self, seed: int) -> None:
        """Both generators begin at ``seed``, of 32 bits."""
        self._python: Any = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed).get_state()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What runs inside draws from here; outside nothing is changed."""
        outside: Any = random.getstate(), np.random.get_state()
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            random.setstate(outside[0])
            np.random.set_state(outside[1])
