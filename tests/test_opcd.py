import copy

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.hf_policy import HFPolicy
from agents.policy import Message, Prompt, Sampling
from agents.prefix_lm import PrefixLM
from distill.examples import DistillExample, TokenIds, sample_examples, scored_prefixes
from distill.loss import topk_reverse_kl
from distill.opcd import OPCD, DistillError
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama


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


def trainer(student: PreTrainedModel, teacher: PreTrainedModel, max_nodes: int = 512) -> OPCD:
    return OPCD(
        student,
        FrozenTeacher(PrefixLM(teacher)),
        lr=1e-3,
        temperature=0.9,
        teacher_temperature=0.5,
        k=16,
        max_nodes=max_nodes,
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
    assert stats.loss == pytest.approx(loss.item(), rel=1e-5)
    assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip(student.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    if max_nodes == 512:  # 5 67 20 21? 22 | 8 : the distinct prefixes that are scored
        assert stats.nodes == len({(5,), (5, 6), (5, 6, 7), (5, 6, 7, 20), (5, 6, 7, 20, 22), (5, 8)})


def test_weights_sum_to_one_and_duplicates_merge() -> None:
    weights = scored_prefixes(EXAMPLES)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights[(5, 6, 7), (5, 6, 9, 7)] == pytest.approx(0.2 * (1 / 2 + 1 / 3 + 1 / 2))
    assert weights[(5, 6, 7, 20, 22), (5, 6, 9, 7, 20, 22)] == pytest.approx(0.2 / 3)


def test_training_converges_to_the_teacher() -> None:
    student, teacher = tiny_llama(0), tiny_llama(1)
    opcd = OPCD(student, PrefixLM(teacher), lr=3e-3, temperature=1.0, teacher_temperature=1.0)
    agreeing = EXAMPLES[:4]  # the fifth asks for something else at the same student prompt
    losses = [opcd.step(agreeing).loss for _ in range(100)]
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
    [one] = sample_examples(policy, policy.encode, [(bare, rich)], Sampling(max_tokens=3), [7])
    [again] = policy.generate([bare], Sampling(max_tokens=3), [7])
    assert one.completion_ids == again.token_ids
    assert one.student_prompt_ids == policy.encode(bare)
    assert one.teacher_prompt_ids == policy.encode(rich)


def test_a_frozen_teachers_answers_do_not_depend_on_what_came_before() -> None:
    teacher = tiny_llama(1)
    batches: list[list[TokenIds]] = [[(5, 6, 9, 7), (5, 6, 9, 7, 20)], [(5, 6, 9), (5, 6, 9, 7)], [(5, 8)]]
    history = FrozenTeacher(PrefixLM(teacher))
    for batch in batches:
        history.hidden(batch)
    for batch in batches:
        fresh = FrozenTeacher(PrefixLM(teacher)).hidden(batch)
        assert torch.equal(history.hidden(batch), fresh)
        assert torch.equal(history.hidden(batch[::-1]), fresh.flip(0))


def test_a_frozen_teacher_computes_a_batch_once_and_forgets_within_bounds() -> None:
    lm = PrefixLM(tiny_llama(1))
    teacher = FrozenTeacher(lm, max_bytes=3 * 32 * 4)
    teacher.hidden([(5, 6), (5, 7)])
    teacher.hidden([(5, 7), (5, 6), (5, 6)])
    assert lm.computed_tokens == 3
    teacher.hidden([(8,), (9,)])  # takes the place of the first
    teacher.hidden([(8,), (9,)])
    assert lm.computed_tokens == 5
    teacher.hidden([(5, 6), (5, 7)])
    assert lm.computed_tokens == 8
