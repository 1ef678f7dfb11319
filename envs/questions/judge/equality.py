"""Whether an answer is the right one, as far as that can be said without a parser of mathematics."""

import re
from dataclasses import dataclass

from envs.questions.judge.equations import are_two, disagree, is_list, sides, values
from envs.questions.judge.lists import Items, items_of, ordered
from envs.questions.judge.numbers import compare_numbers, plain_number
from envs.questions.judge.options import chosen, labelled, labelled_value
from envs.questions.judge.ratios import are_same_ratio
from envs.questions.judge.sets import BOUND, as_set, is_range
from envs.questions.judge.solved import is_unfinished
from envs.questions.judge.typed import as_latex
from envs.questions.judge.wording import is_text, same_text, says


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an answer is right, and why."""

    is_correct: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """What a parser must compare, as LaTeX: of two lists only the items in which they may differ."""

    answer: str
    gold: str


_SAME = Decision(True, "the same")
_EQUAL = Decision(True, "equal")
_UNEQUAL = Decision(False, "not equal")
_UNFINISHED = Decision(False, "not worked out")
_NUMBERED = re.compile(r"^\s*\\(?:text|math)(?:bf)?\s*\{\s*\(([0-9]+)\)\s*\}\s*$")
"""A number set as the wiki of a contest sets it."""
_BASED = re.compile(r"\s*\(?(-?[0-9A-F]+)\)?_\{?([0-9]+)\}?\s*")
"""A number with its base."""
_COLUMN = re.compile(r"\s*\(?\\begin\s*\{([pb]?matrix)\}([^&,]*)\\end\s*\{\1\}\)?\s*")
"""A vector that is set as a matrix of one column."""
_ROW_END = "\\\\"
_ABOUT = re.compile(r"\\approx(?![A-Za-z])")
_MAYBE_PRODUCT = re.compile(r"(?!(?:yes|no)$)[a-z]{2,3}")


def compare(answer: str, gold: str) -> Decision | Undecided:
    """Compare two answers that have been read and are short."""
    if same_text(answer, gold):
        return _SAME
    letter, words = labelled(gold)
    if letter and (option := chosen(answer)):
        return _decision(option == letter)
    if letter and words:
        return compare(answer, words)
    if not letter and (value := labelled_value(answer)):
        return compare(value, gold)
    answer, gold = as_set(_NUMBERED.sub(r"\1", answer)), as_set(gold)
    if answer == gold:
        return _SAME
    if (based := _BASED.fullmatch(answer)) and (gold_based := _BASED.fullmatch(gold)):
        return _decision(based.groups() == gold_based.groups())
    if (is_same := are_same_ratio(answer, gold)) is not None:
        return _decision(is_same)
    return _compare_equations(answer, gold)


def _compare_equations(answer: str, gold: str) -> Decision | Undecided:
    """By what is right of the last equals sign, where that is the answer."""
    stated = sides(answer)
    numbers = [number for side in stated if (number := plain_number(side))]
    if any(disagree(number, numbers[-1]) for number in numbers):
        return Decision(False, "says that different numbers are equal")
    left, right = values(answer, gold)
    left, right = _like(left, right), _like(right, left)
    number, gold_number = plain_number(left), plain_number(right)
    if number is None and gold_number is not None and is_unfinished(left, right):
        # In 8 = 5 + 3 it is solved, in a list of guesses it is not.
        if not numbers or are_two(answer) or any(map(is_list, stated)):
            return _UNFINISHED
        number = numbers[-1]
    if number is not None and gold_number is not None:
        difference = compare_numbers(number, gold_number)
        return Decision(difference is None, difference or "equal")
    items, gold_items = items_of(left), items_of(right)
    if gold_number is not None and items and items.brackets[:1] in ("(", "["):
        return _UNEQUAL
    if any(is_range(one) and _are_values(other) for one, other in ((answer, gold), (gold, answer))):
        return _UNEQUAL
    if items and gold_items:
        compared = _compare_items(ordered(items, gold_items), ordered(gold_items, items))
        if compared is not None:
            return compared
    texts = [text for text in (left, right) if is_text(text)]
    if len(texts) == 2 or any(not _MAYBE_PRODUCT.fullmatch(text) for text in texts):
        return _decision(right in texts and says(left, right))
    if items is None and gold_items is None:
        exact, *rounded = (part.strip() for part in _ABOUT.split(left))
        if rounded and any(part and _is_equal(part, right) for part in (exact, rounded[0])):
            return _EQUAL
        left = exact or left
    if (not (items or gold_items) or (gold_items and BOUND.search(left))) and is_unfinished(left, right):
        return _UNFINISHED
    typed = as_latex(left), as_latex(right)
    return _SAME if same_text(*typed) else Undecided(*typed)


def _like(vector: str, other: str) -> str:
    """A column as the tuple of its rows, where the other is a tuple."""
    if (column := _COLUMN.fullmatch(vector)) is None:
        return vector
    if (items := items_of(other)) is None or items.brackets not in ("()", "[]"):
        return vector
    rows = ", ".join(filter(None, map(str.strip, column[2].split(_ROW_END))))
    return f"{items.brackets[0]}{rows}{items.brackets[1]}"


def _are_values(text: str) -> bool:
    """Whether it is a list of values, or a set of them."""
    items = items_of(text)
    return items is not None and items.is_set and not BOUND.search(text)


def _compare_items(answer: Items, gold: Items) -> Decision | Undecided | None:
    """Item by item, in their order where both are ordered; ``None`` if the brackets need a parser."""
    brackets = {answer.brackets, gold.brackets} - {""}
    if len(brackets) > 1:
        return None
    if len(answer.items) != len(gold.items):
        return None if answer.brackets == "{}" == gold.brackets else _UNEQUAL
    is_set = answer.is_set and gold.is_set
    left, right = list(answer.items), list(gold.items)
    if is_set:
        for item in answer.items:
            if (twin := next((g for g in right if _is_equal(item, g)), None)) is not None:
                left.remove(item)
                right.remove(twin)
        is_wrong = any(all(isinstance(compare(item, g), Decision) for g in right) for item in left)
    else:
        outcomes = [compare(a, g) for a, g in zip(left, right, strict=True)]
        pending = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Undecided)]
        is_wrong = any(isinstance(outcome, Decision) and not outcome.is_correct for outcome in outcomes)
        left, right = [left[n] for n in pending], [right[n] for n in pending]
    if is_wrong or not left:
        return _decision(not is_wrong)
    if len(left) == 1:
        return compare(left[0], right[0])
    form = r"\{%s\}" if is_set else "(%s)"
    return Undecided(*(as_latex(form % ", ".join(items)) for items in (left, right)))


def _is_equal(answer: str, gold: str) -> bool:
    decision = compare(answer, gold)
    return isinstance(decision, Decision) and decision.is_correct


def _decision(is_correct: bool) -> Decision:
    return _EQUAL if is_correct else _UNEQUAL
