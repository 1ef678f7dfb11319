import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agents.examples import Question, sample_examples
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from distill.collapse import collapse
from distill.examples import (
    DistillExample,
    TokenIds,
    repetition,
    scored,
)
from distill.lm.prefix_lm import PrefixLM
from distill.lm.save import save_weights
from distill.lm.span import Span
from distill.lora import LoRA
from distill.loss import forward_kl, topk_reverse_kl
from distill.opcd import OPCD, DistillError, StepStats
from distill.teacher import FollowingTeacher, FrozenTeacher, check_same_tokens
from tests.conftest import byte_tokenizer, tiny_llama


def example(
    student: tuple[int, ...], teacher: tuple[int, ...], completion: tuple[int, ...]
) -> DistillExample:
    return DistillExample(student_prompt_ids=student, teacher_prompt_ids=teacher, completion_ids=completion)


EXAMPLES = [
    example((5, 6, 7), (5, 6, 9, 7), (20, 21)),
    example((5, 6, 7), (5, 6, 9, 7), (20, 22, 23)),
    example((5, 6, 7), (5, 6, 9, 7), (20, 21)),
    example((5, 8), (5, 8, 10), (30,)),
    example((5, 8), (5, 8, 11, 12), (30,)),  # the same student prompt under another context
]


def trainer(student: PreTrainedModel, teacher: PreTrainedModel, max_nodes: int = 512, **more: Any) -> OPCD:
    return OPCD(
        student,
        FrozenTeacher(PrefixLM(teacher)),
        lr=1e-3,
        temperature=0.9,
        teacher_temperature=0.5,
        k=16,
        max_nodes=max_nodes,
        **more,
    )


def naive_loss(student: PreTrainedModel, teacher: PreTrainedModel) -> torch.Tensor:
    """One sequence at a time: mean over completions of the mean over tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for e in EXAMPLES:
        n = len(e.completion_ids)
        s = student(torch.tensor([e.student_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
        with torch.no_grad():
            t = teacher(torch.tensor([e.teacher_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
        total = total + topk_reverse_kl(s / 0.9, t / 0.5, k=16).mean() / len(EXAMPLES)
    return total


@pytest.mark.parametrize("max_nodes", [1, 4, 512])
def test_a_step_is_the_naive_step(max_nodes: int) -> None:
    """Trees, merged duplicates and micro-batches change nothing but the work."""
    teacher = tiny_llama(1, torch.float64)
    student, naive = tiny_llama(0, torch.float64), tiny_llama(0, torch.float64)
    opcd = trainer(student, teacher, max_nodes)
    loss = naive_loss(naive, teacher)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
    torch.optim.AdamW(naive.parameters(), lr=1e-3, weight_decay=0.0).step()

    stats = opcd.step(EXAMPLES)
    assert stats.kl == pytest.approx(loss.item(), rel=1e-5)
    assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip(student.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    if max_nodes == 512:  # 5 67 20 21? 22 | 8 : the distinct prefixes that are scored
        assert stats.nodes == len({(5,), (5, 6), (5, 6, 7), (5, 6, 7, 20), (5, 6, 7, 20, 22), (5, 8)})


def weights_of(examples: Sequence[DistillExample], total: int | None = None) -> dict[Any, float]:
    """(student's prefix, teacher's prefix) -> weight."""
    places = scored(examples, total)
    prefixes = [
        [span.tokens[:end] for span in spans for end in range(span.start, len(span.tokens) + 1)]
        for spans in (places.student, places.teacher)
    ]
    pairs = list(zip(*prefixes, strict=True))
    return {pairs[row]: weight for row, weight in zip(places.rows, places.weights, strict=True)}


def spans(*prefixes: TokenIds) -> list[Span]:
    return [Span.of(prefix) for prefix in prefixes]


def test_weights_sum_to_one_and_duplicates_merge() -> None:
    weights = weights_of(EXAMPLES)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights[(5, 6, 7), (5, 6, 9, 7)] == pytest.approx(0.2 * (1 / 2 + 1 / 3 + 1 / 2))
    assert weights[(5, 6, 7, 20, 22), (5, 6, 9, 7, 20, 22)] == pytest.approx(0.2 / 3)
    shares = [weights_of(part, total=5) for part in (EXAMPLES[:2], EXAMPLES[2:])]
    for key, weight in weights.items():
        assert weight == pytest.approx(sum(share.get(key, 0.0) for share in shares))


def test_training_converges_to_the_teacher() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    opcd = OPCD(student, PrefixLM(teacher), lr=3e-3, temperature=1.0, teacher_temperature=1.0)
    agreeing = EXAMPLES[:4]  # the fifth asks for something else at the same student prompt
    losses = [opcd.step(agreeing).kl for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]


def test_resume_is_exact() -> None:
    teacher = tiny_llama(1)
    whole = trainer(tiny_llama(0), teacher)
    for _ in range(4):
        whole.step(EXAMPLES)
    first = trainer(tiny_llama(0), teacher)
    for _ in range(2):
        first.step(EXAMPLES)
    second = trainer(tiny_llama(5), teacher)
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(2):
        second.step(EXAMPLES)
    assert second.step_count == 4
    for one, two in zip(whole.student.parameters(), second.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_loss_that_is_not_finite_stops_and_changes_nothing(model: PreTrainedModel) -> None:
    teacher = tiny_llama(1)
    with torch.no_grad():
        teacher.lm_head.weight.fill_(torch.nan)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(DistillError, match=r"loss nan .* at step 1"):
        trainer(model, teacher).step(EXAMPLES)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_students_memo_notices_a_step(model: PreTrainedModel) -> None:
    lm = PrefixLM(model)
    before = lm.logits([(5, 6, 7)])
    trainer(model, tiny_llama(1)).step(EXAMPLES)
    after = lm.logits([(5, 6, 7)])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, PrefixLM(model).logits([(5, 6, 7)]))


def test_nothing_to_train_on(model: PreTrainedModel) -> None:
    with pytest.raises(DistillError, match="nothing to train on"):
        trainer(model, model).step([])


def test_another_models_checkpoint_is_refused(model: PreTrainedModel) -> None:
    state = trainer(model, model).state()
    name = next(key for key in state if key.endswith("q_proj.weight"))
    state[name] = state[name][:1]
    with pytest.raises(DistillError, match="another model"):
        trainer(model, model).load_state(state)


def test_examples_hold_what_was_sampled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = HFPolicy(model, tokenizer)
    bare = Prompt(messages=(Message(role="user", content="x"),), reply_prefix="I")
    rich = Prompt(messages=(Message(role="user", content="x: go"),), reply_prefix="I")
    [one] = sample_examples(
        policy, policy.encode, [Question(prompts=(bare, rich), seed=7)], Sampling(max_tokens=3)
    )
    [again] = policy.generate([bare], Sampling(max_tokens=3), [7])
    assert one.completion_ids == again.token_ids
    assert one.student_prompt_ids == policy.encode(bare)
    assert one.teacher_prompt_ids == policy.encode(rich)


def test_a_frozen_teachers_answers_do_not_depend_on_what_came_before() -> None:
    teacher = tiny_llama(1)
    batches: list[list[TokenIds]] = [[(5, 6, 9, 7), (5, 6, 9, 7, 20)], [(5, 6, 9), (5, 6, 9, 7)], [(5, 8)]]
    history = FrozenTeacher(PrefixLM(teacher))
    for batch in batches:
        history.along(spans(*batch))
    for batch in batches:
        fresh = FrozenTeacher(PrefixLM(teacher)).along(spans(*batch))
        assert torch.equal(history.along(spans(*batch)), fresh)
        assert torch.equal(history.along(spans(*batch[::-1])), fresh.flip(0))


def test_a_frozen_teacher_computes_a_batch_once_and_forgets_within_bounds() -> None:
    lm = PrefixLM(tiny_llama(1))
    teacher = FrozenTeacher(lm, max_bytes=3 * 32 * 4)
    teacher.along(spans((5, 6), (5, 7)))
    teacher.along(spans((5, 7), (5, 6), (5, 6)))
    assert lm.computed_tokens == 3
    teacher.along(spans((8,), (9,)))  # takes the place of the first
    teacher.along(spans((8,), (9,)))
    assert lm.computed_tokens == 5
    teacher.along(spans((5, 6), (5, 7)))
    assert lm.computed_tokens == 8


def test_a_frozen_teacher_computes_what_it_is_to_remember_once() -> None:
    lm = PrefixLM(tiny_llama(1))
    teacher = FrozenTeacher(lm)
    teacher.remember([(5, 7), (5, 6)])
    hidden_ND = teacher.along(spans((5, 6), (5, 8), (5, 7)))
    torch.testing.assert_close(hidden_ND, FrozenTeacher(lm.fresh()).along(spans((5, 6), (5, 8), (5, 7))))
    assert lm.computed_tokens == 3 + 2
    teacher.along(spans((5, 7)))
    assert lm.computed_tokens == 3 + 2


def test_a_teacher_that_moves_forgets() -> None:
    teacher = FollowingTeacher(PrefixLM(tiny_llama(1)))
    teacher.remember([(5, 6)])
    before = teacher.along(spans((5, 6)))
    teacher.follow(tiny_llama(2).named_parameters())
    assert not torch.allclose(teacher.along(spans((5, 6))), before)


# --- what the loss is over ------------------------------------------------------------------------


def test_forward_kl_on_the_same_tokens() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    stats = trainer(student, teacher, direction="forward").step(EXAMPLES)
    total = 0.0
    for e in EXAMPLES:
        n = len(e.completion_ids)
        with torch.no_grad():
            s = tiny_llama(0)(torch.tensor([e.student_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
            t = teacher(torch.tensor([e.teacher_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
        total += float(forward_kl(s / 0.9, t / 0.5, k=16).mean()) / len(EXAMPLES)
    assert stats.kl == pytest.approx(total, rel=1e-4)


def test_each_completions_kl_is_known_and_their_mean_is_the_steps() -> None:
    examples = [*EXAMPLES, EXAMPLES[0]]
    stats = trainer(tiny_llama(0), tiny_llama(1), max_nodes=12).step(examples)
    assert len(stats.kls) == len(examples)
    assert stats.kls[0] == stats.kls[-1]
    assert sum(stats.kls) / len(examples) == pytest.approx(stats.kl, rel=1e-5)
    assert "kls" not in stats.as_dict()


def test_what_is_logged() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    [first, *_] = examples = [dataclasses.replace(EXAMPLES[0], is_cut_off=True), EXAMPLES[3]]
    stats = trainer(student, teacher).step(examples)
    assert (stats.completion_tokens, stats.cut_off, stats.repetition) == (1.5, 0.5, 0.0)
    assert 0 < stats.teacher_mass < 1
    assert 16 / 258 < stats.student_mass < 1
    expected = 0.0
    for ids, weight in (((5, 6, 7), 0.25), ((5, 6, 7, 20), 0.25), ((5, 8), 0.5)):
        logprobs = (PrefixLM(tiny_llama(0)).logits([ids])[0] / 0.9).log_softmax(-1)
        expected -= weight * float((logprobs.exp() * logprobs).sum())
    assert stats.entropy == pytest.approx(expected, rel=1e-4)
    assert first.is_cut_off


# --- conversations --------------------------------------------------------------------------------


def test_a_conversation_is_the_same_as_its_turns_and_computes_its_history_once() -> None:
    first, second = (5, 6), (5, 6, 20, 21, 7, 8)
    examples = [
        example(first, (5, 9, 6), (20, 21)),
        example(second, (5, 9, 6, 20, 21, 7, 8), (22,)),
        example((*second, 22, 7, 9), (5, 9, 6, 20, 21, 7, 8, 22, 7, 9, 9), (23, 24, 25)),
    ]
    whole, by_turn = tiny_llama(0), tiny_llama(0)
    together = trainer(whole, tiny_llama(1), max_nodes=4).step(examples)
    assert together.nodes == 2 + 2 + 2 + 1 + 2 + 2  # the last token of each example predicts nothing
    alone = trainer(by_turn, tiny_llama(1))
    losses = []
    for one in examples:  # one after the other, their gradients added up
        alone._optimizer.zero_grad()
        sums, *_ = alone._forward_backward(scored([one], total=len(examples)))
        losses.append(float(sums[0]))
    assert together.kl == pytest.approx(sum(losses), rel=1e-5)


# --- teachers -------------------------------------------------------------------------------------


def test_a_following_teacher_takes_over_and_averages() -> None:
    student, teacher = tiny_llama(0), FollowingTeacher(PrefixLM(tiny_llama(1)))
    before = teacher.along(spans((5, 6)))
    teacher.follow(trainer(student, tiny_llama(1)).parameters.items(), decay=0.75)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = 0.75 * tiny_llama(1).get_parameter(name) + 0.25 * student.get_parameter(name)
    torch.testing.assert_close(teacher.lm.model.get_parameter(name), expected)
    assert not torch.equal(teacher.along(spans((5, 6))), before)
    teacher.follow(trainer(student, tiny_llama(1)).parameters.items())
    torch.testing.assert_close(teacher.along(spans((5, 6))), PrefixLM(student).hidden([(5, 6)]))
    state = dict(teacher.state([name]))
    teacher.load_state(state)
    for wrong in ({f"teacher/{name}": torch.zeros(1)}, {"teacher/other": torch.zeros(1)}):
        with pytest.raises(DistillError, match="another model"):
            teacher.load_state(wrong)


def test_the_student_as_its_own_teacher() -> None:
    """With nothing to add, there is nothing to learn; with a context, there is."""
    student = tiny_llama(0)
    opcd = OPCD(student, PrefixLM(student), lr=1e-3)
    same = [dataclasses.replace(e, teacher_prompt_ids=e.student_prompt_ids) for e in EXAMPLES]
    assert opcd.step(same).kl == pytest.approx(0.0, abs=1e-6)
    assert opcd.step(EXAMPLES).kl > 0.01


def test_another_model_of_the_same_vocabulary_teaches() -> None:
    """A larger one, whose embedding is padded to a rounder size."""
    teacher = tiny_llama(1)
    teacher.resize_token_embeddings(272, mean_resizing=False)
    student = tiny_llama(0)
    with pytest.raises(DistillError, match="teacher knows 272 tokens and the student 258"):
        OPCD(student, FrozenTeacher(PrefixLM(teacher)), lr=1e-3)
    plain = trainer(tiny_llama(0), tiny_llama(1))
    padded = trainer(student, teacher, vocabulary=258)
    assert padded.step(EXAMPLES).kl == pytest.approx(plain.step(EXAMPLES).kl, rel=1e-5)


def test_a_teacher_of_another_tokenizer_is_refused() -> None:
    other = byte_tokenizer()
    other.add_tokens([" right"])
    check_same_tokens(byte_tokenizer(), byte_tokenizer())
    with pytest.raises(DistillError, match=r"259 tokens against 258; ' right' is 258 there and unknown here"):
        check_same_tokens(byte_tokenizer(), other)


# --- memory and precision -------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing_but_the_memory() -> None:
    models = tiny_llama(0), tiny_llama(0)
    models[1].config.attention_dropout = 0.5
    for layer in models[1].model.layers:
        layer.self_attn.attention_dropout = 0.5  # must not be switched on with train mode
    stats = [
        [trainer(model, tiny_llama(1), gradient_checkpointing=on).step(EXAMPLES)]
        for model, on in zip(models, (False, True), strict=True)
    ]
    assert stats[0] == stats[1]
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)
    assert not models[1].training


def test_half_precision_compute_keeps_the_weights_single() -> None:
    student = tiny_llama(0)
    opcd = trainer(student, tiny_llama(1), compute_dtype=torch.bfloat16)
    exact = trainer(tiny_llama(0), tiny_llama(1)).step(EXAMPLES)
    stats = opcd.step(EXAMPLES)
    assert stats.kl != exact.kl
    assert stats.kl == pytest.approx(exact.kl, rel=0.05)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert all(t.dtype == torch.float32 for t in opcd.state().values() if t.is_floating_point())


def test_warm_up_raises_the_learning_rate() -> None:
    opcd = trainer(tiny_llama(0), tiny_llama(1), warmup_steps=4)
    rates = []
    for _ in range(5):
        opcd.step(EXAMPLES)
        rates.append(opcd._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_learning_rate_decay() -> None:
    opcd = trainer(tiny_llama(0), tiny_llama(1), warmup_steps=2)
    opcd.decay_until(4)
    rates = []
    for _ in range(5):
        opcd.step(EXAMPLES)
        rates.append(opcd._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0])


# --- LoRA -----------------------------------------------------------------------------------------


def test_what_was_remembered_before_adapters_came_is_forgotten() -> None:
    student = tiny_llama()
    lm = PrefixLM(student)
    before = lm.logits([(5, 6, 7)])
    LoRA(student, rank=4, alpha=8)
    torch.testing.assert_close(lm.logits([(5, 6, 7)]), before)
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    after = lm.logits([(5, 6, 7)])
    torch.testing.assert_close(after, PrefixLM(student).logits([(5, 6, 7)]))
    assert not torch.allclose(after, before, atol=0.1)


def test_adapters_learn_the_base_stays_and_teaches(tmp_path: Path) -> None:
    student = tiny_llama(0)
    lora = LoRA(student, rank=4, alpha=8)
    base = PrefixLM(student, within=lora.off)
    untouched = PrefixLM(tiny_llama(0)).logits([(5, 6, 7)])
    opcd = OPCD(student, FrozenTeacher(base.fresh()), lr=3e-2, teacher_temperature=0.5)
    losses = [opcd.step(EXAMPLES[:4]).kl for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(base.logits([(5, 6, 7)]), untouched)
    adapted = PrefixLM(student).logits([(5, 6, 7)])
    assert not torch.allclose(adapted, untouched, atol=0.1)
    assert all("lora" in name for name in opcd.state() if name != "step_count")

    # As a plain model in fp32, here in many files, and as adapters, which peft loads.
    save_weights(
        student, lora.weights(merged=True, dtype=torch.float32), tmp_path / "model", file_bytes=20_000
    )
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(PrefixLM(merged).logits([(5, 6, 7)]), adapted, atol=1e-4, rtol=1e-4)
    lora.save(tmp_path / "adapter", opcd.parameters.items(), base="somebody/s-model")
    loaded: Any = PeftModel.from_pretrained(tiny_llama(0), tmp_path / "adapter")
    torch.testing.assert_close(loaded(torch.tensor([[5, 6, 7]])).logits[:, -1], adapted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(PrefixLM(student).logits([(5, 6, 7)]), adapted)  # all this changed nothing


def test_adapters_resume_exactly() -> None:
    def adapted() -> OPCD:
        student = tiny_llama(0)
        LoRA(student, rank=2, alpha=4)
        return trainer(student, tiny_llama(1))

    whole, first, second = adapted(), adapted(), adapted()
    for _ in range(4):
        whole.step(EXAMPLES)
    for _ in range(2):
        first.step(EXAMPLES)
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(2):
        second.step(EXAMPLES)
    for one, two in zip(whole.state().values(), second.state().values(), strict=True):
        assert torch.equal(one, two)


# --- collapse and bad input --------------------------------------------------------------------------

HEALTHY = StepStats(
    kl=1.0, student_mass=0.9, teacher_mass=0.9, entropy=1.0,
    teacher_entropy=1.0, grad_norm=1.0, completion_tokens=20.0, cut_off=0.0, repetition=0.0, nodes=100,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({}, None),
        ({"entropy": 0.0, "kl": 0.0}, None),  # certain, as a sharpened teacher makes it
        ({"entropy": 2.5, "teacher_entropy": 2.0}, None),
        ({"completion_tokens": 4.0}, "shrank from 20.0 tokens to 4.0"),
        ({"repetition": 0.7}, "repeat themselves: 70%"),
        ({"entropy": 2.5}, "noise: 2.50 nats of entropy after 1.00"),
        ({"student_mass": 0.3}, "leaks out of its top tokens: 30.0% is left of 90.0%"),
    ],
)
def test_collapse(change: dict[str, float], match: str | None) -> None:
    reason = collapse(dataclasses.replace(HEALTHY, **change), HEALTHY)  # type: ignore[arg-type]
    assert (reason is None) if match is None else (reason is not None and match in reason)


def test_short_replies_cannot_collapse_in_length() -> None:
    first = dataclasses.replace(HEALTHY, completion_tokens=2.0)
    assert collapse(dataclasses.replace(HEALTHY, completion_tokens=0.4), first) is None


def test_repetition() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition(list(range(50))) == 0.0
    assert repetition([7] * 50) == pytest.approx(1 - 1 / 47)


def test_the_paper_form_collapses_and_is_noticed() -> None:
    """DESIGN section 5: the truncated form raises what is outside the top-k, until the mass has leaked."""
    student = tiny_llama(0)
    opcd = OPCD(student, FrozenTeacher(PrefixLM(tiny_llama(1))), lr=1e-2, k=4, mode="truncated")
    first, *rest = [opcd.step(EXAMPLES) for _ in range(40)]
    assert rest[-1].student_mass < 0.5 * first.student_mass
    assert any("leaks" in (collapse(stats, first) or "") for stats in rest)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_what_does_not_fit_the_window_is_refused_with_the_numbers(who: str) -> None:
    long = tuple(itertools.islice(itertools.cycle(range(2, 200)), 511))
    fits = example((5, 6), (5, 7), (20, 21))
    change: dict[str, Any] = {f"{who}_prompt_ids": long}
    overlong = dataclasses.replace(fits, **change)
    before = tiny_llama(0).state_dict()
    student = tiny_llama(0)
    with pytest.raises(DistillError, match=f"511 tokens and its completion of 2 make 513, and the {who}'s"):
        trainer(student, tiny_llama(1)).step([fits, overlong])
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_prompt_without_room_for_a_reply(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = HFPolicy(model, tokenizer)
    long = Prompt(messages=(Message(role="user", content="x" * 490),))
    with pytest.raises(DistillError, match=r"a prompt of 5\d\d tokens and 30 new ones do not fit"):
        sample_examples(
            policy, policy.encode, [Question(prompts=(long, long), seed=0)], Sampling(max_tokens=30)
        )


@pytest.mark.parametrize("settings", [{"k": 0}, {"mode": "half"}])
def test_settings_without_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(DistillError, match="must be"):
        OPCD(tiny_llama(0), PrefixLM(tiny_llama(1)), lr=1e-3, **settings)


def test_an_example_has_tokens_everywhere() -> None:
    for empty in ("student_prompt_ids", "teacher_prompt_ids", "completion_ids"):
        change: dict[str, Any] = {empty: ()}
        with pytest.raises(ValueError, match="at least one token"):
            dataclasses.replace(EXAMPLES[0], **change)


def test_the_teachers_own_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = HFPolicy(model, tokenizer)
    bare = Prompt(messages=(Message(role="user", content="x"),))
    rich = Prompt(messages=(Message(role="user", content="x: go"),))
    questions = [Question(prompts=(bare, rich), seed=7)]
    [one] = sample_examples(policy, policy.encode, questions, Sampling(max_tokens=3), data="teacher")
    [again] = policy.generate([rich], Sampling(max_tokens=3), [7])
    assert one.completion_ids == again.token_ids
    assert (one.student_prompt_ids, one.teacher_prompt_ids) == (policy.encode(bare), policy.encode(rich))
    assert one.is_cut_off == (again.finish_reason == "length")

    def other_template(prompt: Prompt) -> TokenIds:
        return (9, *policy.encode(prompt))

    [other] = sample_examples(
        policy,
        policy.encode,
        questions,
        Sampling(max_tokens=3),
        data="teacher",
        teacher_encode=other_template,
    )
    assert other == dataclasses.replace(one, teacher_prompt_ids=other_template(rich))


def test_how_far_each_completion_is_from_the_teacher() -> None:
    student, teacher = tiny_llama(0, torch.float64), tiny_llama(1, torch.float64)
    opcd = trainer(student, teacher, mode="truncated")  # what is measured is a KL whatever is minimised
    expected: list[float] = []
    for e in EXAMPLES:
        n = len(e.completion_ids)
        s = student(torch.tensor([e.student_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
        t = teacher(torch.tensor([e.teacher_prompt_ids + e.completion_ids])).logits[0, -n - 1 : -1]
        expected.append(topk_reverse_kl(s / 0.9, t / 0.5, k=16).mean().item())
    before = {name: p.clone() for name, p in student.named_parameters()}
    with patch.object(torch.Tensor, "backward", side_effect=AssertionError):
        assert opcd.comparison.divergences(PrefixLM(student), EXAMPLES * 9) == pytest.approx(
            expected * 9, rel=1e-5
        )
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert opcd.comparison.divergences(PrefixLM(student), []) == []
    with pytest.raises(DistillError, match="context window"):
        opcd.comparison.divergences(PrefixLM(student), [example((5,), (5,) * 511, (6, 7))])


def test_moments_of_another_shape_are_refused() -> None:
    """A folder may be anybody's, and the fused kernels look at no shape and no dtype."""
    one, other = (OPCD(tiny_llama(), FrozenTeacher(PrefixLM(tiny_llama(1))), lr=1e-3) for _ in range(2))
    one.step(EXAMPLES)
    state = dict(one.state())
    name = next(name for name in state if name.startswith("exp_avg/"))
    for moment in (torch.zeros(3), state[name].to(torch.uint8)):
        with pytest.raises(DistillError, match="another optimizer"):
            other.load_state(state | {name: moment})
    for count in (torch.ones(3, dtype=torch.int64), torch.tensor(0.5), torch.tensor(-1)):
        with pytest.raises(DistillError, match="no step_count"):
            other.load_state(state | {"step_count": count})
    del state["step_count"]
    with pytest.raises(DistillError, match="no step_count"):
        other.load_state(state)


@pytest.mark.parametrize("size", [1, 300])
def test_logprobs_of_a_sequence_are_those_of_its_prefixes(size: int) -> None:
    lm = PrefixLM(tiny_llama())
    tokens = tuple(torch.randint(3, 250, (size + 7,), generator=torch.Generator().manual_seed(0)).tolist())
    prefixes = [tokens[:end] for end in range(7, len(tokens))]
    expected = lm.logits(prefixes).log_softmax(-1)[range(size), list(tokens[7:])]
    torch.testing.assert_close(lm.fresh().logprobs(tokens, 7), expected, atol=1e-5, rtol=1e-5)
