"""The final answer in a reply.

Replies are a model's output: cut to a bounded length before anything looks at them, searched in nearly linear
time, never evaluated.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from envs.any_text import clean
from envs.questions.clauses import (
    CLAUSES,
    ENDS,
    NEGATION,
    first_clause,
    formula_in,
    has_prose,
    last_said,
    said_once,
    tidy,
)
from envs.questions.notation import written
from envs.questions.numbers import MAX_CHARS as MAX_ANSWER_CHARS
from envs.questions.numbers import plain_number
from envs.questions.options import chosen, line_that_chooses
from envs.thoughts import outside_thoughts
from envs.words import MAX_REPLY_CHARS

MAX_MARKS = 16
"""How many of the places where a reply says that it gives its answer are looked at, the last ones."""
MAX_CORRECTION = 200
"""Characters at the end of a reply in which it may correct itself."""
MAX_ENDS = 8
"""How many of the places behind a mark where an answer may end are looked at, the first ones."""
_BOX = re.compile(r"\\(?:boxed|f(?:rame)?box)\s*")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.*&|/-]|\\[()\[\]\\]|\\q?quad(?![A-Za-z])|and|or|\\text\s*\{\s*(?:and|or)\s*\}"
    r"|(?<=\n)[0-9]{1,2}[.)]\s|\([a-h]\)|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_MARK = re.compile(
    r"(?<!#)#{4,}(?!\W{0,9}(?:[0-9]{1,2}[.):]\s+)?(?!(?:yes|no|true|false)\b)[A-Za-z]{2}[^\n]*\n\s*\S)|<answer>"
    r"|(?<![</A-Za-z])(?:answers?|ans)\b(?:\s+(?:to|for)\s+(?:question|problem|part)\s*\W?[0-9a-z]{1,2}\b\)?|\s*\([0-9a-z]\))?"
    r"(?:[^.:=\n]{0,60}?"
    r"\b(?:is|are|was|equals?|(?:would|should|must|will|can only|has to) be)(?P<negated>n't)?\b:?"
    r"|[*_\s\"]{0,9}[:=]|\.:?(?=\s*-?\.?[0-9]))"
    r"|^\W{0,9}(?:the )?(?:final )?answer\W{0,9}$"
    r"|(?P<foreign>respuesta|réponse|antwort|risposta|resposta|ответ)(?:[^.:=\n]{0,30}?\b(?:es|est|ist|lautet|é|è)\b|\s*[:=—-])"
    r"|(?:答案|答え|정답)\s*(?:应该|應該)?(?:是|为|為|は|은|:)?",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"#+|<answer>", re.IGNORECASE)
"""A mark behind which nothing but the answer stands."""
_TALK_OF_ANSWER = re.compile(
    r"\b(?:this|that|your|whether|if|hope)\s+(?:\w+\s+){0,2}$|"
    r"\bat first (?:glance|sight),?\s+(?:\w+\s+){0,2}$|"
    r"\b(?:verify|check|checking|confirm|student's)\s+(?:(?:the|our|my|this)\s+)?$|"
    r"\b(?:assume|suppose|imagine|false)\s+(?:that\s+)?(?:the\s+)?$|\b(?:wrong|incorrect|mistaken|tempting)\s+$|"
    r"\b(?:some|many|others|people|students|you|one)\s+(?:\w+\s+){0,2}(?:think|say|believe|assume|guess)\s+(?:\w+\s+){0,2}$",
    re.IGNORECASE,
)
"""Before a mark: what follows is no answer, but said about one."""
_JUDGEMENT = re.compile(
    r"(?:(?:very|quite|most|all|now|also|indeed|definitely|so) )?"
    r"(?:helpful|useful|right|correct|wrong|incorrect|clear|good|fine|ok(?:ay)?|accurate|valid|verified|confirmed|complete|reasonable|obvious|easy|simple|consistent|here|"
    r"(?:shown |given )?(?:above|below))\b[^0-9]*",
    re.IGNORECASE,
)
_JSON = re.compile(r"\"?([^\"\n{}]+)\"?\s*[,}\n]")
"""The value behind a key."""
_BULLET = re.compile(r"^\W{0,4}\n\s*[-*•]\s+")
_BEHIND_MARK = re.compile(
    r"(?:as follows|given by|equal to|simply|just|thus|therefore|now|then)\b\s*:?\s*", re.IGNORECASE
)
_IS_THE_ANSWER = re.compile(
    r"(?:^|[.,:;]\s)\s*(?:(?:so|thus|hence|therefore|then|and)\b,?\s*)?(?P<said>[^.,:;\n]{1,60}?)\s+(?:is|are)\s+"
    r"(?:the|my|our)\s+(?:\w+\s)?answer\b(?!\s+(?:to|of)\s+(?:another|a different))",
    re.IGNORECASE | re.MULTILINE,
)
_DOUBTED = re.compile(NEGATION.pattern + r"|\b(?:since|because|as)\b", re.IGNORECASE)
_FIRST = re.compile(
    r"\W{0,9}(?P<said>[A-Z][^.!?\n]{1,40}?)(?:\*\*)?[.!\n]\W{0,9}"
    r"(?P<rest>(?:(?i:it|this|he|she|they)|(?P=said))\s(?i:is|was|are|were|has|had|have|lies|means)\b.*)",
    re.DOTALL,
)
"""A short first sentence, and what is then said of it."""
_IS = re.compile(r"\b(?:is|are|was|were)\s+")
_CORRECTED = re.compile(
    r"(?:^|[.!?,;\n])[\s*_]*+(?:(?:no(?=[,.!])|wait|oops|sorry|hmm|actually|correction|edit|rather|"
    r"on second thought|scratch that|I made an? (?:mistake|error)|my mistake)\b[\s,.:!*_-]*+){1,4}"
    r"(?:(?:it|that|this|the answer|I)(?:'s| is| was| meant| mean| should be| should have been)\s+)?"
    r"(?:actually\s+)?(?P<said>(?:\\?[$(]{0,2}[-+]?[0-9][0-9,./]*!*|\(?[A-Z]\)?(?:[.)]? [0-9][0-9.,]*)?)"
    r"(?: [A-Za-z]+)?)[\s.*$)]*$",
    re.IGNORECASE,
)
"""What a reply says in the end in place of what it has said."""
_WITHDRAWN = re.compile(
    r"(?:^|[.!?,\n])[\s*_]*+(?:(?:oh|hmm|no|but|and)\b,?\s+){0,3}"
    r"(?:(?P<mild>wait|hold on|on second thought|actually(?=,))|oops|scratch that|"
    r"I (?:made an? (?:mistake|error)|was wrong|misread)|"
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
_FENCE = re.compile(r"^[ \t]*```\w{0,12}[ \t]*$", re.MULTILINE)
_DECIMAL_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{1,2}(?![0-9]))")
_ROUNDED = re.compile(
    r"(\\(?:sqrt|pi|frac)(?![A-Za-z])[^,.;\n]{0,40}?),?\s+(?:(?:which|that) is\s+|or\s+|i\.e\.,?\s+)?"
    r"(?:about|approximately|roughly|around|approx\.)\s+(?=\W{0,2}[0-9])"
)
"""Between a formula and what it comes to when it is rounded."""
_CHECK = re.compile(
    r"(?:^|\n|[.!?]\s)[\s*_#>-]*+"
    r"(?:(?:let's|let me|let us|we can|I'll|to|now|quick|quickly|double|sanity)[\s,:-]+){0,3}"
    r"(?:verify|verification|check(?:ing)?)\b(?:\s+(?:our|the|this|my)\s+\w+)?",
    re.IGNORECASE,
)
"""Where a reply begins to check what it has said."""
_CONCLUDES = re.compile(
    r"\\f?boxed|#{4}|(?i:\b(?:so|thus|therefore|hence|answer|wait|actually|wrong|mistake|incorrect|not|should|instead|option)\b)"
    r"[^.]{0,80}?(?:[0-9]|\b[A-H]\b)"
)
"""A check that comes to another answer, or says it once more."""
_GIVES = re.compile(r"[0-9]|\b(?:[B-H]\b|A\b(?! [a-z]))")
_GOLD_MARK = re.compile(r"\b(?:answer|ans)\b[^.:=\n]{0,60}?(?:\bis\b:?|[*_\s]{0,9}[:=])", re.IGNORECASE)


def final_answer(reply: str, *, is_text: bool = False, is_choice: bool = False) -> str | None:
    r"""What the reply says is the answer; ``None`` if it says nothing.

    It is the last ``\boxed{}``; else what stands after the last ``answer is``, ``answer:``, ``####`` or
    ``<answer>``; else the last formula or number, or a last line that begins with one. What is thought or
    denied is no answer, and neither is what is said about one or in explanation of it.

    Args:
        reply: Only its end is looked at.
        is_text: The answer is words: without a mark it is the last sentence and not its last number.
        is_choice: It is the letter of an option: it is what gives one.
    """
    text = _end_of(reply)
    if text is None:
        return None
    if (boxed := _boxed(text)) is not None and (boxed := tidy(boxed)):
        return boxed if is_text else said_once(boxed)
    if is_choice:
        said = next((answer for _, answer in _stated(text) if chosen(answer)), None)
        return said or line_that_chooses(text)
    if stated := [answer for _, answer in _stated(text)]:
        answer = next((answer for answer in stated if is_text or not _is_talk(answer)), stated[0])
        return answer if is_text or plain_number(answer) else formula_in(answer)
    if (last := _last(_IS_THE_ANSWER, text)) and not NEGATION.search(last["said"]):
        return formula_in(tidy(last["said"])) or None
    return last_said(text, is_text)


def uncut_answers(reply: str) -> list[str]:
    """The final answer as it may be meant where its own text has what would end it, as in St. Petersburg.

    It stands where ``final_answer`` finds it. Without a mark it is the whole reply, its last line or what
    that says is so; with one, all that follows, or its first sentences. So it is never one of several that
    the reply gives.

    Args:
        reply: Only its end is looked at.
    """
    text = _end_of(reply)
    if text is None:
        return []
    if boxed := tidy(_boxed(text) or ""):
        found = [boxed]
    elif (stated := next(_stated(text), None)) is not None:
        line = stated[0].partition("\n")[0]
        found = [stated[0], line, *(line[: end.start()] for end in islice(ENDS.finditer(line), MAX_ENDS))]
    else:
        line = text.strip().rpartition("\n")[2]
        found = [
            line,
            *(part for part in _IS.split(line)[-1:] if CLAUSES.search(part) and not _DOUBTED.search(line)),
        ]
        first = _FIRST.match(text)
        if first and not _DOUBTED.search(first["rest"]) and not _WITHDRAWN.search(first["rest"]):
            found.append(first["said"])
    if not boxed:
        found.append(line.rstrip("*_. ").rstrip("!"))  # 42! may be said loudly
    return list(dict.fromkeys(filter(None, map(tidy, [text, *found]))))


def whole_answers(reply: str) -> list[str]:
    """What the reply may say is the answer, where answers are of any form and may have several lines.

    Without a mark it is the whole reply; with one, what follows, with and without a full stop and sentences
    behind it: an answer's own form may have these.

    Args:
        reply: Only its end is looked at.
    """
    spoken = outside_thoughts(reply)
    if spoken is None:
        return []
    text = clean(spoken[-MAX_REPLY_CHARS:])
    if boxed := (_boxed(text) or "").strip():
        return [boxed]
    said = next((_said(rest)[0] for _, rest in _marked(text)), text).strip()
    line = said.partition("\n")[0].strip()
    sentence = re.split(r"[.!](?=\s+[A-Z])", line, maxsplit=1)[0]
    readings = [
        said.removesuffix("."),
        said,
        line.removesuffix("."),
        sentence.removesuffix("."),
        said.strip("*_."),
    ]
    return list(dict.fromkeys(filter(None, (reading.strip() for reading in readings))))


def gold_answer(gold: str) -> str:
    r"""The answer in a data set's answer column: 42 of ``... #### 42``, ``... \boxed{42}``, ``["42"]``."""
    text = gold.strip()
    if text.startswith('["') and text.endswith('"]'):
        with suppress(ValueError):
            items = json.loads(text)
            text = ", ".join(map(str, items)) if isinstance(items, list) else text
    text = written(text)
    if (boxed := _boxed(text)) is not None:
        return tidy(boxed)
    if "####" in text:
        return tidy(text.rpartition("####")[2].strip().partition("\n")[0])
    if (mark := _last(_GOLD_MARK, text)) and (said := first_clause(text[mark.end() :].strip(" \n:=*_"))):
        return tidy(said)
    return tidy(text)


def _boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\boxed x``; of several that make a list, of all."""
    boxes: list[tuple[int, int, str]] = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            if text[match.end() :].startswith("{"):  # a box in a box
                content = _braced(text, match.end())
                if content is not None and boxes and match.end() + len(content) + 2 <= end:
                    boxes[-1] = (boxes[-1][0], end, content)
            continue
        if not text.startswith("{", match.end()):
            content = re.split(r"[\s$]", text[match.end() : match.end() + MAX_ANSWER_CHARS], maxsplit=1)[0]
            end = match.end() + len(content)
        elif (content := _braced(text, match.end())) is not None:
            end = match.end() + len(content) + 2
        else:
            continue
        boxes.append((match.start(), end, content))
    if not boxes:
        return None
    together = [boxes[-1]]
    while len(together) < len(boxes):
        before = boxes[-len(together) - 1]
        if not _BETWEEN_BOXES.fullmatch(text[before[1] : together[0][0]]):
            break
        together.insert(0, before)
    return ", ".join(dict.fromkeys(content.strip() for _, _, content in together))


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at ``start`` and its closing one."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 1 : index]
    return None


def _end_of(reply: str) -> str | None:
    """What is read of a reply, which may correct itself in the end; ``None`` if it has said nothing yet."""
    spoken = outside_thoughts(reply)
    if spoken is None:
        return None
    text = written(spoken[-MAX_REPLY_CHARS:])[-MAX_REPLY_CHARS:]
    text = _ROUNDED.sub(r"\1 \\approx ", _FENCE.sub("", text))
    corrected = _CORRECTED.search(text[-MAX_CORRECTION:])
    return corrected["said"] if corrected else _unchecked(_standing(text))


def _standing(text: str) -> str:
    """The text without what it takes back; all of it where it then confirms that, or says nothing new."""
    taken_back = _last(_WITHDRAWN, text)
    if taken_back is None:
        return text
    before, rest = text[: taken_back.start()], text[taken_back.end() :]
    if _BOX.search(rest) or any(_marked(rest)):
        return rest
    if re.search(r"\w", rest) is None:
        *_, sentence = re.split(r"[.!?]\s|\n", before.rstrip())
        return "" if _BOX.search(sentence) or any(_marked(sentence)) else text
    if taken_back["mild"] and _CONFIRMED.search(rest):
        return before if _GIVES.search(before) else text
    return rest if _GIVES.search(rest) else text


def _unchecked(text: str) -> str:
    """The text without the check of its answer at the end."""
    for check in islice(_CHECK.finditer(text), MAX_ENDS):
        before = text[: check.start() + 1].rstrip()
        if _GIVES.search(before[before.rfind("\n") + 1 :]) and not _CONCLUDES.search(text, check.end()):
            return before
    return text


def _stated(text: str) -> Iterator[tuple[str, str]]:
    """What follows each mark that has an answer behind it, and that answer, the last one first."""
    for mark, rest in _marked(text):
        said, is_math = _said(rest)
        said = said if "{" in said else re.sub(r"\"?\s*\}\s*$", "", said)  # the end of JSON
        answer = tidy((said if is_math else first_clause(said.strip(' \n\t:=*_"'))) or "")
        if answer and (_TAG.fullmatch(mark) or not _JUDGEMENT.fullmatch(answer)):
            yield rest, answer


def _is_talk(answer: str) -> bool:
    """Whether it says something of an answer that is given elsewhere, as "an integer" and "not 57" do."""
    return re.match(r"(?:not|never|rounded)\b", answer) is not None or (
        re.search(r"[0-9\\=<>]|\b[A-Z]\b|anything", answer) is None
        and re.match(r"\s*\S\S", answer) is not None
        and has_prose(answer)
    )


def _marked(text: str) -> Iterator[tuple[str, str]]:
    """Each mark of an answer and what follows it, the last one first."""
    for mark in reversed(deque(_MARK.finditer(text), maxlen=MAX_MARKS)):
        if mark["negated"] or _TALK_OF_ANSWER.search(text[max(0, mark.start() - 40) : mark.start()]):
            continue
        rest = _BULLET.sub("", text[mark.end() :].partition("</answer>")[0]).strip(" \n\t:=").lstrip("}")
        if text[mark.start() - 1 : mark.start()] == '"' and (value := _JSON.match(rest)):
            rest = value[1].replace("\\\\", "\\")
        if mark["foreign"] and NEGATION.search(mark[0] + text[mark.end() : mark.end() + 13]):
            continue
        if mark["foreign"]:
            rest = _DECIMAL_COMMA.sub(".", rest)
        if _said(rest)[0]:
            yield mark[0], rest


def _said(rest: str) -> tuple[str, bool]:
    """What is said behind a mark, and whether it is a displayed formula."""
    said = _BEHIND_MARK.sub("", rest) if _BEHIND_MARK.match(rest) else rest
    formula = _display(said.lstrip("*_ "))
    return formula or said, bool(formula)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _display(text: str) -> str | None:
    """A displayed formula at the beginning of ``text``, on one line."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if text.startswith(opening) and (end := text.find(closing, 2)) > 0:
            return " ".join(text[2:end].split())
    return None
