"""A process that judges answers, and can do little else; ``envs/questions/verify.py`` starts it by its path.

It imports what it needs, then forks. The child reads jobs, one JSON object per line, and writes verdicts, one
per line. A child that takes too much processor time, needs too much memory or crashes is the end of that
answer only: its parent says so, and forks the next one within milliseconds. One that hangs or is killed from
outside has not judged.

    python -P verify_worker.py '{"scorer": null, "cpu_s": 1.0, "hang_s": 60.0, "memory_bytes": 1073741824}'
"""

import base64
import contextlib
import json
import logging
import os
import pickle
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Judge = Callable[[dict[str, Any]], dict[str, Any]]

FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "fcntl.", "signal.")
HARMLESS = ("os.listdir", "os.scandir")
"""What a late import does."""


def main() -> None:
    """Serve until the input ends."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's business
    sys.dont_write_bytecode = True
    judge = task_judge(*settings["scorer"]) if settings["scorer"] else math_judge()
    verdicts = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    _write(verdicts, {"ready": True})
    os.dup2(null, 2)
    while True:
        child = os.fork()
        if child == 0:
            _serve(judge, verdicts, settings)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        _write(verdicts, _end(code))


def _end(code: int) -> dict[str, Any]:
    """What to say of an answer whose judge ended with this exit code."""
    if -code == signal.SIGALRM:
        return {"not_judged": "its judge hangs"}
    if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):  # the machine's doing, not the answer's
        return {"not_judged": f"its judge was ended ({code})"}
    return {"failed": "took too long to judge" if -code == signal.SIGPROF else f"crashed its judge ({code})"}


def math_judge() -> Judge:
    """Judges whether two answers are equal, by math-verify, with its short cuts closed.

    What does not parse as a whole is never equal to anything. Numbers are compared exactly, or to their 15th
    digit and not to their 15th decimal. A product of letters is not the word that they spell.
    """
    import math_verify.grader as grader
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
    from sympy import I, Symbol

    imaginary = re.compile(r"(?<![\\A-Za-z])[A-Za-z]?i(?![A-Za-z])")
    logging.disable()  # math-verify says at every call that its own time limit is off
    plainly = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    compare_symbols = grader.sympy_compare_symbols

    def symbols_are_equal(gold: Any, answer: Any) -> bool:
        return bool(gold.is_Symbol) == bool(answer.is_Symbol) and compare_symbols(gold, answer)

    grader.sympy_numeric_eq = _numbers_are_equal
    grader.sympy_symbolic_eq = _difference_is_zero(grader.sympy_symbolic_eq)
    grader.sympy_compare_symbols = symbols_are_equal

    def read(answer: str, is_complex: bool) -> Any:
        found = latex2sympy(
            normalize_latex(answer, plainly),
            is_real=not is_complex,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),  # M and m are two
        )
        if is_complex and hasattr(found, "subs"):
            found = found.subs({Symbol("i", real=False): I})
        return found

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        # Of both or of none: a real x is another symbol than a complex one.
        is_complex = any(imaginary.search(job[side]) for side in ("answer", "gold"))
        try:
            answer = read(job["answer"], is_complex)
        except Exception:  # the parser's are plain ones
            return {"failed": "cannot be read as mathematics"}
        answer, gold = _solution_sets(answer, read(job["gold"], is_complex))
        equal = grader.verify([gold], [answer], timeout_seconds=None, allow_set_relation_comp=True)
        return {"is_correct": bool(equal)}

    # Regexes, grammar tables and sympy's caches fill up here, before the fork.
    for gold, answer in (
        (r"\frac{1}{2}", "0.5"),
        ("x^2+2x+1", "(x+1)^2"),
        ("[0,1)", r"\{1,2\}"),
        ("x=3", "3"),
    ):
        judge({"gold": gold, "answer": answer})
    return judge


def _solution_sets(answer: Any, gold: Any) -> tuple[Any, Any]:
    """Both as sets, where they are sets or bounds of one unknown: x < -1 or x > 3 is a union of intervals."""
    from sympy.core.relational import Relational

    unknowns = {frozenset(side.free_symbols) for side in (answer, gold) if getattr(side, "free_symbols", ())}
    if len(unknowns) != 1 or isinstance(answer, Relational) or isinstance(gold, Relational):
        return answer, gold
    return _solution_set(answer), _solution_set(gold)


def _solution_set(found: Any) -> Any:
    """What satisfies ``a < x < b``, or one of a list of inequalities of x; anything else as it is."""
    from sympy import And, Equality, Union
    from sympy.core.relational import Relational

    parts = found.args if getattr(found, "is_FiniteSet", False) else [found] if isinstance(found, And) else []
    relations = [r for part in parts for r in (part.args if isinstance(part, And) else [part])]
    are_of_one = len(getattr(found, "free_symbols", ())) == 1 and all(
        isinstance(r, Relational) and not isinstance(r, Equality) and any(side.is_Symbol for side in r.args)
        for r in relations
    )
    return Union(*(part.as_set() for part in parts)) if relations and are_of_one else found


def _numbers_are_equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's, which takes all that is smaller than its last decimal for zero."""
    from sympy import Float, MatrixBase, MatrixExpr, nsimplify

    a, b = a.doit(), b.doit()
    if isinstance(a, MatrixBase | MatrixExpr) or isinstance(b, MatrixBase | MatrixExpr):
        if not (isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape):
            return False
        pairs = zip(a.flat(), b.flat(), strict=True)
        return all(_numbers_are_equal(x, y, float_rounding, numeric_precision) or x == y for x, y in pairs)
    if a == b:
        return True
    if a.free_symbols or b.free_symbols or not (a.is_number and b.is_number):
        return False
    has_decimals = a.has(Float) or b.has(Float)
    exact = [nsimplify(number, rational=True) if number.has(Float) else number for number in (a, b)]
    if all(number.is_Rational for number in exact):
        is_endless = any(pow(10, n.q.bit_length(), n.q) != 0 for n in exact)
        if exact[0] == exact[1] or not (has_decimals and is_endless):
            return bool(exact[0] == exact[1])
    first, second = (number.evalf(50) for number in exact)
    # Decimals stand for a number that has no last one if there are six of them.
    tolerance = 10**-float_rounding if has_decimals else abs(second) * 10**-30
    return bool(abs(first - second) < min(tolerance, abs(second) * 10**-4))


def _difference_is_zero(symbolic_eq: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """math-verify's, asked only where the two are equal at a point, too, to its 20th digit."""

    def equal(a: Any, b: Any) -> bool:
        from sympy import Float, Rational, nsimplify

        with suppress(Exception):
            # As they are written: a Float is 0.1 to its 17th digit only.
            a, b = (nsimplify(n, rational=True) if n.has(Float) else n for n in (a, b))
            symbols = sorted(a.free_symbols | b.free_symbols, key=str)
            point = {symbol: Rational(7 * n + 3, 5) for n, symbol in enumerate(symbols)}
            first, second = (number.subs(point).evalf(30) for number in (a, b))
            are_numbers = all(number.is_number and number.is_finite for number in (first, second))
            if are_numbers and abs(first - second) > abs(second) * 10**-20:
                return False
        return symbolic_eq(a, b)

    return equal


def task_judge(task: str, config: dict[str, Any]) -> Judge:
    """Judges answers as a reasoning-gym task does."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, **config)

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        # Pickled by the process that started this one.
        entry = pickle.loads(base64.b64decode(job["entry"]))
        for answer in job["answers"]:  # readings of one answer, such as with and without a full stop
            with suppress(Exception):  # of a scorer that can only read right answers
                if dataset.score_answer(answer, entry) >= 1:
                    return {"is_correct": True}
        return {"is_correct": False}

    return judge


def _serve(judge: Judge, verdicts: int, settings: dict[str, Any]) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, settings["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS knows no RLIMIT_AS
            resource.setrlimit(limit, (value, value))
    sys.addaudithook(_forbid)
    with open(0, "rb", closefd=False) as jobs:
        for line in jobs:
            job = json.loads(line)
            # Both kill at once, whatever Python is doing: busy, or asleep. The first counts this process's
            # own time, so that no verdict depends on what else the machine is doing.
            signal.setitimer(signal.ITIMER_PROF, settings["cpu_s"])
            signal.setitimer(signal.ITIMER_REAL, settings["hang_s"])
            try:
                verdict = judge(job)
            except MemoryError:
                verdict = {"failed": "takes too much memory to judge"}
            except BaseException as error:  # SystemExit, too
                verdict = {"failed": f"cannot be judged ({type(error).__name__})"}
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(verdicts, verdict)


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    """No processes, no network, no files written."""
    writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
        raise PermissionError(event)


def _write(target: int, message: dict[str, Any]) -> None:
    os.write(target, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # who asked has ended
        main()
