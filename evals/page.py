"""Pages of HTML that need nothing but themselves: no network, no other file."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from experience.masking import masked
from experience.text import storable
from experience.whole import appearing


def write_page(target: Path, template: str, **values: Any) -> Path:
    """Fill in one of ``templates/`` and write it, whole or not at all; returns the path.

    Texts are escaped: what models and envs wrote is untrusted.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "points": points, "plural": plural, "p": p_text}
    environment.policies["json.dumps_kwargs"] = {"default": asdict}
    environment.globals |= {"interval": interval, "duration": duration}
    return write_whole(target, environment.get_template(template).render(values))


def write_whole(target: Path, text: str) -> Path:
    """Write a text as a file, whole or not at all, and the folder that it is in; returns the path.

    What UTF-8 cannot say, a path's or a foreign file's, is written as U+FFFD.

    Raises:
        OSError: It cannot be written, and is named.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with appearing(target) as tmp:
            tmp.write_text(storable(masked(text)), encoding="utf-8", newline="")
    except OSError as error:  # a full disk's names no file
        raise OSError(error.errno, error.strerror, str(target)) from error
    return target


def percent(rate: float) -> str:
    """0.5 -> 50.0%."""
    return f"{rate:.1%}"


def points(difference: float) -> str:
    """A difference of rates in percentage points, with its sign."""
    return _signed(100 * difference, ".1f")


def nats(difference: float) -> str:
    """A difference of log-probabilities, with its sign."""
    return _signed(difference, ".3f")


def _signed(number: float, form: str) -> str:
    return f"{number:+z{form}}".replace("-", "\N{MINUS SIGN}")


def plural(n: int, one: str, many: str | None = None) -> str:
    """1 insight, 2 insights."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def p_text(p_value: float) -> str:
    """A p-value as people write it."""
    return f"p = {p_value:.2g}" if p_value >= 1e-4 else "p < 0.0001"


def interval(arm: Mapping[str, Any]) -> str:
    """The interval of an ``EvalResult.as_dict()``."""
    if arm["n"] is None:
        return "exact"
    return f"{100 * arm['ci_low']:.1f} to {arm['ci_high']:.1%}"


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
