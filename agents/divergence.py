"""How far an agent is from its teacher where nothing tells right from wrong: the KL of answers drawn anew."""

import statistics
from collections.abc import Sequence

from agents.examples import Question, sample_examples
from agents.moments import Moment
from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from agents.rollout import turn_seed
from agents.training import Training


def divergences(training: Training, policy: HFPolicy, moments: Sequence[Moment], title: str) -> list[float]:
    """How far a policy's answers are from the teacher with the context: of each, in nats per token."""
    run, config = training.run, training.run.config
    mine = run.ranks.share(list(enumerate(moments)))
    sampling = Sampling(temperature=config.temperature, max_tokens=run.agent.max_tokens)
    found: list[float] = []
    with run.progress(f"KL {title}", len(mine)) as bar:
        for first in range(0, len(mine), config.num_envs):
            part = mine[first : first + config.num_envs]
            policy.clear()
            questions = [
                Question(
                    prompts=moment.prompts(run.words, config.layout),
                    seed=turn_seed(config.seed, "held-out", number, 0),
                )
                for number, moment in part
            ]
            encode, teacher_encode = run.agent.student.encode, run.agent.teacher.encode
            examples = sample_examples(policy, encode, questions, sampling, teacher_encode=teacher_encode)
            found += training.opcd.comparison.divergences(policy.lm, examples)
            bar.update(
                bar.task_ids[0], advance=len(part), note=f"{statistics.fmean(found):.4f}", refresh=True
            )
    policy.clear()
    return run.ranks.gather(found)
