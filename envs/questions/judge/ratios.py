"""Ratios, and times of day."""

import re
from fractions import Fraction

from envs.questions.judge.notation import unstyled

_RATIO = re.compile(
    r"(?P<ratio>[0-9]{1,9}(?:\.[0-9]{1,9})?(?:\s*:\s*[0-9]{1,9}(?:\.[0-9]{1,9})?){1,9})"
    r"(?:\s*(?P<half>[apAP])\.?\s?[mM]\b\.?)?"
)
"""A ratio, or a time of day with its half of the day."""
_IN_WORDS = re.compile(r"^(?:.*\bis )?([0-9.]{1,9})\s+to\s+([0-9.]{1,9})$")
_TIME = re.compile(r"[0-9]{1,2}(?::[0-5][0-9]){1,2}")


def are_same_ratio(answer: str, gold: str) -> bool | None:
    """Whether two times of day are the same, or two ratios; ``None`` if they are none."""
    said, right = (_RATIO.fullmatch(_IN_WORDS.sub(r"\1:\2", unstyled(text))) for text in (answer, gold))
    if said is None or right is None:
        return None
    if _TIME.fullmatch(said["ratio"]) and _TIME.fullmatch(right["ratio"]):
        return _are_same_time(said, right)
    if said["half"] or right["half"]:
        return False
    parts, gold_parts = ([Fraction(part) for part in ratio["ratio"].split(":")] for ratio in (said, right))
    total, gold_total = sum(parts), sum(gold_parts)
    return total > 0 and [part * gold_total for part in parts] == [part * total for part in gold_parts]


def _are_same_time(answer: re.Match[str], gold: re.Match[str]) -> bool:
    """2:30 PM is 14:30, and may go without its PM."""
    (hour, _, rest), (gold_hour, _, gold_rest) = (time["ratio"].partition(":") for time in (answer, gold))
    of_day, gold_of_day = (
        int(h) if time["half"] is None else int(h) % 12 + 12 * (time["half"] in "pP")
        for h, time in ((hour, answer), (gold_hour, gold))
    )
    is_marked = answer["half"] is not None and gold["half"] is not None
    return rest == gold_rest and (of_day == gold_of_day or (int(hour) == int(gold_hour) and not is_marked))
