"""Answers judged per second: plain numbers in this process, LaTeX in the workers.

python -m tests.benchmarks.verify
"""

import time

from envs.questions.verify import Verifier

CASES = {
    "plain numbers": [(f"Let me see: {n} + {n}. The answer is {2 * n}.", str(2 * n)) for n in range(1, 5001)],
    "surds in LaTeX": [
        (rf"So it is \boxed{{\frac{{{n}\sqrt{{3}}}}{{2}}}}", rf"\frac{{\sqrt{{{3 * n * n}}}}}{{2}}")
        for n in range(1, 401)
    ],
    "polynomials": [(rf"\boxed{{(x+{n})^2}}", f"x^2+{2 * n}x+{n * n}") for n in range(1, 201)],
}


def main() -> None:
    """Judge each case as one batch, all of it right answers, with two workers that have started."""
    with Verifier() as verifier:
        verifier.verify_many([("x + 1", "1 + x"), ("x + 2", "2 + x")])
        for name, pairs in CASES.items():
            began = time.perf_counter()
            right = sum(verdict.is_correct for verdict in verifier.verify_many(pairs))
            rate = len(pairs) / (time.perf_counter() - began)
            print(f"{name:<16}{rate:8.0f} answers/s   {right} of {len(pairs)} judged right")


if __name__ == "__main__":
    main()
