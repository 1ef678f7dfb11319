"""One way to write what can be written in many: typeset signs, raised digits, what cannot be seen."""

# ruff: noqa: RUF001

import re
import unicodedata

from envs.any_text import clean

_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'"),
        "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": r"\div ", "⁄": "/", "∕": "/", "π": r"\pi ",
        "√": r"\sqrt ", "∛": r"\sqrt[3] ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "±": r"\pm ", "≈": r"\approx ",
        "∞": r"\infty ", "。": ". ", "、": ", ",
        "∫": r"\int ", "∑": r"\sum ", "∏": r"\prod ", "…": "...", "≡": r"\equiv ",
    }
)  # fmt: skip
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns the letters that follow: with them 42 may be seen as 24, so they stay."""
_RAISED_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_MANY_SPACES = re.compile(r"\s{2,}")


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
    text = "".join(str(unicodedata.decimal(c, c)) for c in text)
    return _MANY_SPACES.sub(lambda spaces: "\n" if "\n" in spaces[0] else " ", text)
