"""The final answer in a reply.

Replies are a model's output: cut to a bounded length before anything looks at them, searched in nearly linear
time, never evaluated.
"""

# ruff: noqa: RUF001

import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from envs.any_text import clean
from envs.questions.numbers import MAX_CHARS as MAX_ANSWER_CHARS
from envs.questions.numbers import MAX_DIGITS, NUMBER, TEXT, UNITS, plain_number, unit_of
from envs.thoughts import outside_thoughts
from envs.words import MAX_REPLY_CHARS

MAX_DEPTH = 12
"""Brackets in brackets."""
MAX_MARKS = 16
"""Of the places where a reply says that it gives its answer the last so many are looked at."""
MAX_ENDS = 8
"""Of the places behind a mark where an answer may end the first so many are looked at."""

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

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;.*]|\\[()\[\]]|and|or|\\text\s*\{\s*(?:and|or)\s*\})*")
_MARK = re.compile(
    r"####|<answer>"
    r"|(?<![</])\b(?:answers?|ans)\b(?:[^.:=\n]{0,60}?\b(?:is|are|was)(?P<negated>n't)?\b:?|[*_\s]{0,9}[:=]|\.(?=\s*[-0-9]))"
    r"|^\W{0,9}(?:the )?(?:final )?answer\W{0,9}$"
    r"|(?:respuesta|réponse|antwort|risposta|resposta|ответ)(?:[^.:=\n]{0,30}?\b(?:es|est|ist|lautet|é|è)\b|\s*[:=—-])"
    r"|(?:答案|答え|정답)\s*(?:应该|應該)?(?:是|为|為|は|은|:)?",
    re.IGNORECASE | re.MULTILINE,
)
_TAGS = frozenset({"####", "<answer>"})
"""Marks behind which nothing but the answer stands."""
_TALK_OF_ANSWER = re.compile(r"\b(?:this|that|your|whether|if|hope)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
"""Before a mark: what follows is no answer, but said about one."""
_JUDGEMENT = re.compile(
    r"(?:(?:very|quite|most|all|now|also|indeed|definitely|so) )?"
    r"(?:helpful|useful|right|correct|wrong|incorrect|clear|good|fine|ok(?:ay)?|accurate|valid|verified|confirmed|complete|reasonable|obvious|easy|simple|consistent|here|"
    r"(?:shown |given )?(?:above|below))\b[^0-9]*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\W{0,4}\n\s*[-*•]\s+")
_BEHIND_MARK = re.compile(
    r"(?:as follows|given by|equal to|simply|just|thus|therefore|now|then)\b\s*:?\s*", re.IGNORECASE
)
_IS_THE_ANSWER = re.compile(
    r"(?:^|[.,:;]\s)\s*(?:(?:so|thus|hence|therefore|then|and)\b,?\s*)?(?P<said>[^.,:;\n]{1,60}?)\s+(?:is|are)\s+"
    r"(?:the|my|our)\s+(?:\w+\s)?answer\b(?!\s+(?:to|of)\s+(?:another|a different))",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|\?(?=\s|$)|(?<=[A-Za-z]{2})!(?=\s|$)|\*\*(?=\s)")
_EXPLAINED = re.compile(r"\s(?:because|since|which|but|as in|where|i\.e\.|that is)(?!\w)")
_CLAUSE_END = re.compile(
    rf",\s+(?!(?:and|or)\b)(?=[A-Za-z]{{2}})|;|{_EXPLAINED.pattern}|\s[-:]+\s(?=[A-Za-z]{{2}}|I\b)"
)
_NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|instead of|rather than|other than|anything but|far from|"
    r"unlike|incorrect|wrong)\b|n't\b|不是|\bnicht\b|\bno es\b|n'est pas",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"^\s*(?:\\text\s*\{[^{}]*(?:\bis|\bare|:|=)\s*\}|\\approx|\\sim|~)\s*(?=\S)")
"""Before an answer, without being a part of it."""
_DELIMITERS = re.compile(r"(?<!\\)\$+|\\[()\[\]]")
_MATH = re.compile(r"(?<!\\)\$([^$]+)\$|\\\(((?:[^\\]|\\(?![()]))+)\\\)|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]")
_NO_PROSE = re.compile(TEXT.pattern + r"|\\(?:begin|end|operatorname|mathbb|mathcal|text)\s*\{[^{}]*\}")
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|(?:is|so|it|we|of|at|by|he)(?![A-Za-z]))|[\u3040-\u9fff\uac00-\ud7af]+"
)
_MATH_WORDS = frozenset(
    re.findall(
        r"\w+",
        "and or sin cos tan cot sec csc log exp sqrt arcsin arccos arctan lim mod inf gcd lcm det infinity",
    )
)
_PIECES = re.compile(r"((?<![\\A-Za-z])[^\W\d_]+(?:['-][^\W\d_]+)*)")
_LOOSE_END = re.compile(r"\s\([^()]*$|[\s,]+(?:and|or)\s*$|^\s*(?:and|or)\s")
_CLAUSES = re.compile(rf"{_SENTENCE_END.pattern}|{_CLAUSE_END.pattern}")
_IS = re.compile(r"\b(?:is|are|was|were)\s+")
_ENDS = re.compile(rf"{_SENTENCE_END.pattern}|{_EXPLAINED.pattern}")
"""Where an answer may end that has full stops or commas of its own; of a list its beginning is no answer."""
_EXPLANATION = re.compile(r"\s\((?!mod)(?:[^()\\]*[A-Za-z]{3}|\s*(?:or|=|i\.e\.|\\approx))[^()\\]*\)")
_GUARD = re.compile(
    r"\b(?:between|(?:less|more|greater|fewer|smaller|larger|higher|lower|bigger) than|at (?:least|most)|"
    r"under|over|below|above|up to|plus|minus|times|divided|multiplied|added|subtracted|half|third|quarter|"
    r"or (?:more|less|fewer|greater|higher|lower)|twice|double|triple|thrice|squared|cubed|factorial|modulo|"
    r"choose|to the power|"
    r"(?:sum|product|difference|quotient|ratio|square|cube|root|power|average|mean|gcd|lcm|remainder|"
    r"determinant|derivative|integral|multiple|percent|factor|divisor|logarithm) of)\b"
    r"|[0-9]\s*\\?%\s+of\s+\$?[0-9]|[0-9]\s*(?:to|-)\s*\$?[0-9]",
    re.IGNORECASE,
)
"""What makes of the number beside it another one."""
_EXPLAINS = frozenset(
    re.findall(
        r"\w+",
        "out of per for from with when at after before each on by if given where who that every in since "
        "because using made making among",
    )
)
"""A number behind these words is no part of the one before."""
_EQUALS = re.compile(r"\s(?:equals?|is equal to|is|makes|gives|=)\s")
_LEADS = re.compile(
    r"\W*(?:about|approximately|roughly|around|exactly|only|just|approx\.?)?\s*[-+$€£\\]*[0-9]", re.IGNORECASE
)
_VERB = re.compile(
    r"=|\b(?:is|are|was|were|equals?|makes?|gives?|be|so|has|have|had|get|gets)\b", re.IGNORECASE
)
_GOLD_MARK = re.compile(r"\b(?:answer|ans)\b[^.:=\n]{0,60}?(?:\bis\b:?|[*_\s]{0,9}[:=])", re.IGNORECASE)


def final_answer(reply: str, *, is_text: bool = False) -> str | None:
    r"""What the reply says is the answer; ``None`` if it says nothing.

    It is the last ``\boxed{}``; else what stands after the last ``answer is``, ``answer:``, ``####`` or
    ``<answer>``; else the last formula or number, or a last line that begins with one. What is thought or
    denied is no answer, and neither is what is said about one or in explanation of it.

    Args:
        reply: Only its end is looked at.
        is_text: The answer is words: without a mark it is the last sentence and not its last number.
    """
    text = _end_of(reply)
    if text is None:
        return None
    if (boxed := _boxed(text)) is not None and (boxed := _tidy(boxed)):
        return boxed
    for _, answer in _stated(text):
        return answer if is_text or plain_number(answer) else formula_in(answer)
    if (last := _last(_IS_THE_ANSWER, text)) and not _NEGATION.search(last["said"]):
        return formula_in(_tidy(last["said"])) or None
    return _unmarked(text, is_text)


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
    if boxed := _tidy(_boxed(text) or ""):
        found = [boxed]
    elif (stated := next(_stated(text), None)) is not None:
        line = stated[0].partition("\n")[0]
        found = [stated[0], line, *(line[: end.start()] for end in islice(_ENDS.finditer(line), MAX_ENDS))]
    else:
        line = text.strip().rpartition("\n")[2]
        found = [
            line,
            *(part for part in _IS.split(line)[-1:] if _CLAUSES.search(part) and not _NEGATION.search(line)),
        ]
    return list(dict.fromkeys(filter(None, map(_tidy, [text, *found]))))


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
        return _tidy(boxed)
    if "####" in text:
        return _tidy(text.rpartition("####")[2].strip().partition("\n")[0])
    if (mark := _last(_GOLD_MARK, text)) and (said := _first_clause(text[mark.end() :].strip(" \n:=*_"))):
        return _tidy(said)
    return _tidy(text)


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


def formula_in(said: str) -> str:
    """The formula or number that a clause gives, without the words around it; the clause if there is none.

    It is the first one, since explanations come after. Where the words make of it another number, as in "not
    42", "6 times 7" or "3 apples and 20 pears", it is the clause.
    """
    shorter = _EXPLANATION.sub("", said)
    said = shorter if re.search("[0-9]", shorter) else said
    if not said or plain_number(said) or not _has_prose(said) or _NEGATION.search(said):
        return said
    if _GUARD.search(said):
        *_, result = parts = _EQUALS.split(said)
        return formula_in(result) if len(parts) > 1 else said
    restated = [plain_number(part) for part in re.split(r",?\s+or\s+", said)]
    if len({number.unit for number in restated if number and number.unit}) == len(restated) > 1:
        return re.split(r",?\s+or\s+", said)[0]  # 42 minutes, or 0.7 hours
    if typeset := _MATH.search(said):
        return _tidy(next(group for group in typeset.groups() if group))
    formulas, between = [""], [""]
    for piece in _PIECES.split(said):
        is_unit = re.search(r"[0-9]\s$", formulas[-1]) and unit_of(piece) in UNITS.values()
        if _PIECES.fullmatch(piece) and not (piece.lower() in _MATH_WORDS or is_unit or _is_letter(piece)):
            between[-1] += f" {piece.lower()}"
        elif between[-1] and piece.strip():
            formulas.append(piece)
            between.append("")
        else:
            formulas[-1] += piece
    found = [n for n, formula in enumerate(formulas) if re.search(r"[0-9]|\\[A-Za-z]{2}", formula)]
    if not found:
        return said
    formula, behind = formulas[found[0]], " ".join(between[found[0] : found[1]] if len(found) > 1 else [])
    is_alone = len(found) == 1 or formulas[found[1]].lstrip(" ,").startswith("(")
    if not is_alone and not _EXPLAINS & set(behind.split()):
        return said
    return _tidy(_LOOSE_END.sub("", formula)) or said


def _is_letter(word: str) -> bool:
    """Whether it may be a variable."""
    return len(word) == 1 and word.isascii() and word not in "aAI"


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
    """What is read of a reply; ``None`` if it has said nothing yet."""
    spoken = outside_thoughts(reply)
    return None if spoken is None else written(spoken[-MAX_REPLY_CHARS:])[-MAX_REPLY_CHARS:]


def _stated(text: str) -> Iterator[tuple[str, str]]:
    """What follows each mark that has an answer behind it, and that answer, the last one first."""
    for mark, rest in _marked(text):
        said, is_math = _said(rest)
        answer = _tidy((said if is_math else _first_clause(said.strip(' \n\t:=*_"'))) or "")
        if answer and (mark.lower() in _TAGS or not _JUDGEMENT.fullmatch(answer)):
            yield rest, answer


def _marked(text: str) -> Iterator[tuple[str, str]]:
    """Each mark of an answer and what follows it, the last one first."""
    for mark in reversed(deque(_MARK.finditer(text), maxlen=MAX_MARKS)):
        if mark["negated"] or _TALK_OF_ANSWER.search(text[max(0, mark.start() - 40) : mark.start()]):
            continue
        rest = _BULLET.sub("", text[mark.end() :].partition("</answer>")[0]).strip(" \n\t:=")
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


def _first_clause(said: str) -> str | None:
    """The first thing that is said, up to where it ends or is explained; of "not 41 but 42", 42."""
    sentence = _SENTENCE_END.split(said.strip(), maxsplit=1)[0]
    clauses = [clause.strip() for clause in _CLAUSE_END.split(sentence)]
    if len(clauses) > 1 and _GUARD.search(clauses[0]) and clauses[1].startswith("which "):
        return f"{clauses[0]} {clauses[1].removeprefix('which ')}"
    if _NEGATION.match(clauses[0]) and len(clauses) > 1:
        return next((clause for clause in clauses[1:] if not _NEGATION.search(clause)), clauses[0])
    return re.sub(r"^(?:minus|negative)\s+(?=\W?[0-9])", "-", clauses[0]) or None


def _unmarked(text: str, is_text: bool) -> str | None:
    """What a reply says that does not say where its answer stands."""
    lines = text.strip().splitlines()
    if not lines:
        return None
    last = _tidy(lines[-1])
    if last and (plain_number(last) or not _has_prose(last)):
        return last
    sentences = [sentence for sentence in map(_tidy, _SENTENCE_END.split(lines[-1])) if sentence]
    if is_text:
        return sentences[-1] if sentences else None
    if (
        last
        and _LEADS.match(last)
        and not _VERB.search(sentences[0])
        and formula_in(sentences[0]) != sentences[0]
    ):
        return formula_in(sentences[0])
    told = [
        clause
        for clause in _CLAUSES.split(text)
        if not _NEGATION.search(clause) and not _GUARD.search(clause)
    ]
    found = next(filter(None, map(_last_formula, reversed(told))), None)
    if not found and len(text) <= MAX_ANSWER_CHARS // 8:
        found = text
    return _tidy(found or "") or None


def _last_formula(text: str) -> str | None:
    """The last formula between dollars and the like, or number, whichever ends last."""
    text = _EXPLANATION.sub("", text)
    end, found = 0, None
    for match in _MATH.finditer(text):
        end, found = match.end(), next(group for group in match.groups() if group)
    for match in NUMBER.finditer(text):
        if match.end() > end and any(character.isdigit() for character in match[0]):
            end, found = match.end(), match[0]
    return found


def _tidy(answer: str) -> str:
    r"""Without the marks around it; of ``$x$``, ``**x**`` or ``x.``, ``x``."""
    answer = _BEFORE.sub("", _DELIMITERS.sub("", answer).replace("\\displaystyle", ""))
    answer = answer.strip(" \t\n*`").removesuffix("\\").lstrip(" \n\t,;:=").rstrip(" \n\t.,;:=?")
    calm = answer.rstrip("!")
    if len(calm) > 1 and calm[-2:].isalpha():  # 5! and n! are factorials
        answer = calm
    if len(answer) > 1 and answer[0] == answer[-1] and answer[0] in "\"'_":
        answer = answer.strip(answer[0])
    return answer.strip("*` ").rstrip(".")


def _has_prose(text: str) -> bool:
    return any(word[0].lower() not in _MATH_WORDS for word in _WORD.finditer(_NO_PROSE.sub("", text)))
