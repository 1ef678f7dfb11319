"""What comes before the weights: play, draw insights from the traces, and judge them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

from agents.config import ConfigError, SelfImproveConfig
from agents.policy_writer import INSIGHT_TEMPERATURE, PolicyWriter, said
from agents.rollout import turn_seed
from agents.run.run import CONTEXT, Run
from envs.words import POSITIVE_RETURN
from evals.gate import Outcomes, Verdict, by_promise, can_admit, judge
from evals.result import judged
from experience.context import NO_CONTEXT, Context, within_budget
from experience.endpoint import Endpoint
from experience.insight import Insight, InsightState, insights_of
from experience.merging import merged, settled, with_outcomes
from experience.outcomes import outcome_insights, share_followed
from experience.phase import Phase
from experience.seeds import SeedRange
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
    """The agent's experience of one run, over all its rounds."""

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
        self.prompts = InsightPrompts(config.insight_prompts)
        self.best = NO_CONTEXT
        """What the last gate found best, admitted or not: what experience is worth in the prompt."""
        self.writer = self._make_writer() if kind == "llm" and run.ranks.is_main else None
        if not can_admit(deciding := self._deciding):
            tell(
                run.console,
                f"{deciding} validation episodes decide whether insights help: too few, as {deciding} won "
                f"to none would not be significant; take more --validation-episodes, or more problems",
            )

    @property
    def waves(self) -> int:
        """Parts of a round's play: several where each can be led by what those before it came to."""
        config = self.run.config
        return min(config.waves, config.episodes) if self.kind == "outcomes" else 1

    @property
    def _deciding(self) -> int:
        """Episodes that decide at a gate: half of them where a model writes, since the others choose."""
        n = len(self.gate_seeds)
        return n - n // 2 if self.kind == "llm" else n

    @property
    def gate_seeds(self) -> SeedRange:
        """By which it is decided whether a context helps; where a model writes many, also which does."""
        return self.run.seeds.gate if self.kind == "llm" else self.run.seeds.validation

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

    def gate(self, round_number: int, candidates: Sequence[Context]) -> Context | None:
        """The best of the candidates if it helps the teacher on validation; otherwise nothing is trained."""
        if not candidates:
            self.run.console.print(f"round {round_number}: no insights, so nothing is trained")
            return None
        verdict = self.judge(round_number, candidates)
        self.best = verdict.context
        return verdict.context if verdict.admitted else None

    def judge(self, round_number: int, candidates: Sequence[Context]) -> Verdict:
        """How the candidates, at least one, do on validation; the scores go to the store.

        The teacher plays the same seeds with and without them, at its temperature.
        """
        run, config = self.run, self.run.config
        # As it will teach; greedily where replies are text, in which one slip of the dice is a wrong answer.
        temperature = config.teacher_temperature if run.words.actions else 0.0
        # ``round`` is about to become what the student is now.
        teacher = run.agent.student if config.teacher_kind == "round" else run.agent.teacher
        phase = Phase(kind="gate", round=round_number)
        trace_ids: dict[str, dict[int, str]] = {}
        shown: dict[str, list[str]] = {}

        def play(contexts: Sequence[Context], seeds: SeedRange) -> Sequence[Outcomes]:
            # A frozen teacher without context is the same in every round.
            phases = [
                Phase(kind="gate", index="none")
                if context.id == "none" and config.teacher_kind == "base"
                else replace(phase, index=f"{context.id}/{seeds.start}")
                for context in contexts
            ]
            played = list(zip(phases, contexts, strict=True))
            frames = run.play_all(str(phase), played, teacher, seeds, temperature)
            for context, where, frame in zip(contexts, phases, frames, strict=True):
                if not set(frame["seed"]).issuperset(seeds):
                    raise ConfigError(f"{where} was played by another version: begin another run")
                shown.setdefault(context.id, []).append(str(where))
                trace_ids.setdefault(context.id, {}).update(frame.set_index("seed")["trace_id"])
            return [
                dict(zip(frame["seed"].tolist(), frame["success"].astype(bool).tolist(), strict=True))
                for frame in map(judged, frames)
            ]

        @cache
        def posed() -> Mapping[str, str]:
            def read() -> dict[str, str]:
                turns = run.store.turns(phases=shown[NO_CONTEXT.id])
                return dict(turns[turns["turn"] == 0].set_index("trace_id")["observation"])

            return run.ranks.from_main(read)

        def question(seed: int) -> Hashable:
            # Elsewhere an episode is more than what is seen first.
            return posed().get(trace_ids[NO_CONTEXT.id][seed]) if run.poses_questions else seed

        policy_id = run.agent.weights_of(teacher)
        verdict = judge(
            candidates, self.gate_seeds, play, phase=str(phase), policy_id=policy_id, question=question
        )
        followed = self._followed(verdict.context, shown[verdict.context.id])
        self._keep(phase, candidates, verdict, trace_ids, followed)
        return verdict

    def _followed(self, context: Context, phases: Sequence[str]) -> float | None:
        """How often the advice of outcomes was followed where it was shown."""
        run, words = self.run, self.run.words
        if self.kind != "outcomes" or words.advise is None or not run.ranks.is_main:
            return None
        turns = run.memory.situations(run.store.turns(phases=phases), words)
        return share_followed(turns, context.insights, words.advise)

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

    def _keep(
        self,
        phase: Phase,
        candidates: Sequence[Context],
        verdict: Verdict,
        trace_ids: Mapping[str, Mapping[int, str]],
        followed: float | None,
    ) -> None:
        """Put the scores on record, and what they say for and against each insight; and tell the verdict."""
        run = self.run
        if run.ranks.is_main:
            run.store.add_scores(verdict.scores)
            if self.kind == "llm":
                known = insights_of(run.store.result(str(replace(phase, kind="write"))))
                # The base replies greedily to the same questions in each round: that is no more evidence.
                is_known = run.config.teacher_kind == "base" and not run.words.actions
                judged = _with_evidence(known, candidates, verdict, trace_ids, is_known=is_known)
                run.store.set_insights(settled(judged, run.words.actions), str(phase))
        run.log(
            replace(phase, kind=f"{phase.kind}-verdict"),
            kind="gate",
            round=phase.round,
            admitted=verdict.admitted,
            candidates=len(candidates),
            context_id=verdict.context.id,
            size=len(verdict.context.insights),
            insights=[insight.text for insight in verdict.context.insights][:1],
            with_insights=verdict.success_rate,
            without=verdict.success_rate_without,
            wins=verdict.wins,
            losses=verdict.losses,
            n=verdict.n,
            p_value=verdict.p_value,
            advice_followed=followed,
            episodes=verdict.episodes,
            episodes_full=verdict.episodes_full,
        )
        what = "the text of the context file" if self.kind == "fixed" else _in_words(verdict.context)
        tell(run.console, f"{phase}: {_told(verdict, what, len(candidates), followed)}")


def _with_evidence(
    known: Sequence[Insight],
    candidates: Sequence[Context],
    verdict: Verdict,
    trace_ids: Mapping[str, Mapping[int, str]],
    *,
    is_known: bool,
) -> list[Insight]:
    """The insights, those that a gate tried alone with what came of it.

    Where its episodes are the same in each round, ``is_known``, those counted before count no more.
    """
    alone = {context.insights[0].id: context.id for context in candidates if len(context.insights) == 1}
    return [
        with_outcomes(
            insight,
            verdict.outcomes[alone[insight.id]],
            verdict.outcomes[NO_CONTEXT.id],
            trace_ids[alone[insight.id]],
            counted=insight.evidence + insight.against if is_known else (),
        )
        if insight.id in alone
        else insight
        for insight in known
    ]


def _in_words(context: Context) -> str:
    if len(context.insights) == 1:
        return f'"{context.insights[0].text}"'
    return f"{len(context.insights)} insights"


def _told(verdict: Verdict, what: str, candidates: int, followed: float | None) -> str:
    """A verdict in a sentence."""
    if candidates > 1:
        what = f"the best of {candidates} contexts, {what}"
    which = " that did not choose it" if candidates > 1 else ""
    of_advice = "" if followed is None else f"; it does as advised in {followed:.1%} of its decisions"
    outcome = "admitted" if verdict.admitted else "refused: nothing is trained, the agent plays on"
    return (
        f"with {what}, the teacher succeeds in {verdict.success_rate:.1%} of {verdict.n} validation "
        f"episodes{which}, without in {verdict.success_rate_without:.1%} "
        f"(p = {verdict.p_value:.2g}{of_advice}): {outcome}"
    )
