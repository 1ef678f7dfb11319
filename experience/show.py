"""What is in a store, on the terminal.

    python -m experience.show RUN
    python -m experience.show RUN --phase round1/gate --success no
    python -m experience.show RUN --trace round1/gate/7

What models and envs wrote is untrusted: it is shown without anything that would steer the terminal.
"""

import os
import sys
from typing import Any, Literal

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experience import ExperienceError
from experience.insight import InsightState
from experience.store import ExperienceStore, open_run
from experience.terminal import Terminal, refuse
from experience.text import printable

SHOWN_SCORES = 10
PIPED_WIDTH = 500
"""Columns where nobody looks at a terminal: an id that is searched for stands in one line."""


def show_run(store: ExperienceStore, console: Console) -> None:
    """The insights, the active and best ones first, and the last scores of contexts."""
    insights, evidence = store.insights(), store.evidence()
    table = _table("insight", "score", "for", "against", "state", "source", "reason", title="Insights")
    for row in insights.sort_values(["state", "score"], ascending=[True, False]).to_dict("records"):
        source = f"{row['source']} ({row['writer']})" if row["writer"] else row["source"]
        numbers = (f"{row['score']:.3g}", row["traces"], row["traces_against"])
        is_retired = row["state"] == InsightState.RETIRED
        _add(table, row["text"], *numbers, row["state"], source, row["reason"], dim=is_retired)
    console.print(table)
    if len(evidence):
        console.print(_plain(f"one trace of the evidence: --trace {evidence['trace_id'].iloc[0]}"))
    scores = store.scores().tail(SHOWN_SCORES)
    table = _table("phase", "context", "weights", "with", "without", "n", "p", "verdict", title="Contexts")
    for row in scores.to_dict("records"):
        counts = (row["successes"], row["successes_without"], len(row["seeds"]), f"{row['p_value']:.2g}")
        _add(table, row["phase"], row["context_id"], row["policy_id"], *counts, row["verdict"])
    if len(scores):
        console.print(table)


def show_traces(
    store: ExperienceStore, console: Console, *, phase: str | None, success: bool | None, limit: int
) -> None:
    """One line per trace, at most ``limit``.

    Raises:
        ExperienceError: There is no such phase.
    """
    traces = store.traces(phase=phase)
    if phase is not None and traces.empty:
        known = ", ".join(store.traces()["phase"].unique())
        raise ExperienceError(f"there are no traces of {phase}: there are {known or 'none at all'}")
    if success is not None:
        traces = traces[traces["success"] == success]
    table = _table("trace", "weights", "context", "turns", "return", "ended", "success")
    for row in traces.head(limit).to_dict("records"):
        names = (row["trace_id"], row["policy_id"], row["context_id"])
        outcome = "yes" if row["success"] else "no"
        _add(table, *names, row["num_turns"], f"{row['total_reward']:.3g}", row["stop_reason"], outcome)
    console.print(table)
    console.print(f"{min(limit, len(traces))} of {len(traces)} traces")


def show_trace(store: ExperienceStore, console: Console, trace_id: str) -> None:
    """One trace, turn by turn.

    Raises:
        ExperienceError: It is not there.
    """
    traces = store.traces(phase=trace_id.rpartition("/")[0])
    found = traces[traces["trace_id"] == trace_id].to_dict("records")
    if not found:
        raise ExperienceError(f"there is no trace {trace_id}: --traces lists what there is")
    trace = found[0]
    about = f"{trace['env_id']}, weights {trace['policy_id']}, context {trace['context_id']}"
    console.print(_plain(f"{trace_id}: {about}"), style="bold")
    table = _table("turn", "observation", "insights", "reply", "action", "reward")
    turns = store.turns(trace_id=trace_id)
    for row in turns.to_dict("records"):
        action = "none" if pd.isna(row["action"]) else row["action"]
        shown = " ".join(row["insight_ids"])
        _add(table, row["turn"], row["observation"], shown, row["reply"], action, f"{row['reward']:g}")
    _add(table, "end", trace["final_observation"])
    console.print(table)
    outcome = "success" if trace["success"] else "no success"
    error = "" if pd.isna(trace["error"]) else f": {trace['error']}"
    console.print(_plain(f"{trace['stop_reason']}, {outcome}, return {trace['total_reward']:g}{error}"))
    if left_out := max(turns["left_out"], default=0):
        console.print(f"up to {left_out} turns were left out of a prompt: they did not fit the window")


def _plain(value: Any) -> Text:
    """Text as it is: no markup, no control characters."""
    return Text(printable(str(value)))


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _add(table: Table, *values: Any, dim: bool = False) -> None:
    table.add_row(*map(_plain, values), style="dim" if dim else "")


def main(args: list[str] | None = None) -> None:
    """The command."""

    def show(
        where: tyro.conf.Positional[str],
        /,
        run: str | None = None,
        trace: str | None = None,
        traces: bool = False,
        phase: str | None = None,
        success: Literal["yes", "no"] | None = None,
        limit: int = 50,
    ) -> None:
        """Show a run's insights and scores, its traces, or one of them.

        Args:
            where: The run's folder, the path of a database, or its URL.
            run: The run's name, where the database holds several.
            trace: Show this trace turn by turn.
            traces: List traces, as with a phase or success.
            phase: Those of this phase.
            success: Those that succeeded, or those that did not.
            limit: How many at most.
        """
        if limit < 1:
            raise ExperienceError(f"limit must be at least 1, not {limit}")
        is_piped = not (sys.stdout.isatty() or "COLUMNS" in os.environ)
        console = Terminal(width=PIPED_WIDTH if is_piped else None)
        wanted = None if success is None else success == "yes"
        with open_run(where, run) as store:
            if trace is not None:
                show_trace(store, console, trace)
            elif traces or phase is not None or success is not None:
                show_traces(store, console, phase=phase, success=wanted, limit=limit)
            else:
                show_run(store, console)

    try:
        tyro.cli(show, prog="python -m experience.show", args=args)
    except ExperienceError as error:
        refuse(error)


if __name__ == "__main__":
    main()
