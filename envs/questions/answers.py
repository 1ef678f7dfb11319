"""The final answer in a reply, and answers that are plain numbers.

Replies are a model's output: cut to a bounded length before anything looks at them, searched in nearly linear
time, never evaluated.
"""

# ruff: noqa: RUF001

import re
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from envs.any_text import clean
from envs.words import MAX_REPLY_CHARS

MAX_ANSWER_CHARS = 512
MAX_DEPTH = 12
"""Brackets in brackets."""
MAX_DIGITS = 400
"""Of one number."""

_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/",
        "²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "π": r"\pi ", "∞": r"\infty ",
        "√": r"\sqrt ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "±": r"\pm ", "≈": "=",
    }
)  # fmt: skip
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_MARK = re.compile(
    r"####|<answer>|(?<![</])answer\b(?:[^.:=\n]{0,60}?\b(?:is|was)\b|\s{0,9}[:=])", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|,\s+(?!(?:and|or)\b)(?=[A-Za-z]{2})|\s(?:because|since|which)\b")
_DELIMITERS = re.compile(r"(?<!\\)\$+|\\[()\[\]]")
_MATH = re.compile(r"(?<!\\)\$([^$]+)\$|\\\(((?:[^\\]|\\(?![()]))+)\\\)|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
_NO_PROSE = re.compile(_TEXT.pattern + r"|\\(?:begin|end|operatorname|mathbb|mathbf)\s*\{[^{}]*\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_SPACES = re.compile(r"\\(?:left|right|[,;! ])|(?<![0-9])\s+|\s+(?![0-9])")
_MATH_WORDS = frozenset(
    re.findall(r"\w+", "and sin cos tan cot sec csc log exp sqrt arcsin arccos arctan lim mod inf")
)

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|,?\\[!,]|~|\s)[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\?[$€£¥]\s*)?(?:"
    rf"(?P<decimal>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE](?P<e>[-+]?[0-9]{1,3})|\s*(?:\*|\\times|\\cdot|x)\s*10\s*(?:\^|\*\*)\s*\{?(?P<ten>[-+]?[0-9]{1,3})\}?)?"
    r"(?:\s*/\s*(?P<over>[0-9]+)|\s+(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+))?"
    r"|)"
    r"(?:\s*\\[dtc]?frac\s*(?:\{\s*(?P<num>-?[0-9]+)\s*\}\s*\{\s*(?P<den>[0-9]+)\s*\}|(?P<n>[0-9])(?P<d>[0-9])))?"
    r"(?:\s*(?P<percent>\\?%|per ?cent\b))?"
)
_POWER_OF_TEN = re.compile(r"(?:\*|\\times|\\cdot|x)\s*10\s*(?:\^|\*\*)\s*\{?[-+]?[0-9]{1,3}\}?")
_OPERATION = re.compile(
    r"[0-9)}\]!]\s*(?:[-+*]|\\(?:times|cdot)(?![A-Za-z]))\s*[{(\[|]*\s*(?:[-0-9.]|\\(?:sqrt|[dt]?frac))"
)
_SPACING = re.compile(r"\\(?:left|right|quad|[,;:! ])")
_UNIT = re.compile(
    r"(?P<space>(?:\s|\\[ ,;!]|~)*)(?P<unit>\\?[A-Za-z€£][A-Za-z ./]*(?:\^\s*\{?[23]\}?)?|\^\s*\{?\\circ\}?)?"
)
_UNITS = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
        "in inch inche", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram",
        "lb pound", "oz ounce", "ms millisecond", "s sec second", "min minute", "h hr hour", "day", "week",
        "month", "year", "ml milliliter millilitre", "l liter litre", "degree ^\\circ deg", "rad radian",
        "cent", "$ dollar usd", "€ euro", "mph", "km/h kph",
    )
    for name in names.split()
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNITS = frozenset(
    re.findall(
        r"\w+", "pi or and to plus minus times over by mod out of sqrt sin cos tan log ln exp inf e i x"
    )
)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it stands in an answer."""

    value: Fraction
    """As written: 50 for 50%."""
    is_percent: bool = False
    is_decimal: bool = False
    """Whether at least 6 decimals are given, so that it may stand for one with endless decimals."""
    unit: str = ""


def final_answer(reply: str, *, whole: bool = False) -> str | None:
    r"""What the reply says is the answer; ``None`` if it says nothing.

    It is the last ``\boxed{}``; else what stands after the last ``answer is``, ``answer:``, ``####`` or
    ``<answer>``; else the last formula or number.

    Args:
        reply: Only its end is looked at.
        whole: The answer may be of any form and have several lines: without a mark it is the whole reply.
    """
    text = clean(reply[-MAX_REPLY_CHARS:])
    if whole:
        return (_boxed(text) or _marked(text) or text).strip() or None
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS))[-MAX_REPLY_CHARS:]
    if (boxed := _boxed(text)) is not None and (boxed := _tidy(boxed)):
        return boxed
    if marked := _marked(text):
        said = _tidy(_SENTENCE_END.split(_display(marked), maxsplit=1)[0])
        if said:
            return said if plain_number(said) or not _has_prose(said) else _tidy(_last_formula(said) or said)
    lines = text.strip().splitlines()
    if not lines:
        return None
    if (last := _tidy(lines[-1])) and (plain_number(last) or not _has_prose(last)):
        return last
    found = _last_formula(text) or (text if len(text) <= MAX_ANSWER_CHARS // 8 else "")
    return _tidy(found) or None


def gold_answer(gold: str) -> str:
    r"""The answer in a data set's answer column: of ``... #### 42`` or ``... \boxed{42}``, 42."""
    text = unicodedata.normalize("NFKC", clean(gold).translate(_SYMBOLS))
    boxed = _boxed(text)
    return _tidy(boxed if boxed is not None else text.rpartition("####")[2])


def refusal(answer: str) -> str | None:
    """Why the answer is not worth a parser's time; ``None`` if it is."""
    if len(answer) > MAX_ANSWER_CHARS:
        return f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARS}"
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"the answer has brackets {deepest} deep, more than {MAX_DEPTH}"
    if re.search(f"[0-9]{{{MAX_DIGITS + 1}}}", answer):
        return f"the answer has a number of more than {MAX_DIGITS} digits"
    if re.search(r"(?:\^|\*\*)[\s{(+-]*[0-9,]{5,}|[0-9]{4,}[\s})]*!", answer):
        return "the answer has a power or factorial that is too large"
    if "__" in answer:
        return "the answer is not mathematics"
    return None


@lru_cache(maxsize=4096)
def plain_number(text: str) -> PlainNumber | None:
    """The number that ``text`` is, with or without a unit; ``None`` for anything else."""
    text = _TEXT.sub(r" \1 ", text).strip()
    found = _NUMBER.match(text)
    if found is None or len(text) > MAX_ANSWER_CHARS or re.search(f"[0-9]{{{MAX_DIGITS + 1}}}", text):
        return None
    part = found.groupdict()
    top, bottom = part["num"] or part["n"], part["den"] or part["d"]
    if part["decimal"] is None and top is None:
        return None
    try:
        value = Fraction(0)
        if part["decimal"] is not None:
            value = Fraction(re.sub(r"[^0-9.]", "", part["decimal"]).removesuffix("."))
            value *= Fraction(10) ** int(part["e"] or part["ten"] or 0)
            value /= int(part["over"] or 1)
            value += Fraction(int(part["top"] or 0), int(part["bottom"] or 1))
        if top is not None:
            value += Fraction(int(top), int(bottom))
    except ZeroDivisionError:
        return None
    rest = _UNIT.fullmatch(text, found.end())
    if rest is None:
        return None
    unit, spaced = _unit(rest["unit"] or ""), bool(rest["space"])
    if rest["unit"]:
        words = unit.split()
        if unit not in _UNITS.values() and (not spaced or len(words) > 4 or _NO_UNITS & set(words)):
            return None
        if words[0] in _SCALES:
            value, unit = value * _SCALES[words[0]], " ".join(words[1:])
        elif len(unit) == 1 and unit not in _UNITS.values():
            return None
    decimals = (part["decimal"] or "").partition(".")[2]
    return PlainNumber(
        value=-value if part["sign"] == "-" else value,
        is_percent=part["percent"] is not None,
        is_decimal=len(decimals) >= 6 and not part["over"],
        unit=unit,
    )


def has_operation(answer: str) -> bool:
    """Whether numbers in it are yet to be added, subtracted or multiplied; 3 x 10^5 is a number."""
    return _OPERATION.search(_POWER_OF_TEN.sub("", _SPACING.sub("", answer))) is not None


def compare_numbers(answer: PlainNumber, gold: PlainNumber) -> str | None:
    """Why the two differ; ``None`` if they are equal.

    A percentage may be given as a fraction of 1, and its sign may be left out. A decimal with at least 6
    places may stand for a fraction with endless ones. A unit may be left out, but not be another one.
    """
    known = set(_UNITS.values())
    if answer.unit != gold.unit and {answer.unit, gold.unit} <= known:
        return f"the unit is {answer.unit}, not {gold.unit}"
    readings = [(answer.value, gold.value)]
    if answer.is_percent and not gold.is_percent:
        readings.append((answer.value / 100, gold.value))
    if gold.is_percent and not answer.is_percent:
        readings.append((answer.value, gold.value / 100))
    rounded = (answer.is_decimal and _is_endless(gold.value)) or (
        gold.is_decimal and _is_endless(answer.value)
    )
    tolerance = Fraction(rounded, 10**6)
    if any(a == g or abs(a - g) < tolerance for a, g in readings):
        return None
    return "not equal"


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are the same but for spaces and, where they are words, case."""
    first, second = (_TEXT.sub(r"\1", _SPACES.sub("", text)) for text in (answer, gold))
    if first == second:
        return True
    first, second = first.strip("()."), second.strip("().")
    return len(second) != 1 and second.isalpha() and first.casefold() == second.casefold()


def as_latex(answer: str) -> str:
    """An answer as it is typed, made LaTeX."""
    for pattern, replacement in _TYPED:
        answer = pattern.sub(replacement, answer)
    return answer


_Replacement = str | Callable[[re.Match[str]], str]
_TYPED: tuple[tuple[re.Pattern[str], _Replacement], ...] = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=[0-9A-Za-z)])\s*\*\s*(?=[0-9A-Za-z(\\])"), r" \\cdot "),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\^\s*(-?[0-9]+)"), r"^{\1}"),
    (re.compile(r"<=|≤"), r" \\le "),
    (re.compile(r">=|≥"), r" \\ge "),
    (re.compile(r"(?<![\\A-Za-z])(pi|theta|alpha|beta|sin|cos|tan|log|ln|exp)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?:inf|infinity|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\sqrt ([0-9]+)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[\])])\s*U\s*(?=[\[(])"), r" \\cup "),
    (re.compile(r"\s(?:and|or)\s|\\text\s*\{\s*(?:and|or)\s*\}"), ", "),
    (re.compile(r"(?<!\\)%"), r"\\%"),
)


def _boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\boxed x``."""
    last = _last(_BOX, text)
    if last is None:
        return None
    rest = text[last.end() :]
    if not rest.startswith("{"):
        return re.split(r"[\s$]", rest, maxsplit=1)[0]
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index]
    return None


def _marked(text: str) -> str | None:
    """What follows the last mark of an answer."""
    last = _last(_MARK, text)
    if last is None:
        return None
    return text[last.end() :].partition("</answer>")[0].strip(" \n\t:=*")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _display(text: str) -> str:
    """A displayed formula at the beginning of ``text``, on one line; otherwise ``text``."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if text.startswith(opening) and (end := text.find(closing, 2)) > 0:
            return " ".join(text[2:end].split())
    return text


def _last_formula(text: str) -> str | None:
    """The last formula between dollars and the like, or number, whichever ends last."""
    end, found = 0, None
    for match in _MATH.finditer(text):
        end, found = match.end(), next(group for group in match.groups() if group)
    for match in _NUMBER.finditer(text):
        if match.end() > end and any(character.isdigit() for character in match[0]):
            end, found = match.end(), match[0]
    return found


def _tidy(answer: str) -> str:
    r"""Without the marks around it; of ``$x$``, ``**x**`` or ``x.``, ``x``."""
    answer = _DELIMITERS.sub("", answer).replace("\\displaystyle", "")
    return answer.strip(" \t\n*`").removesuffix("\\").lstrip(" \n\t,;:=").rstrip(" \n\t.,;:=")


def _has_prose(text: str) -> bool:
    return any(word[0].lower() not in _MATH_WORDS for word in _WORD.finditer(_NO_PROSE.sub("", text)))


def _is_endless(value: Fraction) -> bool:
    """Whether the number has infinitely many decimals."""
    return pow(10, value.denominator.bit_length(), value.denominator) != 0


def _unit(text: str) -> str:
    """A unit's one name, if it is a known one."""
    unit = re.sub(r"[\s{}]+", " ", text).strip(" .").replace("^ ", "^")
    for name in (unit, unit.lower(), unit.lower().removesuffix("s")):
        if name in _UNITS:
            return _UNITS[name]
    return unit.lower()
