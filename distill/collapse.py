"""When training has gone wrong although every number is finite: training then ends, with the best weights."""

from distill.opcd import StepStats

SHORT = 0.25
"""Completions of less than this part of their first length have collapsed."""
MIN_LENGTH = 8
"""Tokens from which on a length can collapse."""
LOOPING = 0.5
"""Share of repeated 4-grams above which a completion says the same thing again and again."""
NOISE = 1.0
"""Nats of entropy that a student gains over its first and over its teacher's when it turns to noise."""
LOST_MASS = 0.5
"""Part of its first top-k mass below which the student's probability has leaked out of the top-k."""


def collapse(stats: StepStats, first: StepStats) -> str | None:
    """What has collapsed since the first step, in words for the user; ``None`` if nothing has.

    A falling entropy alone is no sign: to imitate a sharpened teacher is to become certain.
    """
    if first.completion_tokens >= MIN_LENGTH and stats.completion_tokens < SHORT * first.completion_tokens:
        return (
            f"completions shrank from {first.completion_tokens:.1f} tokens to {stats.completion_tokens:.1f}"
        )
    if stats.repetition > LOOPING and stats.repetition > 2 * first.repetition:
        return f"completions repeat themselves: {stats.repetition:.0%} of their 4-grams were there before"
    if stats.entropy > NOISE + max(first.entropy, stats.teacher_entropy):
        return f"the student turns to noise: {stats.entropy:.2f} nats of entropy after {first.entropy:.2f}"
    if stats.student_mass < LOST_MASS * first.student_mass:
        return (
            f"the student's probability leaks out of its top tokens: {stats.student_mass:.1%} is left of "
            f"{first.student_mass:.1%}"
        )
    return None
