"""One episode on the terminal, turn by turn, without experience and with it.

    python -m agents.play --model RUN/model --env FrozenLake-v1
    python -m agents.play --run RUN                        the run's model, env and experience
    python -m agents.play --run RUN --model smollm2        the same episode by the untrained model
    python -m agents.play --env FrozenLake-v1 --context-file advice.txt

With temperature 0 a run's test episode goes as its report shows it: ``--seed`` is the seed given there.
"""

import sys
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.agent import as_policy, precision_on, reply_tokens
from agents.cli import run_command
from agents.config import ConfigError, JsonObject, SelfImproveConfig
from agents.policies.policy import Policy, Sampling
from agents.rollout import rollout
from agents.run.reach import check_reach, check_secrets
from agents.run.resume import saved_config
from distill.lm.load import load_model
from envs.place import vector_env
from envs.text_env import TextEnv, make_env, make_text_env
from envs.words import EnvWords, Options, number
from experience.context import NO_CONTEXT, Context
from experience.masking import masked
from experience.seeds import SeedRange
from experience.store import open_run
from experience.terminal import Terminal
from experience.text import printable
from experience.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayConfig:
    """An agent plays one episode on the terminal, without experience and with it."""

    run: Path | None = None
    """A run's folder: its model, env and settings, and its active insights as experience."""
    model: str | None = None
    """`smollm2` (the default), a folder such as RUN/model, a .gguf file, or a hub id."""
    env: str | None = None
    """Gymnasium id of the environment; FrozenLake-v1 by default. With --run the run's own, where that is of a
    module that you trust (module:EnvId)."""
    env_kwargs: JsonObject = field(default_factory=dict)
    """Arguments for the environment, as JSON."""
    context_file: Path | None = None
    """A text as experience."""
    seed: int = 2
    """What the env is reset with, as in a run's report; 2 is the first test episode of run seed 0."""
    temperature: float = 0.0
    """At which replies are sampled; 0 is greedy."""
    store: str | None = None
    """The run's database, where it is elsewhere and the folder keeps its password to itself."""
    device: str = "auto"
    """A torch device; auto takes a GPU if there is one."""
    trust_remote_code: bool = False
    """Let code run that comes with the model, or that the run names as its env, also where that is on another
    machine (openenv:URL)."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")
        if not (self.temperature == 0 or 1e-3 <= self.temperature <= 1e3):
            raise ConfigError(f"temperature must be at least 0, and not too high, not {self.temperature}")


class Narrated(TextEnv):
    """An env that tells what happens as it happens."""

    def __init__(
        self, env: gym.Env[Any, Any], config: SelfImproveConfig, context: Context, console: Console
    ) -> None:
        """Wrap ``env``; what ``context`` shows at an observation is told too."""
        super().__init__(env, replies=config.replies)
        self._memory = config.remembered
        self._past: list[tuple[str, str | None]] = []
        self._context = context
        self._console = console
        self._observation = ""

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """See ``TextEnv``."""
        observation, info = super().reset(seed=seed, options=options)
        self._past = []
        self._tell_turn(observation)
        return observation, info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """See ``TextEnv``."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._past.append((self._observation, info.get("text/action")))
        self._tell(action if info.get("text/action") is not None else f"{action} (not an action)", "bold")
        if value := number(reward):
            self._tell(f"reward {value:g}", "green" if value > 0 else "red")
        if terminated or truncated:
            self._tell(observation)
        else:
            self._tell_turn(observation)
        return observation, reward, terminated, truncated, info

    def _tell_turn(self, observation: str) -> None:
        self._observation = observation
        chat = self.words.chat
        said = chat and "\n".join(f"{role}: {text}" for role, text in chat(observation))
        self._tell(said or observation, number=len(self._past) + 1)
        seen = self._memory.seen(self.words, self._memory.of(self._past), observation)
        for insight in self._context.show(observation, situation=seen):
            self._tell(f"experience: {insight.text}", "cyan")

    def _tell(self, text: str, style: str = "", number: int | None = None) -> None:
        """Untrusted text, without what would steer the terminal, beside the turn's number."""
        line = Table.grid(padding=(0, 2))
        line.add_column(width=4, justify="right", style="dim")
        line.add_row("" if number is None else str(number), Text(printable(text), style=style))
        self._console.print(line)


def play(
    config: SelfImproveConfig,
    policy: Policy,
    sampling: Sampling,
    seed: int,
    context: Context,
    console: Console,
) -> Trace:
    """Play one episode and tell it."""

    def make() -> TextEnv:
        return Narrated(make_env(config.env, config.env_kwargs), config, context, console)

    with closing(vector_env(make, 1, timeout=config.env_timeout)) as envs:
        [trace] = rollout(
            envs,
            make().words,
            policy,
            {"play": context},
            SeedRange.of_seed(seed),
            sampling=sampling,
            policy_id=config.model,
            env_id=config.env,
            layout=config.layout,
            memory=config.remembered,
        )
    outcome = "success" if trace.success else "no success"
    turns = "1 turn" if len(trace.turns) == 1 else f"{len(trace.turns)} turns"
    reason = trace.error or trace.stop_reason.replace("_", " ")
    ending = f"{outcome} after {turns}: {reason}, return {trace.total_reward:g}"
    console.print(Text(printable(ending), style="bold green" if trace.success else "bold red"))
    return trace


def settings(asked: PlayConfig) -> SelfImproveConfig:
    """The settings of the run, or the command's for the env, with what was asked for.

    Raises:
        ConfigError: The run has no model or another env, or the context file cannot be read.
        RunFolderError: There is no such run.
    """
    if asked.run is None:
        config = SelfImproveConfig.for_env(
            asked.env or SelfImproveConfig().env,
            env_kwargs=asked.env_kwargs,
            model=asked.model or SelfImproveConfig().model,
            context_file=asked.context_file,
        )
    else:
        config = saved_config(asked.run)
        if asked.env not in (None, config.env):
            raise ConfigError(f"--run has its env, which is {config.env}: give --env {config.env}")
        if asked.env_kwargs:  # may have a secret, which the folder does not hold
            if config.env_kwargs != masked(asked.env_kwargs):
                raise ConfigError("--run has its env: leave out --env-kwargs")
            config = replace(config, env_kwargs=asked.env_kwargs)
        check_secrets(config, asked.run)
        model = asked.model or str(asked.run / "model")
        if asked.model is None and not Path(model).is_dir():
            raise ConfigError(f"{asked.run} has no trained model yet: finish the run, or give --model")
        begun = None if asked.context_file else config.resume  # whose text is in its store
        config = replace(config, model=model, context_file=asked.context_file, resume=begun)
    config = replace(
        config, device=asked.device, store=asked.store, trust_remote_code=asked.trust_remote_code
    )
    if asked.run is not None:
        # Of the machines that the run reached, playing needs none; its store is found by ``experience``.
        config = replace(config, tracker=None, insight_url=None, policy="auto", teacher="base")
        check_reach(config, asked.run, asked={"store"} if asked.env is None else {"store", "env"})
    return config


def experience(asked: PlayConfig, config: SelfImproveConfig, words: EnvWords) -> Context:
    """The text of the context file, or the run's active insights; nothing without either.

    Raises:
        ExperienceError: The run's experience cannot be read.
    """
    if config.context_file is not None:
        return Context.fixed(config.context_text)
    if asked.run is None:
        return NO_CONTEXT
    with open_run(asked.run, location=asked.store) as store:
        active = store.active_insights()
    return Context(insights=tuple(active), k=config.insights_per_prompt, situation=words.situation)


def main(args: list[str] | None = None) -> int:
    """The command; returns its exit code."""

    def work(_: Console) -> None:
        asked = tyro.cli(PlayConfig, prog="python -m agents.play", args=args)
        config = settings(asked)
        words = make_text_env(config.env, config.env_kwargs, replies=config.replies).words
        context = experience(asked, config, words)
        loaded = load_model(
            config.model,
            device=config.device,
            dtype=config.weights_dtype,
            trust_remote_code=config.trust_remote_code,
        )
        config = replace(config, precision=precision_on(loaded.model.device, config, words))
        policy = as_policy(loaded, config)
        sampling = Sampling(temperature=asked.temperature, max_tokens=reply_tokens(config, policy, words))
        console = Terminal()
        arms = [("without experience", NO_CONTEXT)]
        if context.insights:
            arms.append(("with experience", context))
        for name, shown in arms:
            title = f"{name}: {config.env}, seed {asked.seed}, {config.model}"
            console.print(Text(printable(title), style="bold"), soft_wrap=True)
            play(config, policy, sampling, asked.seed, shown, console)

    return run_command(work, how_to_go_on=lambda: "")


if __name__ == "__main__":
    sys.exit(main())
