"""Phases: one text each, which is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experience.phase import Phase

NAMES = st.from_regex(r"[a-z]+(-[a-z]+)?", fullmatch=True)


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase.play(1, 0), "round1/play0"),
        (Phase(kind="gate", round=2), "round2/gate"),
        (Phase(kind="gate", round=2, index="3f2a/32"), "round2/gate/3f2a/32"),
        (Phase(kind="gate", index="none"), "gate/none"),
        (Phase(kind="gate-verdict", round=1), "round1/gate-verdict"),
        (Phase.validation(30), "validation30"),
        (Phase.validation(30, 0.7), "validation30@0.7"),
        (Phase.test("after_with_experience", 0.0), "test/after_with_experience@0"),
        (Phase(kind="step", index=3), "step3"),
    ],
)
def test_the_text_of_a_phase(phase: Phase, text: str) -> None:
    """Seeds are drawn by it: another text would be another run."""
    assert str(phase) == text
    assert Phase.parse(text) == phase


@given(
    st.builds(
        Phase,
        kind=NAMES,
        round=st.none() | st.integers(1, 10**9 - 1),
        index=st.none() | st.integers(0, 10**9 - 1) | st.from_regex(r"[a-z0-9_/]+", fullmatch=True),
        temperature=st.none() | st.sampled_from([0.0, 0.4, 0.7, 1.0, 1e-05]),
    )
)
def test_every_phase_is_read_back(phase: Phase) -> None:
    assert Phase.parse(str(phase)) == phase


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "round1/",
        "Play",
        "test/a@",
        "play0@x",
        "play0@nan",
        "play0@-1",
        "test/a\nb",
        f"step{'9' * 5000}",
    ],
)
def test_what_is_no_phase(text: str) -> None:
    with pytest.raises(ValueError, match="not a phase of a run"):
        Phase.parse(text)


@pytest.mark.parametrize(
    ("text", "is_trained"),
    [
        ("round1/play3", False),
        ("round1/gate/3f2a/32", False),
        ("validation0@0.7", False),
        ("validation10@0.7", True),
        ("step1", True),
        ("test/before_with_experience@0", False),
        ("test/after@0", True),
    ],
)
def test_what_depends_on_the_training(text: str, is_trained: bool) -> None:
    assert Phase.parse(text).is_trained == is_trained
