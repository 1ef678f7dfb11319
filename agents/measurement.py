"""Before and after on the test seeds, beside the random, the best blind and the optimal policy."""

from contextlib import closing
from typing import Any

import pandas as pd

from agents.policies.vllm.policy import EnginePolicy, draws_at
from agents.run.folder import peak_rss_bytes
from agents.run.run import Run
from evals.baselines import Baselines
from evals.result import Comparison, EvalResult, cut_short
from experience.context import NO_CONTEXT, Context
from experience.phase import Phase

MAX_BLIND_CANDIDATES = 64
"""Successful action sequences that compete for the blind arm, the shortest first."""


def measure(run: Run, context: Context) -> dict[str, Any]:
    """Measure every arm and write ``results.json``, the run's public contract; returns what it holds."""
    config = run.config
    fixed = run.ranks.from_main(lambda: _baselines(run))
    first, *others = (_played_arms(run, temperature, context) for temperature in config.eval_temperature)
    results: dict[str, Any] = {
        **about_run(run),
        "eval_temperature": list(config.eval_temperature),
        "success_means": run.words.success.means,
        "arms": _as_dicts(fixed | first[0]),
        **first[1],
    }
    for arms, comparisons in others:  # one at most
        results["sampled_arms"] = _as_dicts(fixed | arms)
        results |= {f"sampled_{name}": comparison for name, comparison in comparisons.items()}
    if run.ranks.is_main:
        results["cut_short"] = cut_short(run.store.traces())
        run.folder.write_json("results.json", results)
    return run.ranks.broadcast(results)


def about_run(run: Run) -> dict[str, Any]:
    """Of what run, and what it took until now: what ``results.json`` says of any."""
    config = run.config
    return {
        "schema_version": 1,
        "env": config.env,
        "env_kwargs": config.env_kwargs,
        "model": config.model,
        "seed": config.seed,
        "best_step": run.agent.step,
        "wall_seconds": run.ranks.from_main(lambda: round(run.folder.seconds, 1)),
        "peak_rss_bytes": peak_rss_bytes(),
        "processes": run.ranks.size,
    }


def _baselines(run: Run) -> dict[str, EvalResult]:
    """The arms that nobody's weights play."""
    config = run.config
    baselines = Baselines(
        config.env, config.env_kwargs, vectorization=config.vectorization, timeout=config.env_timeout
    )
    with closing(baselines):
        if baselines.is_text:  # there is no random text, and no end of texts to choose from
            constant = baselines.constant(run.seeds.validation, run.seeds.test)
            return {} if constant is None else {"blind": constant[0]}
        arms = {"random": baselines.random(run.seeds.test)}
        if run.words.actions:
            candidates = _successful_actions(run)
            arms["blind"], _ = baselines.blind(candidates, run.seeds.validation, run.seeds.test)
        if (optimal := baselines.optimal()) is not None:
            arms["optimal"] = optimal
        return arms


def _played_arms(
    run: Run, temperature: float, context: Context
) -> tuple[dict[str, EvalResult], dict[str, dict[str, float]]]:
    """Before and after, with and without the context, and what a teacher without any would have come to.

    Returns:
        The arms; and by name ``comparison`` (after against before, both without the context),
        ``context_put_back`` (what it does after) and ``against_empty_context``, where there is that arm.
    """
    frames, agent = {}, run.agent
    for arm, policy in (("before", agent.base), ("after", agent.student)):
        for suffix, shown in (("", NO_CONTEXT), ("_with_experience", context)):
            phase = Phase.test(arm + suffix, temperature)
            if arm == "after" and agent.step == 0:  # the same weights: nobody has to play that again
                frames[arm + suffix] = run.repeat(Phase.test("before" + suffix, temperature), phase)
            else:
                frames[arm + suffix] = run.play(phase, policy, run.seeds.test, temperature, shown)
    pairs = {"comparison": ("after", "before"), "context_put_back": ("after_with_experience", "after")}
    if (control := _empty_context(run, temperature, frames["before"])) is not None:
        frames["empty_context"] = control
        pairs["against_empty_context"] = ("after", "empty_context")
    return (
        {arm: EvalResult.from_traces(frame) for arm, frame in frames.items()},
        {name: Comparison.of(frames[one], frames[two]).as_dict() for name, (one, two) in pairs.items()},
    )


def _empty_context(run: Run, temperature: float, before: pd.DataFrame) -> pd.DataFrame | None:
    """The control: self-distillation from a teacher whose context is empty, as it would end if it never did.

    The loss compares the student's logits over ``temperature`` with the teacher's over
    ``teacher_temperature``, and is zero where the student's are the teacher's times the ratio of the two. So
    the limit of that training, whatever its steps and data, is the bare teacher at another temperature:
    nobody has to train it. A greedy agent says what it said before.

    Returns:
        ``None`` where there is no such limit: the teacher follows the student, whose sharpening feeds on
        itself; the loss leaves out what is not in the top-k, and is least elsewhere; the teacher is on a
        server, where it can only score; or vLLM does not draw at that temperature.
    """
    config, agent = run.config, run.agent
    if config.teacher_kind != "base" or config.loss not in ("tail", "full") or agent.scorer is not None:
        return None
    sharpened = temperature * config.teacher_temperature / config.temperature
    if sharpened == temperature and agent.teacher is agent.base:
        return before
    if isinstance(agent.teacher, EnginePolicy) and not draws_at(sharpened):
        return None
    phase = Phase.test("empty_context", temperature)
    return run.play(phase, agent.teacher, run.seeds.test, sharpened)


def _successful_actions(run: Run) -> list[tuple[str, ...]]:
    """The action sequences of the train episodes that succeeded, as texts."""
    turns = run.store.turns(phases=run.played)
    turns = turns[turns["success"] & turns["action"].notna()]
    sequences = set(turns.groupby("trace_id")["action"].agg(tuple))
    return sorted(sequences, key=lambda sequence: (len(sequence), sequence))[:MAX_BLIND_CANDIDATES]


def _as_dicts(arms: dict[str, EvalResult]) -> dict[str, dict[str, Any]]:
    return {name: arm.as_dict() for name, arm in arms.items()}
