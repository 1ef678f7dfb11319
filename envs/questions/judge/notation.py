"""One way to write what can be written in many: typeset signs, raised digits, what cannot be seen.

Also what the functions and letters of mathematics are called, wherever they stand.
"""

# ruff: noqa: RUF001

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import accumulate

from envs.any_text import clean

_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'"),
        "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": r"\div ", "⁄": "/", "∕": "/", "π": r"\pi ",
        "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", **dict.fromkeys("°º˚", r"^\circ "),
        **dict.fromkeys("≤⩽", r"\le "), **dict.fromkeys("≥⩾", r"\ge "), "≠": r"\ne ", "∶": ":", "∼": "~",
        "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "±": r"\pm ", "≈": r"\approx ",
        "∞": r"\infty ", "。": ". ", "、": ", ", "٫": ".", "٬": ",", **dict.fromkeys("【】「」•→⇒∴", " "),
        "∫": r"\int ", "∑": r"\sum ", "∏": r"\prod ", "…": "...", "≡": r"\equiv ", "¬": r"\neg ",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
        **{letter: rf"\mathbb{{{unicodedata.normalize('NFKC', letter)}}} " for letter in "ℝℤℕℚℂ"},
    }
)  # fmt: skip
FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "ln", "lg", "exp", "lim", "max", "min", "gcd", "lcm", "det",
)  # fmt: skip
LETTERS = (
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "pi", "rho", "sigma", "tau", "phi",
    "omega",
)  # fmt: skip
"""Greek ones."""

GAP = r"(?:\s|\\[,;:! ]|~|\\q?quad(?![A-Za-z]))"
"""What is seen as a space."""
UPRIGHT = (
    r"\\(?:text(?:bf|rm|it|sf|tt|up|normal)?|math(?:rm|bf|it|sf)|mbox|bold(?:symbol)?|bm|underline|emph)\s*\{"
)
TEXT = re.compile(rf"{UPRIGHT}([^{{}}]*)\}}")
"""What is written upright, bold or underlined in a formula."""
SIZES = re.compile(
    r"\\(?:left|right|middle|m?big[lr]?|Big[lr]?|displaystyle)(?![A-Za-z])\.?"
    r"|\\(?:bf|rm|it|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])\s*|\\(?:text)?color\s*\{[^{}]*\}"
)
"""What says only how large, thick or bright it is set."""
_WRITTEN: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # A tokenizer's own marks, and GSM8K's notes for a calculator.
    (re.compile(r"<\|[a-z_]{1,30}\|>|</?s>|<eos>|<<[^<>\n]{0,200}>>"), ""),
    (re.compile(r"(?<![\w*)])\*\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*\*(?![\w*(])"), r"\1"),
    (re.compile(r"~~[^~\n]{1,200}~~"), ""),  # struck through
    # Of the row of a total that a table ends with, the last cell.
    (
        re.compile(
            r"^\| \**(?:total|sum|answer|result|final|revenue|profit)\b[^\n=<>]{0,400} \| "
            r"([^|\n=<>]{1,200}) \|\s*\Z",
            re.MULTILINE | re.IGNORECASE,
        ),
        r"\1",
    ),
    (re.compile(r"^> (?=\*\*)", re.MULTILINE), ""),
    (re.compile(r"<(/?)(?:final[_ ]answer|ans)>", re.IGNORECASE), r"<\1answer>"),
    (re.compile(r"<(b|i|u|p|em|strong|ins|mark)>([^<>]{0,400})</\1>"), r"\2"),
    (re.compile(r"</?(?:p|div|span|center|h[1-6]|result|output|response|solution)>|<br\s?/?>"), "\n"),
    (re.compile(r"\+/-"), r"\\pm "),
    # The end of a proof.
    (re.compile(r"(?:\$? ?\\(?:blacksquare|qed)|(?<=\. )\$?\\(?:square|Box))(?![A-Za-z]) ?\$?\s*$"), ""),
    (re.compile(r"(?<=[0-9)}])\s*[和或及与]\s*(?=[-0-9(\\A-Za-z])"), ", "),
    (re.compile(r"\^?\s*(?:\{\\degree\s*\}|\\degree(?![A-Za-z]))"), r"^\\circ "),
    (re.compile(r"\\colon(?![A-Za-z])\s*|(?:\\text\s*)?\{:\}"), ":"),
    (re.compile(r"\\(?:text)?euro?(?![A-Za-z])(?:\{\})?"), "€"),
    (re.compile(r"\\(?:pounds|textsterling)(?![A-Za-z])(?:\{\})?"), "£"),
    (re.compile(r"\\(?:textdollar|dollar)(?![A-Za-z])(?:\{\})?"), r"\\$"),
    (re.compile(r"\\([lg])eq(?:slant|q)(?![A-Za-z])"), r"\\\1e "),
    (re.compile(r"\bRs\.?(?=[\s}]{0,3}[0-9])"), "₹"),
    (re.compile(r"(?<=[0-9])/-(?![0-9])"), ""),
    (re.compile(r"\b(?:US|CA?|AU?|NZ|HK|S|R)(?=\\?\$ ?[0-9])"), ""),
    # Formulas below each other; a matrix is none.
    (
        re.compile(
            r"\\begin\s*\{(cases|aligned|align\*?|equation\*?|gather\*?|gathered|split)\}((?:(?!\\begin)[\s\S]){0,2000}?)"
            r"\\end\s*\{\1\}"
        ),
        lambda lines: _in_one(lines[2]),
    ),
    # Vectors.
    (
        re.compile(
            r"\\(?:left\s*)?\\?langle(?![A-Za-z])([^<>\n]{1,200}?)\\(?:right\s*)?\\?rangle(?![A-Za-z])"
        ),
        r"(\1)",
    ),
    (
        re.compile(r"(?<![\w)}\]])<(\s*-?[0-9./]{1,20}(?:\s*,\s*-?[0-9./]{1,20}){1,20}\s*)>"),
        r"(\1)",
    ),
    (re.compile(r",\s*(?:\.{3}|\\[lc]?dots(?![A-Za-z]))\s*,"), r",\\ldots,"),
    (re.compile(rf"{UPRIGHT}\s*([,;])\s*\}}"), r"\1 "),
    (re.compile(r"\s{2,}"), lambda spaces: "\n" if "\n" in spaces[0] else " "),
)
"""What can be written in several ways, and the way that is read."""
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣʸᵏᵐᵗᵃᵇ]+")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns the letters that follow: with them 42 may be seen as 24, so they stay."""
_RAISED_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")


def written(text: str) -> str:
    """The text in ASCII as far as it goes: x⁴ is x^{4}, ⅓ is 1/3, “a” is "a"; what cannot be seen is gone.

    Many spaces are one, so that no pattern has to look at them again and again.
    """
    text = "".join(c for c in clean(text) if unicodedata.category(c) != "Cf" or c in _TURNING)
    text = _RAISED_FRACTION.sub(lambda m: " " + unicodedata.normalize("NFKC", f"{m[1]}/{m[2]}"), text)
    text = _RAISED.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = "".join(
        " " + unicodedata.normalize("NFKC", c) if "fraction" in unicodedata.decomposition(c) else c
        for c in text
    )
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    text = "".join(str(unicodedata.decimal(c, c)) for c in text if unicodedata.category(c) != "So")
    for pattern, so in _WRITTEN:
        text = pattern.sub(so, text)
    return text


def _in_one(lines: str) -> str:
    """Lines of formulas in one: a chain of equations goes on, others are a list."""
    joined = re.sub(r"\\\\\s*(?==)", " ", lines.replace("&", "")).strip().removesuffix("\\\\")
    return joined.replace("\\\\", ", ").strip()


def depths(text: str, opening: str = "([{", closing: str = ")]}") -> Iterator[int]:
    """How many brackets are open behind each character."""
    return accumulate((character in opening) - (character in closing) for character in text)


def bracket_end(text: str) -> int | None:
    """Where the bracket that ``text`` begins with is closed; an interval may be closed by another one."""
    end = next((n for n, depth in enumerate(depths(text)) if depth == 0), None)
    return end if end is not None and text[0] + text[end] in ("()", "(]", "[)", "[]", "{}") else None


def is_bracketed(text: str) -> bool:
    """Whether one pair of brackets is around all of it."""
    return text[:1] in ("(", "[", "{") and bracket_end(text) == len(text) - 1


def unstyled(text: str) -> str:
    """Without what only changes how it looks."""
    return re.sub(r"\\[,;:! ]|~", " ", TEXT.sub(r" \1 ", SIZES.sub("", text))).strip(" .*\"'")
