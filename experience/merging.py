"""Many insights into few: duplicates merge, contradictions are settled by evidence.

Pure functions of texts and evidence, so that the same insights always end up in the same state.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

from bm25s.stopwords import STOPWORDS_EN
from snowballstemmer import stemmer

from experience.insight import Insight, InsightState

NEGATIONS = frozenset({"not", "no", "never", "without", "avoid", "dont"})
RELATIONS = frozenset({"at", "by", "for", "if", "in", "into", "of", "on", "or", "to", "with"})
FILLER = (
    frozenset({*STOPWORDS_EN, *("you", "your", "we", "our", "should", "must", "always", "do", "does", "did")})
    - NEGATIONS
    - RELATIONS
)
"""Words that change no lesson."""
SPELLINGS = {
    **{"\u2019": "'", "\u2212": "-", "\ufe0e": "", "\ufe0f": "", "!=": "\u2260"},
    **{"cannot": "can not", "can't": "can not", "won't": "will not", "shan't": "shall not", "n't": " not"},
}
"""What is written in several ways, and how it is read."""
HOLDING = "_'+*/=%.-"
"""Signs that hold a word together, such as ``a=b`` and ``12.5``."""
SIGNS = "#&@\\\u2030\u2032\u2033"
"""Punctuation by its category that says something."""
FOLLOWING = re.compile(r"\b(then|next|later|afterwards?|(after|before) (that|this|which))\b")
"""What puts clauses in their order."""
LOST = 0.05
"""An insight retires when the evidence against it prevails with a smaller p-value."""
_STEMMER = stemmer("english")

Lesson = tuple[tuple[str, ...], ...]
"""What a text says: the words of each of its clauses.

Texts are one lesson if they have the same clauses, but for fillers and endings, in any order, unless a word
puts them in one, or several are but a word, as in a list. Within a clause order counts: to take one number
from the other is not to take the other from it.
"""


def _decisive(opposites: Collection[str]) -> frozenset[str]:
    """The words by which two texts on one topic contradict each other."""
    return NEGATIONS.union(word for action in opposites for word in _words(action))


def _topic(text: str, decisive: frozenset[str]) -> frozenset[tuple[str, int]]:
    """The words that those which contradict each other have in common, and how often."""
    return frozenset(Counter(word for word in _words(text) if word not in decisive).items())


def _is_contrary(first: str, second: str) -> bool:
    """Whether two texts on one topic say different things of it, which most of their words are about."""
    left, right = Counter(_words(first)), Counter(_words(second))
    difference = (left - right) + (right - left)
    return 0 < difference.total() <= (left & right).total()


def merged(known: Sequence[Insight], new: Sequence[Insight]) -> list[Insight]:
    """``known`` and ``new`` insights, duplicates made one with the support and evidence of both.

    The one that was known first keeps its text; its state is decided anew by ``settled``.
    """
    result = list(known)
    places: dict[tuple[str | None, Lesson], int] = {}
    for index, insight in enumerate(known):
        places.setdefault((insight.observation, _lesson(insight.text)), index)
    for insight in new:
        index = places.setdefault((insight.observation, _lesson(insight.text)), len(result))
        if index == len(result):
            result.append(insight)
            continue
        other = result[index]
        result[index] = replace(
            other,
            support=other.support + insight.support,
            evidence=tuple(dict.fromkeys(other.evidence + insight.evidence)),
            against=tuple(dict.fromkeys(other.against + insight.against)),
        )
    return result


def settled(insights: Sequence[Insight], opposites: Collection[str] = ()) -> list[Insight]:
    """The same insights, each with the state that its evidence gives it.

    One retires when the evidence against it prevails significantly, or when it contradicts another that has
    more for it: says the same of the same, but for a negation or for words that exclude each other. Such are
    the ``opposites``, an env's actions, say. One that retired for such a reason comes back when the evidence
    turns.
    """
    from scipy.stats import binomtest  # here: it takes a second, and most that starts needs none of it

    # Only what has one topic is compared: a model writes thousands.
    decisive = _decisive(opposites)
    topics = [(insight.observation, _topic(insight.text, decisive)) for insight in insights]
    alike: dict[Any, list[Insight]] = defaultdict(list)
    for topic, insight in zip(topics, insights, strict=True):
        alike[topic].append(insight)
    result = []
    for topic, insight in zip(topics, insights, strict=True):
        state, reason = InsightState.ACTIVE, ""
        tried = len(insight.evidence) + len(insight.against)
        rivals = [
            other for other in alike[topic] if other is not insight and _is_contrary(insight.text, other.text)
        ]
        if tried and binomtest(len(insight.evidence), tried, alternative="less").pvalue < LOST:
            state = InsightState.RETIRED
            reason = f"{len(insight.against)} traces against it, {len(insight.evidence)} for it"
        elif rivals and (best := max(rivals, key=_net)) and _net(best) > _net(insight):
            state = InsightState.RETIRED
            reason = f"contradicted by {best.id}, which has more evidence ({_net(best)} to {_net(insight)})"
        result.append(
            replace(
                insight,
                state=state,
                reason=reason or (insight.reason if insight.state == InsightState.ACTIVE else ""),
            )
        )
    return result


def with_outcomes(
    insight: Insight,
    outcomes: Mapping[int, bool],
    without: Mapping[int, bool],
    trace_ids: Mapping[int, str],
    *,
    counted: Collection[str] = (),
) -> Insight:
    """``insight`` with what an episode with it in the prompt, against the same without, says about it.

    Outcomes and traces are by seed; seeds of traces that were counted say nothing new. The insight was alone
    in its context. Its score is the lower end of its success rate's interval: 5 of 6 may be luck.
    """
    from scipy.stats import binomtest  # see ``settled``

    old = {trace_id.rpartition("/")[2] for trace_id in counted}
    both = [seed for seed in outcomes if seed in without and str(seed) not in old]
    won = [seed for seed in both if outcomes[seed] and not without[seed]]
    lost = [seed for seed in both if without[seed] and not outcomes[seed]]
    won_in_all = sum(outcomes.values())
    return replace(
        insight,
        score=float(binomtest(won_in_all, len(outcomes)).proportion_ci(method="wilson").low)
        if outcomes
        else 0.0,
        evidence=insight.evidence + tuple(trace_ids[seed] for seed in won),
        against=insight.against + tuple(trace_ids[seed] for seed in lost),
    )


def _net(insight: Insight) -> int:
    return len(insight.evidence) - len(insight.against)


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    """What tells lessons apart: without fillers, and by their stems, so that "numbers" are a "number".

    Any sign that is not plain punctuation is a word as well. Each text is compared with all the others.
    """
    words: list[str] = []
    for kind, characters in groupby(_spelt_out(text), _kind):
        if kind == "word":
            run = "".join(characters)
            word = run.rstrip("+*/=.") if run.strip(HOLDING) else ""
            words += [word, *(sign for sign in run[len(word) :] if sign not in ".'")]
        elif kind == "sign":
            words += characters
    return tuple(_STEMMER.stemWord(word) for word in words if word and word not in FILLER)


@lru_cache(maxsize=4096)
def _kind(character: str) -> Literal["word", "sign", "between"]:
    """Whether it is a part of a word, a word by itself, or neither."""
    category = unicodedata.category(character)[0]
    if category in "LNM" or character in HOLDING:  # marks too: they are vowels of Hindi
        return "word"
    is_plain = category in "ZCP" or character == "`"
    return "between" if is_plain and character not in SIGNS else "sign"


def _spelt_out(text: str) -> str:
    """In small letters, with what is written in several ways in one."""
    text = text.casefold()
    for written, meant in SPELLINGS.items():
        text = text.replace(written, meant)
    return text


def _lesson(text: str) -> Lesson:
    """The clauses of a text; in their order, and marked, where that counts."""
    text = _spelt_out(text)
    parts = re.split(r"[,;:.!?](?:\s|$)|\bthen\b", text)
    clauses = [words for part in parts if (words := _words(part))]
    if FOLLOWING.search(text):
        return (("then",), *clauses)
    is_list = sum(len(words) == 1 for words in clauses) > 1  # of moves, say
    return tuple(clauses if is_list else sorted(clauses)) or ((text,),)
