"""Which option of a multiple choice a text chooses, by its letter."""

import re

from envs.questions.judge.clauses import DENIAL
from envs.questions.judge.notation import unstyled

_LETTER = re.compile(r"\(?([A-Z])\)?|\(([a-z])\)")
_LABEL = re.compile(r"\(?([A-Z])[).:]\s+(?=\S)|\(([A-Z])\)\s*(?=\S)")
_CHOOSES = re.compile(
    r"\b(?:is|be|choose|choosing|select|pick|option|choice|letter|statement|answer's|answer|ans|only|so|hence|thus|therefore|"
    r"think|probably|likely|clearly|definitely|indeed|matches|to|it's|its|that's|with|say|maybe|perhaps|"
    r"correct|solution|result|selection|response|output|verdict|leaves|"
    r"(?<=, )leaving|leaving(?= only)|elimination|la|es|est|ist|opción)\b"
    r"(?::|\.|,| -)?\s*|"
    r"(?<!不)选(?:择|项)?:?\s*|(?<!不)(?<!不会)是\s*|は\s*|"
    r"^not \(?[A-Z]\)?,? but\s+|^(?:among|of)\b[^,]{1,40},\s*|"
    r"^after\s(?![A-H]\b)[^,]{1,40},\s+(?=\(?[A-Z]\)?\W*$)",
    re.IGNORECASE,
)
"""Before the letter of an option."""
_OPTION = re.compile(
    r"\W*(?:(?i:option|choice|letter|answer)\s+)?(?:\(([A-Za-z])\)|([A-Z])(?=\s*(?:[).:,\]*!>]|-\s|$|\n|"
    r"\s\(?[-$\\0-9]|\s\([A-Z][a-z]|です|입니다|\s?=\s?[-$\\0-9]|"
    r"\s(?:satisfies|works|holds|fits|makes|correctly|"
    r"it is(?=\W*$)|(?:looks|seems|sounds) (?:right|correct)(?! at first|\W{1,3}(?:but|yet|however)\b)|"
    r"best \w+s|as|over)\b|"
    r"\s(?:is|must be|would be|seems to be)\s(?:(?:therefore|clearly|indeed)\s)?(?:the\s)?"
    r"(?:correct|right|true|only|answer|best|most)\b|"
    r"\s\(?(?:because|since|rather than|instead of|not|but)\b))|"
    r"([a-h])\)(?=\s|$)|(?<=\s)([a-h])(?=[.:\]*!]*\s*$))"
)
_NOT_BUT = re.compile(
    r"^not \(?[A-Z]\)?,? but\b|^.*[;.]\s|"
    r"\b(?:that|which|who) (?:is|are|was|were|do|does|can)(?: not|n't)\b(?=.*\bis\b)",
    re.IGNORECASE,
)
"""What denies nothing of the letter behind it."""
DENIALS = re.compile(
    rf"{DENIAL}|\b(?:doubt|otherwise|consider(?:ing)?|(?:some|many|most|others|people|everyone) "
    r"(?:says?|thinks?|believes?|assumes?))\b|不",
    re.IGNORECASE,
)
"""Before a letter that is not chosen."""
_DISMISSED = re.compile(
    r"\s*(?:\(\s*[Nn]ot\s+(?![A-Z]\b)|\?|[).]?\s*(?:[-$\\0-9][^.,;\n]{0,20})?"
    r"\b(?:is|are|must be|works|holds|satisfies)\b[^,.;]{0,30}"
    r"\b(?:none|not|partly|wrong|false|incorrect|fails?|distractor|worst)\b)"
)
"""Behind a letter that is not chosen."""
_ANOTHER = re.compile(r"\)?\s*\([A-Z]\)|[\s,;/&*)]*(?:(?:and|or|nor)\b\W*|(?<=[,;/&])\s*)\(?(?!I\b)[A-Z]\b")
"""Behind a letter, where it is not the only one."""
_EXPLAINED = re.compile(r"\b(?:because|since|as|not|rather|instead|unlike|whereas|while|but)\b|\n")
_MARKED = re.compile(
    r"(?<![\w\\])(?:\(([A-Z])\)|([A-Z])(?:\)|[.:](?=\s)))|\bor\b\W*(?:maybe\s+)?\(?([A-Z])\b(?![ '][a-z])"
)
"""The letter of an option, as a list of them has it."""
_LISTED = re.compile(
    r"(?:(?:option|choice|statement)\s+)?\(?((?-i:[A-Z]))(?:[).:]+\**\s+(?=\S)|\)\s*(?=\S)|\W*$)",
    re.IGNORECASE,
)
"""A line of a list of options."""
_BULLETED = re.compile(rf"[-•]\s+\**{_LISTED.pattern}", re.IGNORECASE)
_JUDGED = re.compile(
    r"\W(?:(?P<true>(?<!not )(?:true|correct|right))|false|incorrect|wrong|not (?:true|correct))\W*$",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"([A-H])\)? is (?:(correct|right|true)|incorrect|wrong|false|not (?:correct|right|true))\b"
    r"[,;. ]*(?:and )?"
)
"""On one of several options in one line, which says nothing else."""


def labelled(gold: str) -> tuple[str | None, str]:
    """The letter of the option that a right answer is, ``None`` if it is none, and what stands behind it."""
    plain = unstyled(gold)
    if letter := _LETTER.fullmatch(plain):
        return (letter[1] or letter[2]).upper(), ""
    label = _LABEL.match(plain)
    return ((label[1] or label[2]), plain[label.end() :]) if label else (None, plain)


def labelled_value(answer: str) -> str | None:
    """What the option of an answer comes to, as 12 of ``(B) 12``; ``None`` if it is no such answer."""
    letter, value = labelled(answer)
    is_value = letter and re.match(r"[-+$€£\\]*[0-9]|\\[a-z]", value) and not _MARKED.search(value)
    return value if is_value else None


def without_label(answer: str) -> str:
    """An answer without the letter of its option."""
    return _LABEL.sub("", answer, count=1)


def chosen(said: str) -> str | None:
    """The letter of the one option that is given; ``None`` if there is none, or more than one."""
    plain = unstyled(said)
    starts = [0, *reversed([choice.end() for choice in _CHOOSES.finditer(plain)])]
    for start in starts:
        if (found := _OPTION.match(plain, start)) is not None:
            letter = next(filter(None, found.groups())).upper()
            claim = _NOT_BUT.sub("", plain[: found.end()])
            is_denied = DENIALS.search(claim) or _DISMISSED.match(plain, found.end())
            behind = _EXPLAINED.split(plain[found.end() :], maxsplit=1)[0]
            others = {next(filter(None, other.groups())) for other in _MARKED.finditer(behind)} - {letter}
            return letter if not (is_denied or others or _ANOTHER.match(plain, found.end())) else None
    return None


def line_that_chooses(text: str) -> str | None:
    """The line of a text that gives an option: its last one, or its first one before an explanation.

    The options as they were given choose none; where each is judged, it is the one that is said to be true.
    """
    if lone := re.fullmatch(r"[^\w?]*([a-h])[^\w?]*", text):
        return f"({lone[1]})"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    for listed in (_BULLETED, _LISTED):
        options = {line: label[1] for line in lines if (label := listed.match(unstyled(line)))}
        if len({*options.values()}) > 1:
            judged = {line: word["true"] is not None for line in options if (word := _JUDGED.search(line))}
            if len(judged) == len(options):
                right = [line for line in judged if judged[line]]
                return f"({options[right[0]]})" if len(right) == 1 else None
            lines = [line for line in lines if line not in options]
    verdicts = _VERDICT.findall(lines[-1]) if lines and not _VERDICT.sub("", lines[-1]).strip() else ()
    if right := [letter for letter, is_right in verdicts if is_right]:
        return f"({right[0]})" if len(right) == 1 else None
    return next((line for line in (*lines[-1:], *lines[:1]) if chosen(line)), None)
