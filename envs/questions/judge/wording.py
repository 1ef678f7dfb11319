"""Answers that are words."""

import re

from envs.questions.judge.clauses import BECAUSE, MATH_WORDS, NEGATION, yes_or_no
from envs.questions.judge.notation import TEXT, unstyled
from envs.questions.judge.numbers import PRODUCT
from envs.questions.judge.options import DENIALS, without_label

_SPACES = re.compile(r"\\(?:left|right|quad|[,;:! ])|(?<![0-9])\s+|\s+(?![0-9])")
_ONE = re.compile(r"([_^])\{(\w)\}")
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}(?![A-Za-z])")
_OPENING = re.compile(
    r"^(?:(?:hence|thus|so|therefore|it's|it is|on|in|definitely|certainly|clearly)\b,?\s*)+", re.IGNORECASE
)
_EXPLAINED = re.compile(rf",?\s+{BECAUSE}|,\s+(?:which|who|whose|where|an?|the)\b")
_SAYS = re.compile(
    r"\b(?:(?:is|are|was|were|be)(?:\s+\w+\s+(?:by|in|at|on))?|it's|that's|lives in|equals|has|have|called|"
    r"falls? on)\s+"
)
_OF = re.compile(r"([^,;:]{1,60}?)\s+(?:is|was|are|were)\s+the\s[^,;:]*")
"""Who or what has what is asked for, as Paris of "Paris is the capital"."""


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are the same but for spaces and, where they are words, case."""
    first, second = (_ONE.sub(r"\1\2", TEXT.sub(r"\1", _SPACES.sub("", text))) for text in (answer, gold))
    if first == second:
        return True
    first, second = (_ARTICLE.sub("", unstyled(text), count=1).strip(" ().\"'") for text in (answer, gold))
    return is_text(second) and _folded(first) == _folded(second)


def same_words(answer: str, gold: str) -> bool:
    """As ``same_text``, where the words may have commas between them."""
    return same_text(answer, gold) or (_folded(answer) == _folded(gold) and is_text(gold.replace(",", " ")))


def is_text(answer: str) -> bool:
    """Whether it is words, and so to be compared as such; a product of letters, such as xy, is none."""
    plain = unstyled(answer)
    if re.search(r"[\\=<>^+*/{}|$]|[0-9]\s*[A-Za-z]|,", plain):
        return False
    words = (word for word in _WORD.findall(plain) if word not in MATH_WORDS and not PRODUCT.fullmatch(word))
    return any(words) or re.search("[\u3040-\uffdc]", plain) is not None


def says(answer: str, gold: str) -> bool:
    """Whether a sentence or an option ends in the words that are asked for, and does not deny them."""
    plain = _OPENING.sub("", unstyled(answer))
    if (word := yes_or_no(plain)) is not None and yes_or_no(right := unstyled(gold)) is not None:
        return word == right.casefold()
    said = [plain, re.sub(r"\s*\([^()]*\)$", "", plain), without_label(plain)]
    claim = _EXPLAINED.split(plain)[0]
    if DENIALS.findall(claim) == DENIALS.findall(gold):
        said += [claim, *(claim[verb.end() :] for verb in _SAYS.finditer(claim))]
        said += [of[1]] if (of := _OF.fullmatch(claim)) and not NEGATION.search(claim) else []
        said += [claim[-len(unstyled(gold)) :]] if DENIALS.search(gold) else []
    return any(same_text(text, gold) for text in said)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
