"""Which option of a multiple choice a text chooses, by its letter."""

import re

from envs.questions.notation import unstyled

_LETTER = re.compile(r"\(?([A-Z])\)?|\(([a-z])\)")
_LABEL = re.compile(r"\(?([A-Z])[).:]\s+(?=\S)|\(([A-Z])\)\s*(?=\S)")
_CHOOSES = re.compile(
    r"\b(?:is|be|choose|choosing|select|pick|option|choice|letter|statement|answer|ans|only|so|hence|thus|therefore|"
    r"think|probably|likely|clearly|definitely|indeed|matches|to|it's|that's|go with|la|es|est|ist|opción)\b"
    r"(?::|\.| -)?\s*|"
    r"(?<!不)选(?:择|项)?:?\s*|(?<!不)(?<!不会)是\s*|は\s*|"
    r"^not \(?[A-Z]\)?,? but\s+|^(?:among|of)\b[^,]{1,40},\s*",
    re.IGNORECASE,
)
"""Before the letter of an option."""
_OPTION = re.compile(
    r"\W*(?:(?i:option|choice|letter|answer)\s+)?(?:\(([A-Za-z])\)|([A-Z])(?=\s*(?:[).:,\]*!>]|-\s|$|\n|\s\(?[-$\\0-9]|"
    r"\s\([A-Z][a-z]|です|입니다|\s(?:satisfies|works|holds)\b|"
    r"\s(?:is|must be)\s(?:the\s)?(?:correct|right|true|only|answer)\b|"
    r"\s\(?(?:because|since|rather than|instead of|not)\b)))"
)
_NOT_BUT = re.compile(r"^not \(?[A-Z]\)?,? but\b", re.IGNORECASE)
DENIALS = re.compile(
    r"\b(?:not|never|neither|nor|cannot|doubt|no es|nicht)\b|n't\b|n'est pas|不", re.IGNORECASE
)
_DISMISSED = re.compile(
    r"\s*(?:\(\s*[Nn]ot\s+(?![A-Z]\b)|\?|[).]?\s*(?:[-$\\0-9][^.,;\n]{0,20})?"
    r"\b(?:is|are|must be|works|holds|satisfies)\b[^,.;]{0,30}"
    r"\b(?:none|not|partly|wrong|false|incorrect|fails?|distractor)\b)"
)
"""Behind a letter that is not chosen."""
_ANOTHER = re.compile(r"\)?\s*\([A-Z]\)|[\s,;/&*)]*(?:(?:and|or|nor)\b\W*|(?<=[,;/&])\s*)\(?(?!I\b)[A-Z]\b")
"""Behind a letter, where it is not the only one."""
_EXPLAINED = re.compile(r"\b(?:because|since|as|not|rather|instead|unlike|whereas|while|but)\b|\n")
_MARKED = re.compile(
    r"(?<![\w\\])(?:\(([A-Z])\)|([A-Z])(?:\)|[.:](?=\s)))|\bor\b\W*(?:maybe\s+)?\(?([A-Z])\b(?![ '][a-z])"
)
"""The letter of an option, as a list of them has it."""


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
            letter = (found[1] or found[2]).upper()
            is_denied = DENIALS.search(_NOT_BUT.sub("", plain[: found.end()])) or _DISMISSED.match(
                plain, found.end()
            )
            behind = _EXPLAINED.split(plain[found.end() :], maxsplit=1)[0]
            others = {next(filter(None, other.groups())) for other in _MARKED.finditer(behind)} - {letter}
            return letter if not (is_denied or others or _ANOTHER.match(plain, found.end())) else None
    return None


def line_that_chooses(text: str) -> str | None:
    """The line of a text that gives an option: its last one, or its first one before an explanation.

    The options as they were given choose none.
    """
    lines = [line for line in text.strip().splitlines() if line.strip()]
    labels = [_LABEL.match(unstyled(line)) for line in lines]
    if len({label[1] or label[2] for label in labels if label}) > 1:
        lines = [line for line, label in zip(lines, labels, strict=True) if not label]
    return next((line for line in (*lines[-1:], *lines[:1]) if chosen(line)), None)
