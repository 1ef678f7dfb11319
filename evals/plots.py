"""The report's plots: HTML figures of SVG that takes its ink from the page, so that it fits light and dark.

They are small, so that their words can be read on a phone, where a page shows them one below the other.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cycler import cycler
from markupsafe import Markup, escape

from evals.finished_run import FinishedRun
from evals.result import ARM_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Arm = Mapping[str, Any]
"""An ``EvalResult.as_dict()``, or anything else with success_rate, ci_low and ci_high."""

INK = "#010203"  # replaced by currentColor
MUTED, BLUE, GREEN, ORANGE, PURPLE = "#8a94a6", "#5b8def", "#2fa36b", "#e4813b", "#a974d8"
CYCLE = (GREEN, BLUE, ORANGE, PURPLE, MUTED)
WIDTH, HEIGHT = 4.4, 3.2
"""In inches; 72 points each."""
ROW = 0.34
"""The height of a bar with its label."""
MAX_ROWS = 24

ARM_COLOURS = {"before": BLUE, "before_with_experience": BLUE, "after": GREEN, "after_with_experience": GREEN}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opcd-gym",
    "text.parse_math": False,  # names may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=CYCLE),
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def arms_plot(arms: Mapping[str, Arm], title: str) -> Markup:
    """Success of each arm with its 95% interval, as bars."""
    names = [name for name in ARM_LABELS if name in arms]

    def draw(axes: "Axes") -> None:
        for row, name in enumerate(names):
            faint = name.endswith("_with_experience")
            colour = ARM_COLOURS.get(name, MUTED)
            axes.barh(row, arms[name]["success_rate"], color=colour, alpha=0.5 if faint else 1.0, height=0.62)
            _interval(axes, arms[name], row)
        _rows(axes, [ARM_LABELS[name] for name in names])
        axes.set_xlabel("success (95% interval)")

    return _plot(draw, title, height=0.9 + ROW * len(names))


def validation_plot(run: FinishedRun) -> Markup:
    """Success on validation by training step, at each temperature; and when the agent played to learn."""

    def draw(axes: "Axes") -> None:
        for name, curve in run.validations().items():
            _curve(axes, curve, f"validation, {name}")
        if rounds := run.of_kind("round"):
            _curve(axes, rounds, "train episodes, new round", color=MUTED, marker="s", linestyle="none")
        if best := [entry for entry in run.of_kind("validation") if entry["best"]]:
            axes.axvline(best[-1]["step"], color=INK, linewidth=1, linestyle=":", label="weights kept")
        _rates(axes)

    return _plot(draw, "Success while training, nothing in the prompt")


def kl_plot(train: Sequence[Mapping[str, Any]]) -> Markup:
    """The KL to the teacher and both entropies by step."""

    def draw(axes: "Axes") -> None:
        _line(axes, train, "kl", "KL to the teacher")
        _line(axes, train, "entropy", "entropy of the student")
        _line(axes, train, "teacher_entropy", "entropy of the teacher", color=MUTED)
        axes.set_ylabel("nats per token")
        axes.set_ylim(bottom=min(0.0, *(entry["kl"] for entry in train)))  # truncated goes below
        _legend(axes)

    return _plot(draw, "How far the student is from its teacher")


def mass_plot(train: Sequence[Mapping[str, Any]], k: int) -> Markup:
    """How much of both distributions the KL looks at token by token, by step."""
    from matplotlib import ticker

    def draw(axes: "Axes") -> None:
        _line(axes, train, "student_mass", "of the student")
        _line(axes, train, "teacher_mass", "of the teacher")
        axes.set_ylabel("probability")
        axes.set_ylim(top=1.0)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        _legend(axes)

    return _plot(draw, f"What the {k} tokens that the KL looks at one by one capture")


def gate_plot(candidates: Sequence[Arm], without: float, title: str) -> Markup:
    """Success of each candidate, with ``label`` and ``is_admitted``, the best first, against no context."""
    shown = candidates[:MAX_ROWS]

    def draw(axes: "Axes") -> None:
        for row, candidate in enumerate(shown):
            colour = GREEN if candidate["is_admitted"] else MUTED
            axes.scatter(candidate["success_rate"], row, color=colour, zorder=3, clip_on=False)
            _interval(axes, candidate, row, text=False)
        axes.axvline(without, color=BLUE, linestyle="--", linewidth=1.2, label="without context")
        _rows(axes, [candidate["label"] for candidate in shown])
        axes.set_xlabel("success on validation (95% interval)")
        _legend(axes)

    return _plot(draw, title, height=1.2 + ROW * len(shown))


def runs_plot(runs: Mapping[str, FinishedRun], title: str) -> Markup:
    """Before and after of each run."""

    def draw(axes: "Axes") -> None:
        for row, run in enumerate(runs.values()):
            for name, colour, shift in (("before", BLUE, -0.14), ("after", GREEN, 0.14)):
                arm = run.results["arms"][name]
                label = name if row == 0 else None
                axes.scatter(
                    arm["success_rate"], row + shift, color=colour, label=label, zorder=3, clip_on=False
                )
                _interval(axes, arm, row + shift, text=False)
        _rows(axes, list(runs))
        axes.set_xlabel("success (95% interval)")
        _legend(axes)

    return _plot(draw, title, height=1.3 + 1.4 * ROW * len(runs))


def curves_plot(runs: Mapping[str, FinishedRun], title: str) -> Markup:
    """Success on validation of each run by training step, at its first temperature."""

    def draw(axes: "Axes") -> None:
        for name, run in runs.items():
            for curve in list(run.validations().values())[:1]:
                _curve(axes, curve, name)
        _rates(axes)

    return _plot(draw, title)


def _interval(axes: "Axes", arm: Arm, row: float, *, text: bool = True) -> None:
    """The arm's 95% interval and its rate; an exact rate has no interval."""
    rate, end = arm["success_rate"], arm["success_rate"]
    if arm["ci_high"] is not None:
        end = arm["ci_high"]
        axes.errorbar(rate, row, xerr=_errors([arm]), color=INK, capsize=3, linewidth=1.1)
    if text:
        place: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{rate:.1%}", (max(end, rate), row), color=INK, fontsize=9.5, **place)


def _curve(axes: "Axes", points: Sequence[Arm], label: str, **style: Any) -> None:
    """Rates with their intervals, by step."""
    steps, rates = [point["step"] for point in points], [point["success_rate"] for point in points]
    axes.errorbar(
        steps,
        rates,
        yerr=_errors(points),
        label=label,
        **{"marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 1, **style},
    )


def _line(axes: "Axes", train: Sequence[Mapping[str, Any]], name: str, label: str, **style: Any) -> None:
    """A figure of every training step."""
    axes.plot([entry["step"] for entry in train], [entry[name] for entry in train], label=label, **style)
    axes.set_xlabel("optimiser step")


def _errors(arms: Sequence[Arm]) -> list[list[float]]:
    """What matplotlib takes for intervals: how far they go below and above."""
    return [
        [max(arm["success_rate"] - arm["ci_low"], 0.0) for arm in arms],
        [max(arm["ci_high"] - arm["success_rate"], 0.0) for arm in arms],
    ]


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    """Horizontal rows, the first on top, and rates from left to right, with room for a label at 100%."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.2)
    axes.set_xticks(*PERCENT_TICKS)


PERCENT_TICKS = ([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])


def _rates(axes: "Axes") -> None:
    """Rates from bottom to top, by step."""
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("success (95% interval)")
    axes.set_ylim(0, 1.04)
    axes.set_yticks(*PERCENT_TICKS)
    _legend(axes)


def _legend(axes: "Axes") -> None:
    """Below the axes, where it hides nothing, if there is anything to name."""
    figure = axes.get_figure()
    assert figure is not None
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower left", ncols=2, columnspacing=1.0, handlelength=1.4)


def _plot(draw: Callable[["Axes"], None], title: str, height: float = HEIGHT) -> Markup:
    """A figure with its title, as HTML that scales with the page."""
    import matplotlib as mpl  # here: it takes a second, and only the end of a run has plots
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue().replace(INK, "currentColor")
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(title, Markup(svg))
