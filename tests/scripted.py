"""A policy without a model: a function answers."""

from collections.abc import Callable, Sequence

from agents.policies.policy import Completion, FinishReason, Prompt, Sampling


class ScriptedPolicy:
    """A ``Policy`` whose replies are the return values of ``reply(prompt, seed)``.

    A "token" is one character, so that token counts and ids are defined.
    """

    def __init__(self, reply: Callable[[Prompt, int], str]) -> None:
        self._reply = reply

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt; see ``Policy``."""
        return [self._complete(p, sampling, s) for p, s in zip(prompts, seeds, strict=True)]

    def _complete(self, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        whole = self._reply(prompt, seed)
        text = whole[: sampling.max_tokens]
        return Completion(
            text=text,
            token_ids=tuple(ord(character) for character in text),
            logprobs=(0.0,) * len(text),
            finish_reason=FinishReason.STOP if text == whole else FinishReason.LENGTH,
            prompt_tokens=sum(len(m.content) for m in prompt.messages) + len(prompt.reply_prefix),
        )
