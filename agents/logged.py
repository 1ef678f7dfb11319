"""What a log is to a run: prompts that are held out, and episodes that somebody else has played."""

from collections.abc import Iterable, Iterator
from functools import partial

from agents.config import ConfigError
from agents.moments import Moment, fits
from agents.run.run import Run
from envs.deadline import EnvFault, guarded
from envs.questions.log import from_json
from envs.text_env import TextEnv
from experience.context import Context
from experience.phase import Phase
from experience.seeds import SeedRange
from experience.trace import StopReason, Trace, Turn


def moments_of(env: TextEnv, run: Run, seeds: Iterable[int], context: Context) -> list[Moment]:
    """The prompts of some seeds that the context speaks to, and that fit both models' windows beside it."""
    found = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        shown = context.show(observation, situation=run.words.situation(observation))
        moment = Moment(observation=observation, advice=tuple(insight.text for insight in shown))
        if shown and fits(run.agent, moment.prompts(run.words, run.config.layout)):
            found.append(moment)
    return found


def held_out(env: TextEnv, run: Run, context: Context) -> tuple[list[Moment], list[Moment]]:
    """To choose the best weights by, and to test with.

    Raises:
        ConfigError: There is nothing left of them, or the context is in them already.
    """
    parts = [moments_of(env, run, seeds, context) for seeds in (run.seeds.validation, run.seeds.test)]
    validation, test = parts
    if min(map(len, parts)) < 2:
        raise ConfigError(
            f"only {min(map(len, parts))} held-out prompts fit the window of {run.agent.teacher_window} "
            "tokens beside what the context says to them: shorten it, or take one that speaks to more of them"
        )
    if 2 * sum(moment.advice[0] in from_json(moment.observation)[0][1] for moment in test) > len(test):
        raise ConfigError("the log's conversations begin with the context already: take --system drop")
    return validation, test


def episodes(env: TextEnv, run: Run, seeds: SeedRange, context: Context, phase: Phase) -> Iterator[Trace]:
    """What was replied when it was logged, as a phase that the log has played; but for what does not fit."""
    for seed in seeds:
        if not moments_of(env, run, [seed], context):
            continue
        observation, info = env.reset(seed=seed)
        reply, error = info["logged"], None
        try:
            _, reward, terminated, _, judgement = guarded(partial(env.step, reply))
            stop = StopReason.TERMINATED if terminated else StopReason.NOT_JUDGED
        except EnvFault as fault:  # of somebody's checker
            reward, judgement, stop, error = 0.0, {}, StopReason.ERROR, str(fault)
        yield Trace(
            phase=str(phase),
            split=seeds.split,
            seed=seed,
            env_id=run.config.env,
            policy_id="log",
            context_id="none",
            turns=(
                Turn(
                    observation=observation,
                    insight_ids=(),
                    prompt_tokens=0,
                    reply=reply,
                    token_ids=(),
                    logprobs=(),
                    action=judgement.get("text/action"),
                    reward=float(reward),
                ),
            ),
            final_observation="",
            stop_reason=stop,
            success=judgement.get("is_success") is True,
            error=error,
        )
