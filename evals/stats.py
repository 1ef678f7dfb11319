"""Intervals and tests for success rates and means."""

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate, at 95%."""
    from scipy.stats import binomtest  # here: it takes a second, and most that starts needs none of it

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean of at least two values, at 95%."""
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def exact_paired_test(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test, by the pairs in which only one arm succeeded."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_difference_interval(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[float, float]:
    """95% interval of (first rate - second rate) of paired outcomes: Newcombe 1998, method 10.

    The Wilson intervals of the two rates are combined with the correlation of the pairs, so that the
    interval has a width even when one arm always succeeds and the other never does.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    low1, high1 = wilson_interval(first, n)
    low2, high2 = wilson_interval(second, n)
    product = first * (n - first) * second * (n - second)
    determinant = float(both * neither - only_first * only_second)
    if determinant > 0:  # Newcombe's continuity correction of phi
        determinant = max(determinant - n / 2, 0.0)
    phi = determinant / math.sqrt(product) if product else 0.0
    difference = p1 - p2
    below = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    above = (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2
    return difference - math.sqrt(max(below, 0.0)), difference + math.sqrt(max(above, 0.0))
