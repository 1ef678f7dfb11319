"""Answers as they are typed, made LaTeX."""

import re
from collections.abc import Callable

from envs.questions.judge.notation import FUNCTIONS, GAP, LETTERS, UPRIGHT, bracket_end
from envs.questions.judge.numbers import NO_UNITS, NUMBER_WORDS
from envs.questions.judge.units import UNITS

MAX_APPLIED = 32
"""How many roots and powers of something in parentheses are looked at."""
AND = re.compile(
    rf"{GAP}*+,?{GAP}*+(?:\b(?:and|or)\b|\\(?:lor|vee)(?![A-Za-z])|{UPRIGHT}{GAP}*+,?{GAP}*+"
    rf"(?i:and|or|y|e|o|et|ou|und|oder|[和或及与]){GAP}*+\}}|\\&){GAP}*+"
)
NAMES = "|".join((*FUNCTIONS, *LETTERS))
_TAKES = re.compile(r"\\(?:[cdt]?frac|sqrt|pmod)(?![A-Za-z])(?:\[[^\[\]]*\])?")
_ARGUMENT = re.compile(
    r"\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}|\s*(\\(?:pi|theta|alpha|beta|phi)(?![A-Za-z])|[0-9A-Za-z])"
)
_APPLIED = re.compile(r"(?:\\sqrt(?:\[[0-9]+\])?|\^)\s*\(")
_POWER = r"\s*(?:\^\s*\{?[23]\}?)?"
"""Of a unit."""
_UNIT_WORDS = (
    r"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?"
    rf"(?:units?|(?:{'|'.join(name for name in UNITS if name.isalpha())})s?)"
)
"""Not what may be a variable, unless it is set as text."""
_LONG_UNITS = rf"(?:{'|'.join(name for name in UNITS if name.isalpha() and len(name) > 1)})s?"
_NO_UNITS = (NO_UNITS - {"of", "out"}) | NUMBER_WORDS
_LETTER_UNITS = frozenset("mgshlLNVJWKACT")


def _may_be_unit(text: str) -> bool:
    """Whether words behind a number only say of what it is a number."""
    words = re.findall("[A-Za-z]+", re.sub(r"\\q?quad|\\.", " ", text))
    is_letter = len(words) == 1 == len(words[0])
    return words[0] in _LETTER_UNITS if is_letter else _NO_UNITS.isdisjoint(map(str.lower, words))


_Replacement = str | Callable[[re.Match[str]], str]
_TYPED: tuple[tuple[re.Pattern[str], _Replacement], ...] = (
    (
        re.compile(rf"(?<=[0-9}}%]){GAP}*{UPRIGHT}((?:[A-Za-z /]|{GAP})+)\}}{_POWER}$"),
        lambda unit: "" if _may_be_unit(unit[1]) else unit[0],
    ),
    (re.compile(rf"(?<=[A-Za-z)]){GAP}*{UPRIGHT}{GAP}*{_UNIT_WORDS}{GAP}*\}}{_POWER}$"), ""),
    (re.compile(rf"(?<=\\pi){GAP}+{_UNIT_WORDS}{_POWER}$"), ""),
    (re.compile(rf"(?<=[0-9}})]){GAP}+{_LONG_UNITS}{_POWER}$"), ""),
    (
        re.compile(r"(?:^|(?<=[^\\]\{))-?[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?=\s*[\\A-Za-z]|\})"),
        lambda number: re.sub("[{},]", "", number[0]),
    ),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\var(epsilon|phi|theta|rho|sigma)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\mathbb\s*([A-Z])(?![A-Za-z])"), r"\\mathbb{\1}"),
    (re.compile(r"(?<=[0-9])[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z])"), r" \\cdot 10^{\1}"),
    (
        re.compile(r"(?<![0-9A-Za-z.^_)}/])([0-9]+)/([0-9]+)(?=\s*(?:[A-Za-z]|\\(?:pi|sqrt)))"),
        r"\\frac{\1}{\2}",
    ),
    (re.compile(r"\(\s*\\?mod\s+([0-9A-Za-z]{1,20})\s*\)"), r"\\pmod{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z](?![A-Za-z])))"), r"^{\1}"),
    (re.compile(r"(?<![\\A-Za-z])cbrt(?=\s*\()"), r"\\sqrt[3]"),
    (re.compile(r"(?<![\\A-Za-z])a(sin|cos|tan)(?=\s*\()"), r"\\arc\1 "),
    (re.compile(r"(?<![\\A-Za-z])log_?(2|10)(?=\s*\()"), r"\\log_{\1}"),
    (re.compile(r"(?<![\\A-Za-z])abs\(([^()]*)\)"), r"|\1|"),
    (re.compile(r"(?<![\\A-Za-z])(floor|ceil)\(([^()]*)\)"), r"\\l\1 \2 \\r\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?i:sqrt)(?![A-Za-z])"), r"\\sqrt "),
    (re.compile(rf"(?<![\\A-Za-z])({NAMES})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?:inf|[Ii]nfinity|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\sqrt(\[[0-9]+\])?\s+([0-9]+|[a-z])"), r"\\sqrt\1{\2}"),
    (re.compile(r"(?<=[\])])\s*U\s*(?=[\[(])"), r" \\cup "),
    (AND, ", "),
    (re.compile(r"(?<!\\)%"), r"\\%"),
)


def as_latex(answer: str) -> str:
    """An answer as it is typed, made LaTeX."""
    for pattern, replacement in _TYPED:
        answer = pattern.sub(replacement, answer)
    answer = _braced_arguments(answer)
    for _ in range(MAX_APPLIED):
        if not (found := _APPLIED.search(answer)) or (end := bracket_end(answer[found.end() - 1 :])) is None:
            break
        inner = answer[found.end() : found.end() - 1 + end]
        answer = f"{answer[: found.end() - 1]}{{{inner}}}{answer[found.end() + end :]}"
    return answer


def _braced_arguments(answer: str) -> str:
    r"""With braces around each argument of a fraction or root: of \frac\pi2, \frac{\pi}{2}."""
    found, end = "", 0
    while command := _TAKES.search(answer, end):
        found += answer[end : command.end()]
        end = command.end()
        for _ in range(2 if "frac" in command[0] else 1):
            if (argument := _ARGUMENT.match(answer, end)) is None:
                break
            found += f"{{{argument[1] or argument[2] or ''}}}"
            end = argument.end()
    return found + answer[end:]
