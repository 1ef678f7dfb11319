"""What is said outside of thoughts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.thoughts import outside_thoughts, thought_and_said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("42", "42"),
        ("", ""),
        ("<think>41</think>42", "42"),
        ("<think>\n41? No.\n</think>\n\n42", "\n\n42"),
        ("So: <think>41</think> 42", "So:   42"),
        ("4<think>no</think>2", "4 2"),
        ("<think>a</think>b<think>c</think>d", "b d"),
        # as others write it
        ("<THINK>41</Think>42", "42"),
        ('<think budget="9">41</think >42', "42"),
        ("<thinking>41</thinking>42", "42"),
        ("<thought>41</thought>42", "42"),
        ("<reasoning>41</reasoning><answer>42</answer>", "<answer>42</answer>"),
        ("[THINK]41[/THINK]42", "42"),
        ("<seed:think>41</seed:think>42", "42"),
        ("◁think▷41◁/think▷42", "42"),
        ("<|begin_of_thought|>41<|end_of_thought|>42", "42"),
        ("<|START_THINKING|>41<|END_THINKING|>42", "42"),
        ("<|inner_prefix|>41<|inner_suffix|>42", "42"),
        ("<longcat_think>41</longcat_think>42", "42"),
        ("<|thinking|>41<|/thinking|>42", "42"),
        ("to=self<|message|>41<|eom|><|start|>assistant to=user<|message|>42", "42"),
        ("to=self<|message|>41assistant to=user<|message|>42", "42"),
        (" to=self<|message|>41", None),
        (" to=user<|message|>42", "42"),
        ("<|channel>thought\n41<channel|>42", "42"),
        ("<|channel|>analysis<|message|>41<|end|><|start|>assistant<|channel|>final<|message|>42", "42"),
        # the template wrote the beginning
        ("41? No.</think>42", "42"),
        ("41</think>42<think>43</think>44", "42 44"),
        # one within another
        ("<think>a<think>b</think>c</think>42", "42"),
        ("<think>is <think> a tag?</think>42", "42"),
        ("<thinking>a<reasoning>b</reasoning>c</thinking>42", "42"),
        ("<think>41</think>41.5</think>42", "42"),
        # never ends
        ("<think>Try 42", None),
        ("<think>", None),
        ("42 <think>or 41?", None),
        ("<think>a</think>42<thinking>or", None),
        ("41</think>42<think>", None),
        # none at all
        ("<think/>42", "<think/>42"),
        ("I think 42 < 43 > 41", "I think 42 < 43 > 41"),
        ("<thinker>42</thinker>", "<thinker>42</thinker>"),
    ],
)
def test_what_is_said(text: str, said: str | None) -> None:
    assert outside_thoughts(text) == said


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("42", ""),
        ("<think>41?</think>42", "41?"),
        ("41? No.</think>42", "41? No."),
        ("<think>a</think>b<think>c</think>d", "a c"),
        ("<think>41</think>41.5</think>42", "41 41.5"),
        ("<think>is <think> a tag?</think>42", "is <think> a tag?"),
        ("a<think>Try 42", "Try 42"),
    ],
)
def test_what_is_thought(text: str, thought: str) -> None:
    assert thought_and_said(text)[0] == thought


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking a='", ">", "<", "x", " "]), max_size=12))
def test_what_is_said_holds_no_thought(pieces: list[str]) -> None:
    text = "".join(pieces)
    said = outside_thoughts(text)
    if "<think>" not in text and "</think>" not in text and "<thinking" not in text:
        assert said == text
    if said is not None:
        assert "</think>" not in said
        assert text.endswith((said[-1:], "</think>"))


def test_hostile_texts_take_no_time() -> None:
    began = time.process_time()
    for piece in (
        "<think>",
        "</think>",
        "<think ",
        "to=",
        "assistant ",
        "<think_",
        "<|channel|>" + " " * 20,
        "<think>x</think>",
        "<",
    ):
        outside_thoughts(piece * (300_000 // len(piece)))
    assert time.process_time() - began < 5
