"""Before and after on the test seeds, beside the random, the best blind and the optimal policy."""

from functools import partial
from typing import Any

from agents.exam import sit
from agents.run.folder import peak_rss_bytes
from agents.run.run import Session
from evals.baselines import Baselines
from evals.forgetting import ForgettingConfig, forgetting, print_table
from evals.result import Comparison, EvalResult
from experience.context import NO_CONTEXT, Context

MAX_BLIND_CANDIDATES = 64
"""Successful action sequences that compete for the blind arm, the shortest first."""


def measure(session: Session, context: Context) -> dict[str, Any]:
    """Measure every arm and write ``results.json``, the run's public contract.

    Args:
        session: Its base policy is the agent before, its student the agent after.
        context: Of the arms with experience.

    Returns:
        What was written.
    """
    config = session.config
    fixed = session.ranks.from_main(lambda: _baselines(session))
    first, *others = (_played_arms(session, temperature, context) for temperature in config.eval_temperature)
    results: dict[str, Any] = {
        "schema_version": 1,
        "env": config.env,
        "env_kwargs": config.env_kwargs,
        "model": config.model,
        "seed": config.seed,
        "eval_temperature": list(config.eval_temperature),
        "success_means": session.words.success.means,
        "best_step": session.student_step,
        "arms": _as_dicts(fixed | first[0]),
        "comparison": first[1].as_dict(),
        "context_put_back": first[2].as_dict(),
    }
    for arms, comparison, put_back in others:  # one at most
        results["sampled_arms"] = _as_dicts(fixed | arms)
        results["sampled_comparison"] = comparison.as_dict()
        results["sampled_context_put_back"] = put_back.as_dict()
    if session.ranks.is_main:
        if config.forgetting:
            _measure_forgetting(session)
        results["wall_seconds"] = round(session.folder.seconds, 1)
        results["peak_rss_bytes"] = peak_rss_bytes()
        results["processes"] = session.ranks.size
        session.folder.write_json("results.json", results)
    return session.ranks.broadcast(results)


def _measure_forgetting(session: Session) -> None:
    """Write ``forgetting.json``: what else the agent can do, before and after."""
    config = ForgettingConfig(
        before=session.config.model, after=str(session.folder.path), seed=session.config.seed
    )
    examinees = {"before": partial(sit, session.base), "after": partial(sit, session.student)}
    table = forgetting(config, session.console, examinees)
    session.folder.write_json("forgetting.json", table)
    session.log("test/forgetting", kind="forgetting")
    print_table(table, session.console)


def _baselines(session: Session) -> dict[str, EvalResult]:
    """The arms that nobody's weights play."""
    config = session.config
    baselines = Baselines(config.env, config.env_kwargs, timeout=config.env_timeout)
    if baselines.is_text:  # there is no random text, and no end of texts to choose from
        constant = baselines.constant(session.validation_seeds, session.test_seeds)
        return {} if constant is None else {"blind": constant[0]}
    arms = {"random": baselines.random(session.test_seeds)}
    if session.words.actions:
        candidates = _successful_actions(session)
        arms["blind"], _ = baselines.blind(candidates, session.validation_seeds, session.test_seeds)
    if (optimal := baselines.optimal()) is not None:
        arms["optimal"] = optimal
    return arms


def _played_arms(
    session: Session, temperature: float, context: Context
) -> tuple[dict[str, EvalResult], Comparison, Comparison]:
    """Before and after, with and without the context.

    Returns:
        The arms; after against before, both without it; and what putting it back does after.
    """
    frames = {}
    for arm, policy in (("before", session.base), ("after", session.student)):
        for suffix, shown in (("", NO_CONTEXT), ("_with_experience", context)):
            phase = f"test/{arm}{suffix}@{temperature:g}"
            frames[arm + suffix] = session.play(phase, policy, session.test_seeds, temperature, shown)
    arms = {arm: EvalResult.from_traces(frame) for arm, frame in frames.items()}
    return (
        arms,
        Comparison.of(frames["after"], frames["before"]),
        Comparison.of(frames["after_with_experience"], frames["after"]),
    )


def _successful_actions(session: Session) -> list[tuple[str, ...]]:
    """The action sequences of the train episodes that succeeded, as texts."""
    turns = session.store.turns(phases=session.played)
    turns = turns[turns["success"] & turns["action"].notna()]
    sequences = set(turns.groupby("trace_id")["action"].agg(tuple))
    return sorted(sequences, key=lambda sequence: (len(sequence), sequence))[:MAX_BLIND_CANDIDATES]


def _as_dicts(arms: dict[str, EvalResult]) -> dict[str, dict[str, Any]]:
    return {name: arm.as_dict() for name, arm in arms.items()}
