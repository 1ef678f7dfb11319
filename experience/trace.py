"""One episode and its decisions, as they happened."""

from dataclasses import dataclass
from enum import StrEnum

from experience.seeds import Split


class StopReason(StrEnum):
    """Why an episode ended. The first two mean what Gymnasium means by them."""

    TERMINATED = "terminated"
    """The env reached a terminal state."""
    TRUNCATED = "truncated"
    """A limit outside the task, such as a number of steps, cut the episode off."""
    INVALID_REPLIES = "invalid_replies"
    """Too many replies in a row were no action."""
    NOT_JUDGED = "not_judged"
    """The env could not tell whether the answer is right: it is neither a success nor a failure."""
    CUT_OFF = "cut_off"
    """The last reply's thought did not end, with or without tags, so there was nothing in it to read."""
    OUT_OF_TOKENS = "out_of_tokens"
    """The next prompt and reply do not fit the model's context window."""
    ERROR = "error"
    """The env raised, or what it gave is no observation or reward; ``Trace.error`` says what."""
    TIMED_OUT = "timed_out"
    """The env took too long; ``Trace.error`` says how long."""


FAULTS = (StopReason.ERROR, StopReason.TIMED_OUT, StopReason.NOT_JUDGED)
"""How an env ends an episode by a fault of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One decision."""

    observation: str
    """What the agent read."""
    insight_ids: tuple[str, ...]
    """The insights that stood in its prompt."""
    prompt_tokens: int
    reply: str
    """The whole reply, its given prefix included."""
    token_ids: tuple[int, ...]
    """The sampled tokens of the reply, exactly."""
    logprobs: tuple[float, ...]
    """Natural log of each token's probability at temperature 1."""
    action: str | None
    """The action's word; ``None`` if the reply was no action."""
    reward: float
    left_out: int = 0
    """Turns that the agent was to remember, and that were left out of its prompt, the oldest first, since
    they did not fit the model's context window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One episode."""

    phase: str
    """The part of the run that it was played in, such as ``round1/play0``."""
    split: Split
    seed: int
    """What the env was reset with."""
    env_id: str
    policy_id: str
    """Which weights played, such as ``step24``."""
    context_id: str
    """Which context was in the prompts, a hash of what it shows; ``none`` without one."""
    turns: tuple[Turn, ...]
    final_observation: str
    stop_reason: StopReason
    success: bool
    error: str | None = None

    @property
    def id(self) -> str:
        """Unique in a store: a phase plays each seed once."""
        return f"{self.phase}/{self.seed}"

    @property
    def is_fault(self) -> bool:
        """Whether the env ended it by a fault of its own: it says nothing of who played."""
        return self.stop_reason in FAULTS

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return sum(turn.reward for turn in self.turns)

    @property
    def invalid_replies(self) -> int:
        """How many of its replies were no action."""
        return sum(turn.action is None for turn in self.turns)
