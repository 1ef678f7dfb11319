"""The report's plots, as SVG that takes its ink from the page, so that it fits light and dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor
MUTED, BLUE, GREEN = "#8a94a6", "#5b8def", "#2fa36b"

ARM_LABELS = {
    "random": "random",
    "blind": "best blind",
    "before": "before",
    "before_with_experience": "before,\nwith experience",
    "after": "after",
    "after_with_experience": "after,\nwith experience",
    "optimal": "optimal",
}
ARM_COLOURS = {"before": BLUE, "before_with_experience": BLUE, "after": GREEN, "after_with_experience": GREEN}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opcd-gym",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def arms_plot(arms: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Success of each arm with its 95% interval, as bars."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 3.4))
        names = [name for name in ARM_LABELS if name in arms]
        for index, name in enumerate(names):
            arm = arms[name]
            rate = arm["success_rate"]
            faint = name.endswith("_with_experience")
            axes.bar(
                index, rate, color=ARM_COLOURS.get(name, MUTED), alpha=0.55 if faint else 1.0, width=0.66
            )
            top = rate
            if arm["n"] is not None:
                top = arm["ci_high"]
                errors = [[max(rate - arm["ci_low"], 0.0)], [max(top - rate, 0.0)]]
                axes.errorbar(index, rate, yerr=errors, color=INK, capsize=4, linewidth=1.2)
            axes.annotate(
                f"{rate:.1%}", (index, top), (0, 4), textcoords="offset points", ha="center", color=INK
            )
        axes.set_xticks(range(len(names)), [ARM_LABELS[name] for name in names], fontsize=9)
        _percent_axis(axes)
        axes.set_title(title, loc="left", fontsize=11)
        return _svg(figure)


def learning_plot(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Success by training step: validation, and the first wave of each round; the best one is marked."""
    validations = [entry for entry in metrics if entry.get("kind") == "validation"]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 3.0))
        steps = [entry["step"] for entry in validations]
        axes.plot(
            steps, [e["success_rate"] for e in validations], color=GREEN, marker="o", label="validation"
        )
        best = [entry for entry in validations if entry["best"]][-1:]
        if best:
            axes.scatter(
                [best[0]["step"]],
                [best[0]["success_rate"]],
                s=130,
                facecolors="none",
                edgecolors=INK,
                label="kept",
                zorder=3,
            )
        rounds = [entry for entry in metrics if entry.get("kind") == "round"]
        if rounds:
            rates = [entry["success_rate"] for entry in rounds]
            below = [rate - entry["ci_low"] for rate, entry in zip(rates, rounds, strict=True)]
            above = [entry["ci_high"] - rate for rate, entry in zip(rates, rounds, strict=True)]
            axes.errorbar(
                [entry["step"] for entry in rounds],
                rates,
                yerr=[[max(b, 0.0) for b in below], [max(a, 0.0) for a in above]],
                color=BLUE,
                marker="s",
                linestyle="none",
                capsize=4,
                label="first train episodes of a round, no experience shown (95%)",
            )
        axes.set_xlabel("optimiser step")
        _percent_axis(axes)
        axes.legend(loc="lower right", fontsize=9)
        axes.set_title("Success while training", loc="left", fontsize=11)
        return _svg(figure)


def kl_plot(metrics: Sequence[Mapping[str, Any]]) -> str:
    """KL(student || teacher) and the student's entropy by step."""
    train = [entry for entry in metrics if entry.get("kind") == "train"]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 2.6))
        steps = [entry["step"] for entry in train]
        axes.plot(steps, [entry["kl"] for entry in train], color=GREEN, label="KL to the teacher")
        axes.plot(steps, [entry["entropy"] for entry in train], color=MUTED, label="entropy of the student")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("nats per token")
        axes.set_ylim(bottom=min(0.0, *(entry["kl"] for entry in train)))  # truncated goes below
        axes.legend(loc="upper right", fontsize=9)
        axes.set_title("How far the student is from its teacher", loc="left", fontsize=11)
        return _svg(figure)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("success")


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that scales with the page."""
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue().replace(INK, "currentColor")
    return svg[svg.index("<svg") :]
