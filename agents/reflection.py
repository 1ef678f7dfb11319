"""What the traces teach: the insights drawn from them, and the contexts made of these."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from agents.config import ConfigError, SelfImproveConfig
from agents.policy_writer import INSIGHT_TEMPERATURE, PolicyWriter, said
from agents.rollout import turn_seed
from agents.run.run import CONTEXT, Run
from envs.words import POSITIVE_RETURN
from evals.gate import by_promise
from experience.context import NO_CONTEXT, Context, within_budget
from experience.endpoint import Endpoint
from experience.insight import Insight, InsightState, insights_of
from experience.merging import merged, settled
from experience.outcomes import outcome_insights
from experience.phase import Phase
from experience.terminal import tell
from experience.trace import FAULTS
from experience.writer import InsightPrompts, Writer, raw_insights, write_insights

TRACES_READ = 256
"""How many traces of each round a writer is asked about, which is as many as there can be candidates: of what
a small model writes one lesson in a hundred is good."""
TRACES_SENT = 64
"""How many an endpoint is asked about: it costs, and writes better."""
TOKENS_SENT = 2048
"""Its longest reply: its model stops by itself, and may think first. Some servers have windows of 4096."""
MAX_CANDIDATES = 256
"""How many written insights a gate tries at most: halving spends little on the last of them."""
CONTEXT_TOKENS = 1024
"""What insights may take together where a prompt shows all, to the agent or to a writer of more; the least
useful are left out."""


def traces_read(config: SelfImproveConfig) -> int:
    """How many traces of a round a writer is asked about, at most."""
    return TRACES_READ if config.insight_url is None else TRACES_SENT


class Reflection:
    """Draws contexts from what a run has played, over all its rounds."""

    def __init__(self, run: Run, kind: str | None = None) -> None:
        """Find out how insights are drawn: by ``kind``, or as the settings say. ``fixed`` draws none.

        Raises:
            ConfigError: The env's outcomes cannot be put into advice, or a writer is named for nothing.
            ExperienceError: There is no client for endpoints, nobody answers there, or the prompts cannot be
                used.
            ModelError: The writer cannot be had.
        """
        self.run = run
        config, words = run.config, run.words
        kind = kind or ("fixed" if config.context_file is not None else config.insight_kind)
        if kind == "auto":
            kind = "llm" if words.advise is None else "outcomes"
        if kind == "outcomes" and words.advise is None:
            raise ConfigError(
                f"insights outcomes need an env with action words, {config.env} has none: take llm"
            )
        if kind != "llm" and (config.insight_url or config.insight_model):
            raise ConfigError(
                f"insight_model and insight_url need insights llm: those of this run are {kind}"
            )
        self.kind = kind
        """``outcomes`` of a table, ``llm``, ``raw`` transcripts, or ``fixed``, a text of the user's."""
        self.prompts = InsightPrompts(config.insight_prompts)
        self.writer = self._make_writer() if kind == "llm" and run.ranks.is_main else None

    @property
    def waves(self) -> int:
        """Parts of a round's play: several where each can be led by what those before it came to."""
        config = self.run.config
        return min(config.waves, config.episodes) if self.kind == "outcomes" else 1

    def explore(self, number: int, wave: int) -> Context:
        """What sends the agent to what it has not tried: the insights so far, and none in the first wave."""
        phase = Phase.play(number, wave)
        if wave == 0 or self.run.has(phase):
            return NO_CONTEXT
        return self._of_outcomes(phase, explore=True)

    def reflect(self, round_number: int) -> list[Context]:
        """What the traces teach: the contexts worth trying, the most promising first."""
        if self.kind == "fixed":
            contexts = [self._fixed()]
        elif self.kind == "outcomes":
            contexts = [self._of_outcomes(Phase(kind="outcomes", round=round_number), explore=False)]
        elif self.kind == "raw":
            contexts = [self.raw(round_number)]
        else:
            contexts = self._written(round_number)
        self._note_no_success()
        return list({context.id: context for context in contexts if context.insights}.values())

    def _note_no_success(self) -> None:
        """Say that there is little to learn from, and where the default success may be what is wrong."""
        run, success = self.run, self.run.words.success
        if not run.ranks.is_main:
            return
        traces = run.store.traces()
        if traces["success"].any() or not len(traces):
            return
        low, high = traces["total_reward"].min(), traces["total_reward"].max()
        advice = "more --episodes may find one that does, or a reward on the way"
        if self.kind == "fixed":
            advice = "if the gate says the same of validation with the context, nothing will be trained"
        if success is POSITIVE_RETURN and low < high <= 0:
            advice = (
                f"where the environment says nothing of it, one succeeds when {success.means}; if that is "
                "not meant, give register_text success=Success(...)"
            )
        tell(
            run.console,
            f"no episode has succeeded, and returns went from {low:g} to {high:g}: {advice}",
        )

    def settle_on(self, context: Context | None) -> None:
        """Note in the store which insights are in use: those of ``context``, if any."""
        self._put_in_use(context or NO_CONTEXT, Phase(kind="final"))

    # --- where insights come from --------------------------------------------------------------

    def _of_outcomes(self, phase: Phase, *, explore: bool) -> Context:
        run, words = self.run, self.run.words
        advise = words.advise
        assert advise is not None

        def draw() -> list[Insight]:
            turns = run.memory.situations(run.store.turns(phases=run.played), words)
            insights = outcome_insights(turns, words.actions, advise, explore=explore)
            run.store.set_insights(insights, str(phase))
            return insights

        insights = run.ranks.from_main(draw)
        return self._context(insights, run.config.insights_per_prompt, is_exploring=explore)

    def raw(self, round_number: int) -> Context:
        """Whole transcripts in place of insights, as one context; for the ablation of the paper's warning."""
        run, config = self.run, self.run.config

        def draw() -> list[Insight]:
            turns, endings = self._traces(round_number)
            return raw_insights(turns, endings)

        context = self._together(run.ranks.from_main(draw), config.insights_per_prompt)
        self._put_in_use(context, Phase(kind="raw", round=round_number))
        return context

    def _fixed(self) -> Context:
        """The text as it was when the run began, whatever became of the file."""
        context = Context.fixed(str(self.run.once(CONTEXT, lambda: "")))
        self._put_in_use(context, CONTEXT)
        return context

    def _written(self, round_number: int) -> list[Context]:
        """Each insight alone, and where prompts show several, all that fit together."""
        run, config = self.run, self.run.config
        phase = Phase(kind="write", round=round_number)
        drawn = run.once(phase, partial(self._write_together, phase))
        insights = insights_of(drawn)
        if run.ranks.is_main:
            run.store.set_insights(insights, str(phase))
        run.console.print(
            f"round {round_number}: {len(insights)} insights, of which "
            f"{sum(insight.is_instance_specific for insight in insights)} quote their problem"
        )
        ranked = [insight for insight in insights if insight.state == InsightState.ACTIVE]
        alone = [self._together([insight], 1) for insight in ranked[:MAX_CANDIDATES]]
        if len(ranked) > 1:
            alone.append(self._together(ranked, config.insights_per_prompt))
        return alone

    def _write_together(self, phase: Phase) -> list[dict[str, Any]]:
        """What the main process writes, as all of them may be needed to let the agent do so."""
        student, config = self.run.agent.student, self.run.config
        student.clear()
        if config.insight_url is None and config.insight_model is None:
            student.prepare()
        written = self.run.ranks.from_main(lambda: self._write(phase))
        student.clear()
        return written

    def _write(self, phase: Phase) -> list[dict[str, Any]]:
        """What is known and what the writer says of the round's traces, by promise."""
        run, store = self.run, self.run.store
        assert self.writer is not None
        assert phase.round is not None
        turns, endings = self._traces(phase.round)
        known = store.load_insights()
        active = [insight for insight in known if insight.state == InsightState.ACTIVE]
        shown, _ = within_budget(active, CONTEXT_TOKENS, self._count_tokens)
        with run.progress(f"round {phase.round}: insights", len(endings)):
            new = write_insights(
                turns,
                endings,
                self.writer,
                self.prompts,
                known=shown,
                seeds=[turn_seed(run.config.seed, str(phase), i, 0) for i in range(len(endings))],
                said=said,
                forbidden=run.agent.student.control_tokens,
            )
        drawn = settled(merged(known, new), run.words.actions)
        return [asdict(insight) for insight in by_promise(drawn, self._judged_alone())]

    def _judged_alone(self) -> dict[str, tuple[int, float]]:
        """Insight -> episodes and success rate where it lasted longest, of those a gate tried alone."""
        scores = self.run.store.scores()
        judged: dict[str, tuple[int, float]] = {}
        for ids, seeds, won in zip(scores["insight_ids"], scores["seeds"], scores["successes"], strict=True):
            if len(ids) == 1 and seeds:
                judged[ids[0]] = max(judged.get(ids[0], (0, 0.0)), (len(seeds), won / len(seeds)))
        return judged

    def _traces(self, round_number: int) -> tuple[Any, Any]:
        """The turns and the endings of the traces that insights are drawn from: the round's first."""
        run, phase = self.run, str(Phase.play(round_number, 0))
        traces = run.store.traces(phase=phase)
        traces = traces[~traces["stop_reason"].isin(FAULTS)].head(traces_read(run.config))
        turns = run.store.turns(phases=[phase])
        endings = traces.set_index("trace_id")["final_observation"]
        return turns.assign(reply=turns["reply"].map(said)), endings

    def _together(self, insights: Sequence[Insight], k: int) -> Context:
        run = self.run
        kept, dropped = within_budget(
            insights,
            0 if k else CONTEXT_TOKENS,  # of a pool, k are shown at a time
            self._count_tokens,
        )
        if dropped:
            run.console.print(
                f"{len(dropped)} of {len(insights)} insights do not fit in a prompt and are left out"
            )
        return self._context(kept, k)

    def _count_tokens(self, text: str) -> int:
        return len(self.run.agent.base.tokenizer(text)["input_ids"])

    def _context(self, insights: Sequence[Insight], k: int, *, is_exploring: bool = False) -> Context:
        return Context(
            insights=tuple(insights), k=k, situation=self.run.words.situation, is_exploring=is_exploring
        )

    def _make_writer(self) -> Writer:
        run, config = self.run, self.run.config
        if config.insight_url is not None:
            endpoint = Endpoint(
                config.insight_url,
                config.insight_model or "",
                max_tokens=TOKENS_SENT,
                temperature=INSIGHT_TEMPERATURE,
                said=said,
            )
            if config.resume is None:  # which may need it no more
                endpoint.reach()
            return endpoint
        policy = (
            run.agent.student if config.insight_model is None else run.agent.load_policy(config.insight_model)
        )
        return PolicyWriter(run, policy, config.insight_model)

    # --- what is kept ----------------------------------------------------------------------------

    def _put_in_use(self, context: Context, phase: Phase) -> None:
        """The context's insights, as the store knows them by now, become the active ones."""
        if self.run.ranks.is_main:
            store = self.run.store
            known = {insight.id: insight for insight in store.load_insights()}
            store.set_insights(
                [replace(known.get(i.id, i), state=InsightState.ACTIVE) for i in context.insights], str(phase)
            )
