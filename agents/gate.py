"""The gate of a run: its teacher plays validation with and without what was learned, and that decides."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from agents.config import ConfigError
from agents.run.run import Run
from evals.gate import Outcomes, Verdict, can_admit, judge
from evals.result import judged
from experience.context import NO_CONTEXT, Context
from experience.insight import Insight, insights_of
from experience.merging import settled, with_outcomes
from experience.outcomes import share_followed
from experience.phase import Phase
from experience.seeds import SeedRange
from experience.terminal import tell


class Gate:
    """Decides over all rounds of a run what is trained."""

    def __init__(self, run: Run, kind: str) -> None:
        """See ``Reflection.kind``. What can never be admitted, for want of episodes, is said at once."""
        self._run, self._kind = run, kind
        self.best = NO_CONTEXT
        """What was found best last, admitted or not: what experience is worth in the prompt."""
        if not can_admit(deciding := self._deciding):
            tell(
                run.console,
                f"{deciding} validation episodes decide whether insights help: too few, as {deciding} won "
                f"to none would not be significant; take more --validation-episodes, or more problems",
            )

    @property
    def seeds(self) -> SeedRange:
        """By which it is decided whether a context helps; where a model writes many, also which does."""
        return self._run.seeds.gate if self._kind == "llm" else self._run.seeds.validation

    @property
    def _deciding(self) -> int:
        """Episodes that decide at a gate: half of them where a model writes, since the others choose."""
        n = len(self.seeds)
        return n - n // 2 if self._kind == "llm" else n

    def admit(self, round_number: int, candidates: Sequence[Context]) -> Context | None:
        """The best of the candidates if it helps the teacher on validation; otherwise nothing is trained."""
        if not candidates:
            self._run.console.print(f"round {round_number}: no insights, so nothing is trained")
            return None
        verdict = self._judge(round_number, candidates)
        self.best = verdict.context
        return verdict.context if verdict.admitted else None

    def _judge(self, round_number: int, candidates: Sequence[Context]) -> Verdict:
        """How the candidates, at least one, do on validation; the scores go to the store.

        The teacher plays the same seeds with and without them, at its temperature.
        """
        run, config = self._run, self._run.config
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
            candidates, self.seeds, play, phase=str(phase), policy_id=policy_id, question=question
        )
        followed = self._followed(verdict.context, shown[verdict.context.id])
        self._keep(phase, candidates, verdict, trace_ids, followed)
        return verdict

    def _followed(self, context: Context, phases: Sequence[str]) -> float | None:
        """How often the advice of outcomes was followed where it was shown."""
        run, words = self._run, self._run.words
        if self._kind != "outcomes" or words.advise is None or not run.ranks.is_main:
            return None
        turns = run.memory.situations(run.store.turns(phases=phases), words)
        return share_followed(turns, context.insights, words.advise)

    def _keep(
        self,
        phase: Phase,
        candidates: Sequence[Context],
        verdict: Verdict,
        trace_ids: Mapping[str, Mapping[int, str]],
        followed: float | None,
    ) -> None:
        """Put the scores on record, and what they say for and against each insight; and tell the verdict."""
        run = self._run
        if run.ranks.is_main:
            run.store.add_scores(verdict.scores)
            if self._kind == "llm":
                known = insights_of(run.store.result(str(replace(phase, kind="write"))))
                # The base replies greedily to the same questions in each round: that is no more evidence.
                is_known = run.config.teacher_kind == "base" and not run.words.actions
                weighed = _with_evidence(known, candidates, verdict, trace_ids, is_known=is_known)
                run.store.set_insights(settled(weighed, run.words.actions), str(phase))
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
        what = "the text of the context file" if self._kind == "fixed" else _in_words(verdict.context)
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
