"""What a text comes to that does not say where its answer stands."""

import re
from collections.abc import Sequence
from itertools import islice

from envs.questions.judge.clauses import (
    CLAUSES,
    GUARD,
    NEGATION,
    SENTENCE_END,
    has_prose,
    prose,
    tidy,
    with_sign,
    without_contrast,
    yes_or_no,
)
from envs.questions.judge.corrections import SECOND_THOUGHT
from envs.questions.judge.formulas import FORMULA, formula_in, last_formula
from envs.questions.judge.notation import depths
from envs.questions.judge.numbers import MAX_CHARS, plain_number
from envs.questions.judge.restated import said_once
from envs.questions.judge.units import UNITS, unit_of

MAX_VERBS = 8
"""How many of a clause are looked at, the first ones."""
_REMARK = re.compile(
    r"(?:^|(?<=[.!?\n✓]))[\s*_]*+(?:(?:let me know|do you|would you|(?:I )?hope|feel free|note that|"
    r"I'm (?:about )?[0-9]+ ?% )\b[^.!?\n]*[.!?]*|(?:how|what|which|who|where|when)\b[^.!?\n]*\?)",
    re.IGNORECASE,
)
"""A sentence that says no answer: a question, or a word to the reader."""
_MARKDOWN = re.compile(r"^#{1,6} (?=[^A-Za-z\n]{1,40}$)", re.MULTILINE)
"""Before a number that is set as a heading."""
_ASKED = re.compile(r"\b(?:how (?:many|much)|what (?:is|are|was|were))\b[^.!?\n]{0,200}\?\W{0,9}$", re.I)
"""The question, where a reply ends with it."""
_REASON = re.compile(r"(?:^|\s)(?:because|since|as in)\b[^.,;\n]*", re.IGNORECASE)
_WHY = re.compile(
    r"\W*(?:explanation|reason(?:ing)?|justification|(?:this is )?because|since|here's (?:why|how)|steps?|"
    r"solution)\b",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?P<bullet>[-*•]\s+|[0-9]{1,2}[.)]\s+)?(?P<value>(?:\\[(\[]|\$*)\s*"
    r"(?:(?P<name>[A-Za-z])\s*=[^=A-Za-z+*]*(?:\\[A-Za-z][^=]*)?|(?(bullet)-?[0-9][0-9.,/]*\$*)))"
)
"""A line of a list, with a value, of a variable or not."""
_AND_OR = re.compile(r"(?:and|or)\W*", re.IGNORECASE)
_CIRCUMSTANCES = r"attained|achieved|(?:which )?occur(?:s|ring)|with equality"
_ASIDE = re.compile(rf"\s(?:ways?|when|where|while|{_CIRCUMSTANCES})\b")
_CONDITION = re.compile(
    r"\W*(?:who(?:m|se)?|"
    rf"where(?!\s+(?:the|its)\b)|when|reached|{_CIRCUMSTANCES}|(?:down|up) from|compared (?:to|with))\b"
)
"""Behind a result, before under what conditions it is one."""
_VERB = re.compile(
    r"(?<!to )\b(?:is|are|was|were|equals?|makes?|gives?|costs?|leaves?|yields?|be|so|has|have|had|"
    r"get|gets)\b|\bto (?:get|obtain)\b|:(?=\s[^:=\n]{1,100}=)",
    re.IGNORECASE,
)
_HAS_TO = "need to|have to|can|will|must|should"
_ADD, _FIND = "add|subtract|multiply|divide", "find|compute|calculate"
_UNSAID = re.compile(
    r"(?:[:=]|\s[-+/]|\b(?:is|are|was|were|equals|the|an|we|he|she|they|by|and|or|but|of|to|if|because|since|"
    rf"with|(?:{_HAS_TO}|let's|let us) (?:{_ADD}|{_FIND}))|"
    r"(?:^|[.!:\n]|\band)\W{0,9}(?:first|now|next|then))"
    r"[\s*_$\\]{0,9},?$",
    re.IGNORECASE,
)
"""An end behind which something was to be said."""
_HEADING = re.compile(
    r"(?:^|\n)\W{0,9}(?:step\s+[0-9]{1,2}\b[^0-9\n]{0,200}|"
    r"(?:(?:the\s)?(?:final\s)?(?:answer|result|conclusion)|"
    r"(?:problem|question|part|case|example)\s+[0-9]{1,2})\W{0,9})$",
    re.IGNORECASE,
)
"""An end that is the heading of what was to be said."""
_LABEL = re.compile(r"\W{0,4}([0-9]{1,2})[.)](?=\s|$)")
"""Of a line in a list."""
_WHEN = r"(?:(?:first|second|next|now|then|finally|so|to\s[^,.\n]{1,60}),?\s+)"
_TO_DO = re.compile(
    rf"\W{{0,9}}{_WHEN}{{0,3}}+(?:(?:we|let's|let us|let me|I'll|we'll)\s+{_WHEN}?"
    rf"(?:(?:{_HAS_TO})\s+{_WHEN}?)?)?"
    rf"(?:(?:{_ADD})\b|(?:{_FIND}|determine|solve|consider|figure|"
    r"work out|substitute|simplify|look at|convert|set up|apply|plug|evaluate|think|start)\b"
    r"(?!\W{0,3}[0-9][0-9.,]*+(?!\s?%)))"
    r"(?![^\n]{0,300}(?:=|:\W{0,4}[0-9]|"
    r"(?:\b(?:is|are|be|gets?|gives?|obtain|have|leaves|makes|yields|equals|to|at)|'s)\W{1,4}[0-9]))"
    r"|\W{0,9}(?:suppose|assume|recall|given|we (?:know|are given))\b[^,;\n]{0,300}(?:[,;][^0-9\n]{0,300})?$",
    re.IGNORECASE,
)
"""What is still to be done, where it does not say with what result, or what is known from the start."""
_LEADS = re.compile(
    r"\W*(?:about|approximately|roughly|around|exactly|only|just|approx\.?)?\s*[-+$€£\\]*[0-9]", re.IGNORECASE
)
"""Where a line begins with a number."""


def conclusion_of(text: str, is_text: bool) -> str | None:
    """Its last line, or the last result that it tells; ``None`` if it ends before its result.

    Args:
        text: What is said in the end.
        is_text: As in ``final_answer``.
    """
    if _ASKED.search(text):
        return None
    lines = _MARKDOWN.sub("", _REMARK.sub("", text)).strip().splitlines()
    if not lines:
        return None
    text = "\n".join(lines)
    if _UNSAID.search(text) or (not is_text and _HEADING.search(text)):
        return None
    first = tidy(lines[0])
    if is_text and (word := yes_or_no(text)):
        return word
    if not is_text and len(lines) > 1 and _is_explained(first, lines[1:]):
        return first
    if (listed := _listed(lines)) is not None:
        return listed
    lines[-1] = _unlabelled(lines)
    text, last = "\n".join(lines), with_sign(tidy(lines[-1]))
    if last and (plain_number(last) or not has_prose(last)):
        return said_once(last)
    sentences = [sentence for sentence in map(tidy, SENTENCE_END.split(lines[-1])) if sentence]
    if sentences and _TO_DO.match(sentences[-1]):
        return None
    if is_text:
        return sentences[-1] if sentences else None
    if last and (leading := _leading(sentences[0])) is not None:
        return leading
    clauses = map(without_contrast, CLAUSES.split(_REASON.sub("", text)))
    told = [clause for clause in clauses if not NEGATION.search(clause)]
    found = next(filter(None, map(_result, reversed(told))), None)
    return found or (tidy(text) if len(text) <= MAX_CHARS // 8 else None) or None


def _is_explained(first: str, others: Sequence[str]) -> bool:
    """Whether a number stands in the first line, and the others say why, and nothing else."""
    rest = "\n".join(others).strip()
    if plain_number(first) is None or SECOND_THOUGHT.search(rest):
        return False
    says_more = _VERB.search(rest) or "=" in rest or plain_number(tidy(others[-1]))
    return _WHY.match(rest) is not None or not says_more


def _unlabelled(lines: Sequence[str]) -> str:
    """The last line, without the number that it has where the lines before are numbered, too."""
    label = _LABEL.match(lines[-1])
    before = {int(other[1]) for line in lines[:-1] if (other := _LABEL.match(line))}
    return lines[-1][label.end() :] if label and int(label[1]) - 1 in before else lines[-1]


def _leading(sentence: str) -> str | None:
    """The number that a sentence begins with, if it tells nothing else."""
    if not _LEADS.match(sentence) or "=" in sentence or _VERB.search(sentence):
        return None
    found = formula_in(sentence)
    return None if found == sentence else found


def _listed(lines: Sequence[str]) -> str | None:
    """The values that are listed at the end, a line each; ``None`` if it is no such list.

    They are those of one variable, or of one each; without bullets they have to be announced, or lines with
    "or" between them: else they may be steps on the way to the last one.
    """
    found: list[re.Match[str]] = []
    above, has_or = "", False
    for line in map(str.strip, reversed(lines)):
        if (item := _VALUE.fullmatch(line)) and item["value"]:
            found.insert(0, item)
        elif found and _AND_OR.fullmatch(line):
            has_or = True
        else:
            above = line.rstrip("*")
            break
    values = [tidy(item["value"]) for item in found]
    names = {item["name"] for item in found}
    bullets = sum(item["bullet"] is not None for item in found)
    is_told = has_or or above.endswith(":")
    if len(found) < 2 or bullets not in (0, len(found)) or not (is_told or (bullets and None not in names)):
        return None
    different = {plain_number(value.partition("=")[2].strip()) or value for value in values}
    is_of_one = len(names) == 1 and len(different) == len(found)
    return ", ".join(values) if is_of_one or (is_told and len(names) == len(found)) else None


def _result(clause: str) -> str | None:
    """What a clause comes to: what stands behind its first verb that has a formula or number behind it."""
    if not FORMULA.search(clause) or _CONDITION.match(clause):
        return None
    starts = [verb.end() for verb in islice(_VERB.finditer(clause), MAX_VERBS)]
    for start in (*starts, 0):
        part = _ASIDE.split(clause[start:].strip(" \n\t*_`.,:;"), maxsplit=1)[0]
        found = tidy(formula_in(with_sign(part)))
        *_, depth = (0, *depths(found))
        are_units = plain_number(found) or all(unit_of(word) in UNITS.values() for word in prose(found))
        if depth == 0 and are_units and FORMULA.search(found):
            return found
    return None if GUARD.search(clause) else tidy(last_formula(clause) or "")
