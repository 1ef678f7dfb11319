"""Where a text says that it gives its answer: in a box, or behind a mark such as "answer is" or ####."""

import re
from collections import deque
from collections.abc import Iterator

from envs.questions.judge.clauses import NEGATION, first_clause, tidy
from envs.questions.judge.notation import UPRIGHT, depths
from envs.questions.judge.numbers import MAX_CHARS as MAX_ANSWER_CHARS

MAX_MARKS = 16
"""How many marks of a text are looked at, the last ones."""
MAX_CONDITION = 200
"""Characters before a mark in which it may be said under what condition it holds."""
_BOX = re.compile(rf"\\(?:boxed|f(?:rame)?box)\s*(?:\{{|(?P<bare>[^\s$][^\s$]{{0,{MAX_ANSWER_CHARS}}}))")
_BETWEEN_BOXES = re.compile(
    rf"(?:[\s$,;.*&|/-]|\\[()\[\]\\]|\\q?quad(?![A-Za-z])|and|or|{UPRIGHT}\s*(?:and|or)\s*\}}"
    r"|(?<=\n)[0-9]{1,2}[.)]\s|\([a-h]\)|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_MARK = re.compile(
    r"(?P<tag>(?<!#)#{4,}(?!\W{0,9}(?:[0-9]{1,2}[.):]\s+)?(?!(?:yes|no|true|false)\b)[A-Za-z]{2}[^\n]*\n\s*\S)|<answer>)"
    r"|(?<![</A-Za-z])(?:answers?|ans)\b(?:\s+(?:to|for)\s+(?:question|problem|part)\s*\W?[0-9a-z]{1,2}\b\)?|\s*\([0-9a-z]\))?"
    r"(?:[^.:=\n]{0,60}?"
    r"\b(?:is|are|was|equals?|(?:would|should|must|will|can only|has to) be|"
    r"would have been)(?P<negated>n't)?\b:?"
    r"|[*_\s\"]{0,9}[:=]|\.:?(?=\s*-?\.?[0-9]))"
    r"|^\W{0,9}(?:the )?(?:final )?answer\W{0,9}$"
    r"|(?P<foreign>respuesta|réponse|antwort|risposta|resposta|ответ)(?:[^.:=\n]{0,30}?\b(?:es|est|ist|lautet|é|è)\b|\s*[:=—-])"
    r"|(?:答案|答え|정답)\s*(?:应该|應該)?(?:是|为|為|は|은|:)?",
    re.IGNORECASE | re.MULTILINE,
)
"""Behind a tag nothing but the answer stands."""
_TALK_OF_ANSWER = re.compile(
    r"\b(?:(?:this|that|your|whether|if|hope|at first (?:glance|sight),?|"
    r"(?:some|many|others|people|students|you|one)\s+(?:\w+\s+){0,2}(?:think|say|believe|assume|guess)|"
    r"(?<!\bI )(?<!\bwe )(?:says|said|claims|claimed|thinks|thought))\s+(?:\w+\s+){0,2}|"
    r"(?:verify|check|checking|confirm|student's)\s+(?:(?:the|our|my|this)\s+)?|"
    r"(?:assume|suppose|imagine|false)\s+(?:that\s+)?(?:the\s+)?|(?:wrong|incorrect|mistaken|tempting)\s+)$",
    re.IGNORECASE,
)
"""Before a mark: what follows is no answer, but said about one."""
_IF = re.compile(r"\b(?:if|had|were|without)\b[^.\n]*$", re.IGNORECASE)
"""Before a mark that says what would be the answer to another question."""
_JUDGEMENT = re.compile(
    r"(?:(?:very|quite|most|all|now|also|indeed|definitely|so) )?"
    r"(?:helpful|useful|right|correct|wrong|incorrect|clear|good|fine|ok(?:ay)?|accurate|valid|verified|confirmed|complete|reasonable|obvious|easy|simple|consistent|here|"
    r"(?:shown |given )?(?:above|below))\b[^0-9]*",
    re.IGNORECASE,
)
_JSON = re.compile(r"\"?([^\"\n{}]+)\"?\s*[,}\n]")
"""The value behind a key."""
_BULLET = re.compile(r"^\W{0,4}\n\s*[-*•]\s+")
_DECIMAL_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{1,2}(?![0-9]))")
_AS_FOLLOWS = re.compile(
    r"^(?:as follows|given by|equal to|simply|just|thus|therefore|now|then)\b\s*:?\s*", re.IGNORECASE
)
_DISPLAY = re.compile(r"[*_ ]*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])", re.DOTALL)
"""A formula on a line of its own."""


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\boxed x``; of several that make a list, of all."""
    boxes: list[tuple[int, int, str]] = []
    for box in _BOX.finditer(text):
        start, end, content = *box.span(), box["bare"]
        if content is None:
            if (content := _braced(text, end - 1)) is None:
                continue
            end += len(content) + 1
        if boxes and start < boxes[-1][1]:  # a box in a box
            if box["bare"]:
                continue
            start, end, _ = boxes.pop()
        boxes.append((start, end, content))
    together = boxes[-1:]
    for before in reversed(boxes[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text, before[1], together[0][0]):
            break
        together.insert(0, before)
    return ", ".join(dict.fromkeys(content.strip() for _, _, content in together)) if boxes else None


def marked(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each mark of an answer and what follows it, the last one first."""
    for mark in reversed(deque(_MARK.finditer(text), maxlen=MAX_MARKS)):
        if mark["negated"] or _TALK_OF_ANSWER.search(text[max(0, mark.start() - 40) : mark.start()]):
            continue
        if "would" in mark[0] and _IF.search(text[max(0, mark.start() - MAX_CONDITION) : mark.start()]):
            continue
        rest = _BULLET.sub("", text[mark.end() :].partition("</answer>")[0]).strip(" \n\t:=").lstrip("}")
        if text[mark.start() - 1 : mark.start()] == '"' and (value := _JSON.match(rest)):
            rest = value[1].replace("\\\\", "\\")
        if mark["foreign"]:
            if NEGATION.search(mark[0] + text[mark.end() : mark.end() + 13]):
                continue
            rest = _DECIMAL_COMMA.sub(".", rest)
        if said(rest)[0]:
            yield mark, rest


def stated(text: str) -> Iterator[tuple[str, str]]:
    """What follows each mark that has an answer behind it, and that answer, the last one first."""
    for mark, rest in marked(text):
        found, is_formula = said(rest)
        closing = "" if "{" in found else "}"  # of JSON
        answer = tidy(found if is_formula else first_clause(found.strip(' \n\t:=*_"' + closing)) or "")
        if answer and (mark["tag"] or not _JUDGEMENT.fullmatch(answer)):
            yield rest, answer


def says_answer(text: str) -> bool:
    """Whether it has a box or a mark."""
    return _BOX.search(text) is not None or any(marked(text))


def said(rest: str) -> tuple[str, bool]:
    """What is said behind a mark, and whether it is a formula on a line of its own."""
    found = _AS_FOLLOWS.sub("", rest)
    display = _DISPLAY.match(found)
    return (" ".join((display[1] or display[2]).split()), True) if display else (found, False)


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at ``start`` and its closing one."""
    size = next((n for n, depth in enumerate(depths(text[start:], "{", "}")) if depth == 0), None)
    return None if size is None else text[start + 1 : start + size]
