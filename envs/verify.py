"""Whether a reply gives the right answer."""

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found in a reply."""

    is_correct: bool
    answer: str | None
    """The final answer as it was read; ``None`` if there is none."""
    reason: str
    """Why it is right, wrong or unreadable."""


NUMBER = re.compile(r"-?[0-9]{1,100}(?:\.[0-9]{1,100})?(?:/[0-9]{1,100})?")


def verify(reply: str, gold: str) -> Verdict:
    """The last number of the reply against ``gold``."""
    numbers = NUMBER.findall(reply.replace(",", ""))
    if not numbers:
        return Verdict(is_correct=False, answer=None, reason="the reply has no answer")
    try:
        is_correct = Fraction(numbers[-1]) == Fraction(gold)
    except (ValueError, ZeroDivisionError):
        is_correct = numbers[-1] == gold
    return Verdict(is_correct=is_correct, answer=numbers[-1], reason="equal" if is_correct else "not equal")
