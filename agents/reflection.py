"""What comes before the weights: play, draw insights from the traces, and judge them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from agents.config import ConfigError
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.rollout import Phase, turn_seed
from agents.run.run import Session
from evals.gate import Outcomes, Verdict, by_promise, judge
from evals.result import EvalResult
from experience.context import NO_CONTEXT, Context, within_budget
from experience.endpoint import Endpoint
from experience.insight import Insight, InsightState
from experience.merging import merged, settled, with_outcomes
from experience.outcomes import outcome_insights
from experience.seeds import SeedRange, Split
from experience.writer import (
    MARKER,
    InsightPrompts,
    Writer,
    WritingTask,
    raw_insights,
    write_insights,
)


class Learning:
    """The agent's experience of one run, over all its rounds."""

    def __init__(self, session: Session) -> None:
        """Find out how insights are drawn.

        Raises:
            ConfigError: The env's outcomes cannot be put into advice.
            ExperienceError: There is no client for endpoints.
            ModelError: The writer cannot be had.
            ExperienceError: The prompts cannot be used.
        """
        self.session = session
        config, words = session.config, session.words
        kind: str = "fixed" if config.context_file is not None else config.insights
        if kind == "auto":
            kind = "llm" if words.advise is None else "outcomes"
        if kind == "outcomes" and words.advise is None:
            raise ConfigError(
                f"insights outcomes need an env with action words, {config.env} has none: take llm"
            )
        self.kind = kind
        self.prompts = InsightPrompts(config.insight_prompts)
        self.writer = self._make_writer() if kind == "llm" and session.ranks.is_main else None

    def collect(self, round_number: int) -> None:
        """Play a round's train episodes.

        Where insights come from outcomes they are played in waves: the first without experience, each further
        one with the insights so far, which send the agent to what it has not tried.
        """
        session, config = self.session, self.session.config
        waves = config.waves if self.kind == "outcomes" else 1
        size = config.episodes // waves
        for wave in range(waves):
            phase = f"round{round_number}/play{wave}"
            start = ((round_number - 1) * waves + wave) * size
            seeds = SeedRange(split=Split.TRAIN, run_seed=config.seed, start=start, size=size)
            context = NO_CONTEXT
            if wave > 0 and not session.is_finished(phase):
                context = self._of_outcomes(phase, explore=True)
            traces = session.play(phase, session.student, seeds, config.temperature, context)
            session.played.append(phase)
            if wave == 0:
                session.log(
                    f"round{round_number}/start",
                    kind="round",
                    round=round_number,
                    step=session.student_step,
                    **EvalResult.from_traces(traces).as_dict(),
                )

    def reflect(self, round_number: int) -> list[Context]:
        """What the traces teach: the contexts worth trying, the most promising first."""
        if self.kind == "fixed":
            contexts = [self._fixed()]
        elif self.kind == "outcomes":
            contexts = [self._of_outcomes(f"round{round_number}", explore=False)]
        elif self.kind == "raw":
            contexts = [self.raw(round_number)]
        else:
            contexts = self._written(round_number)
        return list({context.id: context for context in contexts if context.insights}.values())

    def gate(self, round_number: int, candidates: Sequence[Context]) -> Context | None:
        """The best of the candidates if it helps the teacher on validation; otherwise nothing is trained."""
        if not candidates:
            self.session.console.print(f"round {round_number}: no insights, so nothing is trained")
            return None
        verdict = self.judge(round_number, candidates)
        return verdict.context if verdict.admitted else None

    def judge(self, round_number: int, candidates: Sequence[Context], *, fully: bool = False) -> Verdict:
        """How the candidates, at least one, do on validation; the scores go to the store.

        The teacher plays the same seeds with and without them, at its temperature.

        Args:
            round_number: For the record.
            candidates: What to compare.
            fully: Play each on all seeds, to see what halving costs.
        """
        session, config = self.session, self.session.config
        temperature = config.gate_temperature
        if temperature is None:
            temperature = config.teacher_temperature
        # ``round`` is about to become what the student is now.
        teacher = session.student if config.teacher == "round" else session.teacher
        phase = f"round{round_number}/{'gate-fully' if fully else 'gate'}"
        trace_ids: dict[str, dict[int, str]] = {}

        def play(contexts: Sequence[Context], seeds: SeedRange) -> Sequence[Outcomes]:
            phases = [
                Phase(
                    # A frozen teacher without context is the same in every round.
                    name="gate/none"
                    if context.id == "none" and config.teacher == "base"
                    else f"{phase}/{context.id}/{seeds.start}",
                    seeds=seeds,
                    context=context,
                )
                for context in contexts
            ]
            frames = session.play_all(phase, phases, teacher, temperature)
            for context, frame in zip(contexts, frames, strict=True):
                trace_ids.setdefault(context.id, {}).update(frame.set_index("seed")["trace_id"])
            return [
                dict(zip(frame["seed"].tolist(), frame["success"].astype(bool).tolist(), strict=True))
                for frame in frames
            ]

        verdict = judge(
            candidates,
            session.validation_seeds,
            play,
            phase=phase,
            policy_id=session.policy_id(teacher),
            fully=fully,
        )
        self._keep(phase, candidates, verdict, trace_ids)
        return verdict

    def settle_on(self, context: Context | None) -> None:
        """Note in the store which insights went into the weights: those of ``context``, if any did."""
        self._put_in_use(context or NO_CONTEXT, "final")

    # --- where insights come from --------------------------------------------------------------

    def _of_outcomes(self, phase: str, *, explore: bool) -> Context:
        session, words = self.session, self.session.words
        advise = words.advise
        assert advise is not None

        def draw() -> list[Insight]:
            turns = session.store.turns(phases=session.played)
            insights = outcome_insights(
                turns, words.actions, advise, explore=explore, situation=words.situation
            )
            session.store.set_insights(insights, phase)
            return insights

        insights = session.ranks.from_main(draw)
        return self._context(insights, session.config.insights_per_prompt, is_exploring=explore)

    def raw(self, round_number: int) -> Context:
        """Whole transcripts in place of insights, as one context; for the ablation of the paper's warning."""
        session, config = self.session, self.session.config

        def draw() -> list[Insight]:
            turns, endings = self._traces(round_number)
            return raw_insights(turns, endings)

        context = self._together(session.ranks.from_main(draw), config.insights_per_prompt)
        self._put_in_use(context, f"round{round_number}/raw")
        return context

    def _fixed(self) -> Context:
        """The text as it was when the run began, whatever became of the file."""
        context = Context.fixed(self.session.ranks.from_main(lambda: self.session.store.result("context")))
        self._put_in_use(context, "context")
        return context

    def _written(self, round_number: int) -> list[Context]:
        """Each insight alone, and where prompts show several, all that fit together."""
        session, config = self.session, self.session.config
        insights: list[Insight] = session.ranks.from_main(lambda: self._write(round_number))
        ranked = [insight for insight in insights if insight.state == InsightState.ACTIVE]
        alone = [self._together([insight], 1) for insight in ranked[: config.candidates]]
        if len(ranked) > 1:
            alone.append(self._together(ranked, config.insights_per_prompt))
        return alone

    def _write(self, round_number: int) -> list[Insight]:
        """What is known and what the writer says of the round's traces, by promise.

        The outcome is kept, so a resumed run reads it back.
        """
        session, store = self.session, self.session.store
        phase = f"round{round_number}/write"
        if not store.is_finished(phase):
            assert self.writer is not None
            turns, endings = self._traces(round_number)
            known = store.load_insights()
            active = [insight for insight in known if insight.state == InsightState.ACTIVE]
            shown, _ = within_budget(active, session.config.context_tokens, self._count_tokens)
            with session.progress(f"round{round_number}/insights", len(endings)):
                new = write_insights(
                    turns,
                    endings,
                    self.writer,
                    self.prompts,
                    known=shown,
                    seeds=[turn_seed(session.config.seed, phase, i, 0) for i in range(len(endings))],
                    forbidden=session.student.tokenizer.all_special_tokens,
                )
            drawn = settled(merged(known, new), session.words.actions)
            judged = {ids[0] for ids in store.scores()["insight_ids"] if len(ids) == 1}
            store.finish_phase(phase, [asdict(insight) for insight in by_promise(drawn, judged)])
        insights = [insight_from(values) for values in store.result(phase)]
        store.set_insights(insights, phase)
        session.console.print(
            f"round {round_number}: {len(insights)} insights, of which "
            f"{sum(insight.is_instance_specific for insight in insights)} quote their problem"
        )
        return insights

    def _traces(self, round_number: int) -> tuple[Any, Any]:
        """The turns and the endings of the traces that insights are drawn from: the round's first."""
        session, phase = self.session, f"round{round_number}/play0"
        traces = session.store.traces(phase=phase).head(session.config.insight_traces)
        return session.store.turns(phases=[phase]), traces.set_index("trace_id")["final_observation"]

    def _together(self, insights: Sequence[Insight], k: int) -> Context:
        session = self.session
        kept, dropped = within_budget(
            insights,
            0 if k else session.config.context_tokens,  # of a pool, k are shown at a time
            self._count_tokens,
        )
        if dropped:
            session.console.print(
                f"{len(dropped)} of {len(insights)} insights do not fit --context-tokens and are left out"
            )
        return self._context(kept, k)

    def _count_tokens(self, text: str) -> int:
        return len(self.session.base.tokenizer(text)["input_ids"])

    def _context(self, insights: Sequence[Insight], k: int, *, is_exploring: bool = False) -> Context:
        return Context(
            insights=tuple(insights),
            k=k,
            situation=self.session.words.situation,
            is_exploring=is_exploring,
        )

    def _make_writer(self) -> Writer:
        session, config = self.session, self.session.config
        if config.insight_url is not None:
            return Endpoint(
                config.insight_url,
                config.insight_model or "",
                max_tokens=config.insight_tokens,
                temperature=config.insight_temperature,
            )
        policy = (
            session.student if config.insight_model is None else session.load_policy(config.insight_model)
        )
        return PolicyWriter(session, policy, config.insight_model)

    # --- what is kept ----------------------------------------------------------------------------

    def _put_in_use(self, context: Context, phase: str) -> None:
        """The context's insights, as the store knows them by now, become the active ones."""
        if self.session.ranks.is_main:
            store = self.session.store
            known = {insight.id: insight for insight in store.load_insights()}
            store.set_insights(
                [replace(known.get(i.id, i), state=InsightState.ACTIVE) for i in context.insights], phase
            )

    def _keep(
        self,
        phase: str,
        candidates: Sequence[Context],
        verdict: Verdict,
        trace_ids: Mapping[str, Mapping[int, str]],
    ) -> None:
        """Put the scores on record, and what they say for and against each insight."""
        session = self.session
        name = phase.partition("/")[0]
        if session.ranks.is_main:
            session.store.add_scores(verdict.scores)
            if self.kind == "llm":
                known = [insight_from(values) for values in session.store.result(f"{name}/write")]
                alone = {c.insights[0].id: c.id for c in candidates if len(c.insights) == 1}
                judged = [
                    with_outcomes(
                        insight, verdict.outcomes[context_id], verdict.outcomes["none"], trace_ids[context_id]
                    )
                    if (context_id := alone.get(insight.id))
                    else insight
                    for insight in known
                ]
                session.store.set_insights(settled(judged, session.words.actions), phase)
        session.log(
            f"{phase}-verdict",
            kind="gate",
            round=int(name.removeprefix("round")),
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
            episodes=verdict.episodes,
            episodes_full=verdict.episodes_full,
        )
        what = f"{len(verdict.context.insights)} insights"
        if self.kind == "fixed":
            what = "the text of the context file"
        elif len(verdict.context.insights) == 1:
            what = f'"{verdict.context.insights[0].text}"'
        if len(candidates) > 1:
            what = f"the best of {len(candidates)} contexts, {what}"
        which = "that did not choose it" if len(candidates) > 1 else "of them"
        outcome = "admitted" if verdict.admitted else "refused: nothing is trained, the agent plays on"
        session.console.print(
            f"{phase}: with {what}, the teacher succeeds in {verdict.success_rate:.1%} of the "
            f"validation episodes, without in {verdict.success_rate_without:.1%} (p = {verdict.p_value:.2g} "
            f"on {verdict.n} {which}): {outcome}",
            soft_wrap=True,
            markup=False,
        )


class PolicyWriter:
    """A ``Writer`` that is a policy: the agent itself, or another local model.

    The reply is begun with the marker, so that a small model writes an item and nothing else.
    """

    begins_replies = True

    def __init__(self, session: Session, policy: HFPolicy, model: str | None) -> None:
        self._session = session
        self._policy = policy
        self._model = model

    @property
    def name(self) -> str:
        """The model, or which of the agent's own weights."""
        return self._model or f"step{self._session.student_step}"

    def __call__(self, tasks: Sequence[WritingTask], seeds: Sequence[int]) -> list[str]:
        """One reply per task; see ``Writer``. A task that does not fit the window gets an empty one."""
        config = self._session.config
        self._policy.clear()
        prompts = [
            Prompt(
                messages=(
                    Message(role="system", content=task.system),
                    Message(role="user", content=task.user),
                ),
                reply_prefix=MARKER,
            )
            for task in tasks
        ]
        sampling = Sampling(temperature=config.insight_temperature, max_tokens=config.insight_tokens)
        completions = self._policy.generate(prompts, sampling, seeds)
        self._policy.clear()
        return [MARKER + completion.text for completion in completions]


def insight_from(values: dict[str, Any]) -> Insight:
    """An insight from its ``asdict``, as JSON gives it back."""
    lists = {name: tuple(values[name]) for name in ("evidence", "against")}
    return Insight(**{**values, **lists, "state": InsightState(values["state"])})
