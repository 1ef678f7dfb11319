"""Whether something of an answer is yet to be worked out: who repeats the problem has not solved it."""

import re

from envs.questions.judge.equations import NAME, RELATION, named
from envs.questions.judge.notation import unstyled
from envs.questions.judge.numbers import TEN
from envs.questions.judge.sets import BOUND

_VARIABLE = re.compile(
    r"(?<![\\A-Za-z])(?![ei](?![A-Za-z]))[A-Za-z](?![A-Za-z])|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega|rho|tau|sigma|delta)\b"
)
_POWER_OF_TEN = re.compile(rf"(?<=[0-9])(?:{TEN})")
_FORMAL = {
    "calculus": r"\\(?:i*int|o?int|sum|prod|lim)(?![A-Za-z])|\\[dt]?frac\s*\{\s*(?:d|\\partial)\b|"
    r"\bd/d[a-z]\b|\b(?:sum|prod|int|lim|integral|derivative)\b\s*[_(]",
    "number theory": r"\b(?:gcd|lcm|det|[bp]?mod|max|min|[lr]?floor|[lr]?ceil)(?![A-Za-z])|"
    r"\\begin\s*\{vmatrix\}|(?<![A-Za-z])[CP]\s*\(\s*[0-9]",
}
"""Operations that stand for a result, whatever they are applied to."""
_NUMERIC = {
    "sum": r"[0-9A-Za-z)}\]!|%]\s*[-+]\s*[^\s}]",
    "product": r"[0-9)}!|%]\s*(?:\*|\\times|\\cdot)\s*[-+]?[{(\[|]*\s*[-+]?(?:[0-9.]|\\[dt]?frac)|\)\s*\(|"
    r"(?<!_)(?<!_[0-9])[0-9]\s*\(\s*[-+]?[0-9.]+\s*\)|\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}\s*\(\s*[-+]?(?:[0-9.]|\\[dt]?frac)|"
    r"\\sqrt\s*\{[^{}]*\}\s*(?:\*|\\times|\\cdot)?\s*\\sqrt",
    "quotient": r"\\div(?![A-Za-z])",
    "binomial": r"\\[dt]?binom(?![A-Za-z])|\bchoose\b",
    "logarithm": r"\b(?:log|ln|lg)(?![A-Za-z])",
    "function": r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|\b(?:arc)?(?:sin|cos|tan)\s*\(",
    "absolute value": r"\||\\[lr]vert|\babs\b",
}
"""Operations that can be carried out where all is numbers."""
_OPERATIONS = {name: re.compile(pattern) for name, pattern in (_FORMAL | _NUMERIC).items()}


def is_unfinished(answer: str, gold: str) -> bool:
    """Whether something is yet to be worked out in ``answer`` that is worked out in ``gold``.

    3 x 10^5 is a number; fractions, roots and powers stand for themselves.
    """
    said, right = (_POWER_OF_TEN.sub("", unstyled(text)) for text in (answer, gold))
    has_variables = _VARIABLE.search(said) is not None
    done = {name for name, operation in _OPERATIONS.items() if operation.search(right)}
    to_do = (_FORMAL if has_variables else _OPERATIONS).keys() - done
    if any(_OPERATIONS[name].search(said) for name in to_do):
        return True
    name, value = named(gold)
    is_value = (name is None or NAME.fullmatch(name)) and not _VARIABLE.search(unstyled(value))
    gives = is_value or (BOUND.search(gold) and _is_solved(gold))
    return bool(has_variables and gives and RELATION.search(answer)) and not _is_solved(answer)


def _is_solved(relations: str) -> bool:
    """Whether there is nothing but a name on the sides of equations and inequalities that have a variable."""
    sides = [side.strip() for side in RELATION.split(relations)]
    return all(NAME.fullmatch(side) for side in sides if _VARIABLE.search(side))
