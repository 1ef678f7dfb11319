"""What a reply says in the end: not what it takes back, and not the check of what it has said."""

import re
from itertools import islice

from envs.questions.judge.marks import says_answer

MAX_CORRECTION = 200
"""Characters at the end of a reply in which it may correct itself."""
MAX_CHECKS = 8
"""How many of the places where a reply may begin to check itself are looked at, the first ones."""
_MILD = r"wait|hold on|on second thought|actually(?=,)"
_OUTRIGHT = r"oops|scratch that|I (?:made an? (?:mistake|error)|was wrong|misread)"
SECOND_THOUGHT = re.compile(
    r"\b(?:hold on|wait|actually|oops|sorry|correction|mistake|forgot|wrong|incorrect)\b", re.IGNORECASE
)
_BEGINS = r"(?:^|[.!?,;\n])[\s*_]*+"
_CORRECTED = re.compile(
    rf"{_BEGINS}(?:(?:no(?=[,.!])|{_MILD}|{_OUTRIGHT}|sorry|hmm|actually|correction|edit|rather|my mistake)\b"
    r"[\s,.:!*_-]*+){1,4}"
    r"(?:(?:it|that|this|the answer|I)(?:'s| is| was| meant| mean| should be| should have been)\s+)?"
    r"(?:actually\s+)?(?P<said>(?:\\?[$(]{0,2}[-+]?[0-9][0-9,./]*!*|\(?[A-Z]\)?(?:[.)]? [0-9][0-9.,]*)?)"
    r"(?: [A-Za-z]+)?)[\s.*$)]*$",
    re.IGNORECASE,
)
"""What a reply says in the end in place of what it has said."""
_WITHDRAWN = re.compile(
    rf"{_BEGINS}(?:(?:oh|hmm|no|but|and)\b,?\s+){{0,3}}(?:(?P<mild>{_MILD})|{_OUTRIGHT}|"
    r"(?:that|this|it|which)(?:(?:'s| is| was) (?:(?:not|n't) (?:right|correct)|wrong|incorrect|impossible)|"
    r" can(?:'t|not) be (?:right|correct)))\b",
    re.IGNORECASE,
)
"""Where a reply takes back what it has said."""
_CONFIRMED = re.compile(
    r"\b(?:yes|indeed|confirmed|matches|checks out|holds|"
    r"(?<!not )(?<!n't )(?:correct|right)(?!\s+(?:answer|one|value|number|option|result)))\b",
    re.IGNORECASE,
)
_CHECK = re.compile(
    r"(?:^|\n|[.!?]\s)[\s*_#>-]*+"
    r"(?:(?:let's|let me|let us|we can|I'll|to|now|quick|quickly|double|sanity)[\s,:-]+){0,3}"
    r"(?:verify|verification|check(?:ing)?)\b(?:\s+(?:our|the|this|my)\s+\w+)?",
    re.IGNORECASE,
)
"""Where a reply begins to check what it has said."""
_CONCLUDES = re.compile(
    rf"\\f?boxed|#{{4}}|(?i:\b(?:so|thus|therefore|hence|answer|not|should|instead|option)\b|{SECOND_THOUGHT.pattern})"
    r"[^.]{0,80}?(?:[0-9]|\b[A-H]\b)"
)
"""A check that comes to another answer, or says it once more."""
_GIVES = re.compile(r"[0-9]|\b(?:[B-H]\b|A\b(?! [a-z]))")


def without_corrections(text: str) -> str:
    """What a text says in the end."""
    corrected = _CORRECTED.search(text[-MAX_CORRECTION:])
    return corrected["said"] if corrected else _unchecked(_standing(text))


def _standing(text: str) -> str:
    """The text without what it takes back; all of it where it then confirms that, or says nothing new."""
    *_, taken_back = (None, *_WITHDRAWN.finditer(text))
    if taken_back is None:
        return text
    before, rest = text[: taken_back.start()], text[taken_back.end() :]
    if says_answer(rest):
        return rest
    if re.search(r"\w", rest) is None:
        *_, sentence = re.split(r"[.!?]\s|\n", before.rstrip())
        return "" if says_answer(sentence) else text
    stands = before if taken_back["mild"] and _CONFIRMED.search(rest) else rest
    return stands if _GIVES.search(stands) else text


def _unchecked(text: str) -> str:
    """The text without the check of its answer at the end."""
    for check in islice(_CHECK.finditer(text), MAX_CHECKS):
        before = text[: check.start() + 1].rstrip()
        if _GIVES.search(before[before.rfind("\n") + 1 :]) and not _CONCLUDES.search(text, check.end()):
            return before
    return text
