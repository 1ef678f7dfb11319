"""What an agent is to the rest of the toolkit: prompts in, completions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str
    token_ids: tuple[int, ...] | None = None
    """Of a reply of the model itself, the tokens that it drew behind the reply prefix, exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A chat, and optionally the beginning of the reply, which the model continues."""

    messages: tuple[Message, ...]
    reply_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    max_tokens: int = 16
    """A completion ends here at the latest."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number from 0 up, not {self.temperature}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end-of-sequence token was drawn; it is the last of the token ids."""
    LENGTH = "length"
    """``max_tokens`` were drawn."""
    OVERFLOW = "overflow"
    """Prompt and ``max_tokens`` do not fit the context window; nothing was drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the model said to one prompt."""

    text: str
    """The decoded tokens, special ones left out, without the reply prefix. If the chat template has begun a
    thought, its beginning stands before them."""
    token_ids: tuple[int, ...]
    """The tokens that were drawn, exactly."""
    logprobs: tuple[float, ...]
    """Natural log of each token's probability under the model at temperature 1."""
    finish_reason: FinishReason
    prompt_tokens: int
    """The length of the prompt, reply prefix included."""


class Policy(Protocol):
    """Something that answers prompts."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt.

        Args:
            prompts: Any number of them; equal ones cost no more than one.
            sampling: How tokens are drawn.
            seeds: One per prompt. A completion depends on its prompt, sampling and seed only, not
                on its neighbours (up to rounding of the logits).
        """
        ...
