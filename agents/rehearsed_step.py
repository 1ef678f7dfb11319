"""An optimiser step of a rehearsal: what one of the run will take."""

import time
from collections.abc import Mapping, Sequence
from itertools import takewhile

from agents.costs import Costs
from agents.dealing import Dealt, deal
from agents.examples import Pair, Question, answers
from agents.prompts import build_prompt, exchange
from agents.run.run import Run
from agents.training import make_opcd, remembering
from distill.examples import DistillError
from distill.lm.prefix_tree import PrefixTree
from distill.parallel import Ranks
from experience.context import Context
from experience.trace import Trace


def rehearse_step(
    run: Run, played: Sequence[Trace], context: Context, costs: Costs, *, lesson: str, seconds: float
) -> tuple[float, float]:
    """Seconds of an optimiser step, and of each prompt that a teacher computes before the first.

    Args:
        run: One that has not begun.
        played: What is to be trained on.
        context: What its teacher will be told.
        costs: Of playing.
        lesson: Stands for the context, if it speaks nowhere there.
        seconds: A whole step is computed where answering its prompts takes less than this, else a part of it.
    """
    config, agent = run.config, run.agent
    pairs = {action: list(those) for action, those in _pairs(run, played, context, lesson).items()}
    if not pairs:
        return 0.0, 0.0
    size = max(1, config.batch_size // run.ranks.size)
    answering = costs.play(costs.bare, size / costs.bare.turns, size)
    part = size if answering < seconds else max(1, size // 4)
    opcd = make_opcd(run, Ranks())
    who = agent.student if config.data == "student" else agent.teacher
    questions = [Question(prompts=d.moment, seed=d.seed) for d in _deal(pairs, part, config.seed)]

    def once(questions: Sequence[Question]) -> tuple[float, bool]:
        """Seconds, and whether replies are remembered."""
        started = time.monotonic()
        who.clear()
        examples = answers(agent, who, questions, config.data)
        remembers = who.remembers(agent.max_tokens)
        who.clear()
        if examples:
            opcd.rehearse(examples)
        return time.monotonic() - started, remembers

    try:
        remember = 0.0
        if teacher := remembering(run, opcd):
            started = time.monotonic()
            informed = {agent.teacher.encode(pair[1]) for those in pairs.values() for pair in those}
            teacher.remember(list(informed))
            remember = (time.monotonic() - started) / len(informed)
        # The first is slow by what is set up in it, which on a GPU is so for each size.
        once(questions[:1] if opcd.student.device.type == "cpu" else questions)
        took, remembers = once(questions)
    except DistillError:  # what does not fit is said where it comes up
        return 0.0, 0.0
    finally:
        if agent.scorer is not None:
            agent.scorer.cost()  # which is counted by step
        agent.teacher.clear()
    if not remembers:
        return took * size / part, remember
    # What is remembered is soon all the same: a step costs by its distinct tokens.
    pool = costs.train.distinct(config.episodes)
    return took * max(1.0, _tokens(run, pairs, size, pool) / _tokens(run, pairs, part)), remember


def _deal(pairs: Mapping[str, Sequence[Pair]], size: int, seed: int) -> list[Dealt[Pair]]:
    """As a run does when nothing is known yet of how far the student is anywhere."""
    return deal(pairs, {}, 0, size=size, seed=seed)


def _tokens(run: Run, pairs: Mapping[str, Sequence[Pair]], size: int, pool: float = 0.0) -> float:
    """Of a step's bare prompts, each beginning once, where there is a ``pool`` of such pairs in all.

    A step is to the pool as a part of it is to those that are known; but for what all begin with.
    """
    known = sum(len(those) for those in pairs.values())
    part = max(1, round(size * min(1.0, known / max(1.0, pool))))
    prompts = [run.agent.student.encode(pair[0]) for those in pairs.values() for pair in those]
    shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    tree = PrefixTree()
    for dealt in _deal(pairs, part, run.config.seed):
        tree.add(run.agent.student.encode(dealt.moment[0]))
    return shared + (len(tree) - shared) * size / part


def _pairs(run: Run, played: Sequence[Trace], context: Context, lesson: str) -> dict[str, dict[Pair, None]]:
    """Distinct bare prompts and those with the context where it speaks, by the action that it advises.

    If it speaks nowhere, with a lesson instead.
    """
    told, untold = dict[str, dict[Pair, None]](), dict[str, dict[Pair, None]]()
    for trace in played:
        for number, turn in enumerate(trace.turns):
            past = run.memory.of(trace.turns[:number], turn.left_out)
            acted = [(before.observation, before.action) for before in past]
            seen = run.memory.seen(run.words, acted, turn.observation)
            said = [message for before in past for message in exchange(run.words, before)]
            advice = [insight.text for insight in context.show(turn.observation, situation=seen)]
            pair = (
                build_prompt(run.words, turn.observation, past=said),
                build_prompt(run.words, turn.observation, advice or [lesson], run.config.layout, said),
            )
            action = run.words.advised(seen, advice[0]) if advice else None
            (told if advice else untold).setdefault(action or "", {})[pair] = None
    return told or untold
