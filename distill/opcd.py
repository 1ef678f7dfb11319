"""The OPCD update: make the student on the bare prompt behave like the teacher with the context."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from agents.prefix_lm import tree_logits
from agents.prefix_tree import PrefixTree, pack
from distill.examples import DistillExample, scored_prefixes
from distill.loss import Mode, topk_reverse_kl
from distill.teacher import Teacher


class DistillError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One optimiser step, measured before its update."""

    loss: float
    """The reverse KL in nats: mean over completions of the mean over their tokens."""
    grad_norm: float
    """Before clipping."""
    entropy: float
    """Of the student's next-token distribution, in nats, with the loss's weights."""
    completion_tokens: float
    """Mean length of the completions."""
    nodes: int
    """Tokens that went through the student: the distinct prefixes of the batch."""

    def as_dict(self) -> dict[str, float]:
        """For the log."""
        return asdict(self)


class OPCD:
    """The student's optimiser: AdamW on all weights, gradients clipped to ``max_grad_norm``."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher,
        *,
        lr: float,
        temperature: float,
        teacher_temperature: float,
        k: int = 256,
        mode: Mode = "tail",
        max_grad_norm: float = 1.0,
        max_nodes: int = 512,
    ) -> None:
        """Set up.

        Args:
            student: Its weights are trained in place, in eval mode (no dropout).
            teacher: Who is imitated; it never changes.
            lr: AdamW's learning rate; betas (0.9, 0.999), no weight decay.
            temperature: Divides the student's logits, as when it samples.
            teacher_temperature: Divides the teacher's; below 1 it is sharpened.
            k: See ``topk_reverse_kl``.
            mode: See ``topk_reverse_kl``.
            max_grad_norm: Gradients with a larger norm are scaled down to it.
            max_nodes: Tokens of one forward and backward pass; bounds the memory of a step.
        """
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.k = k
        self.mode: Mode = mode
        self.max_grad_norm = max_grad_norm
        self.max_nodes = max_nodes
        self.step_count = 0
        self._optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def step(self, examples: Sequence[DistillExample]) -> StepStats:
        """One update from the student's own completions.

        Raises:
            DistillError: No example, or a loss or gradient that is not finite. The weights are then
                as before the step.
        """
        weights = scored_prefixes(examples)
        if not weights:
            raise DistillError("there is nothing to train on: every completion was empty")
        pairs = sorted(weights)
        students = sorted({student for student, _ in pairs})
        loss = entropy = 0.0
        nodes = 0
        self._optimizer.zero_grad(set_to_none=True)
        for group in pack(students, self.max_nodes):
            members = {students[index] for index in group}
            batch = [pair for pair in pairs if pair[0] in members]
            tree = PrefixTree()
            ends = [tree.add(student)[-1] for student, _ in batch]
            nodes += len(tree)
            student_logits_TV = tree_logits(self.student, tree, range(len(tree)), [], read=ends).float()
            student_logits_TV = student_logits_TV / self.temperature
            teacher_logits_TV = (
                self.teacher.logits([teacher for _, teacher in batch]) / self.teacher_temperature
            )
            kl_T = topk_reverse_kl(student_logits_TV, teacher_logits_TV, k=self.k, mode=self.mode)
            weight_T = torch.tensor([weights[pair] for pair in batch], device=kl_T.device)
            group_loss = (weight_T * kl_T).sum()
            group_loss.backward()
            loss += group_loss.item()
            logprobs_TV = student_logits_TV.detach().log_softmax(-1)
            entropy -= float((weight_T * (logprobs_TV.exp() * logprobs_TV).sum(-1)).sum())
        norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.max_grad_norm))
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            self._optimizer.zero_grad(set_to_none=True)
            raise DistillError(
                f"loss {loss} with gradient norm {norm} at step {self.step_count + 1}: nothing was updated. "
                "Lower the learning rate or raise the teacher temperature"
            )
        self._optimizer.step()
        # A fused step does not count as a change with torch, and memos of the student's would miss it.
        torch.autograd.graph.increment_version(list(self.student.parameters()))
        self._optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        return StepStats(
            loss=loss,
            grad_norm=norm,
            entropy=entropy,
            completion_tokens=sum(len(e.completion_ids) for e in examples) / len(examples),
            nodes=nodes,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, by name: weights, moments, step count."""
        tensors = {"step_count": torch.tensor(self.step_count), **self.weights()}
        for name, parameter in self.student.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from ``state()``.

        Raises:
            DistillError: It is another model's.
        """
        self.load_weights(tensors)
        kinds = {key.split("/", 1)[0] for key in tensors} - {"weight", "step_count"}
        for name, parameter in self.student.named_parameters():
            self._optimizer.state[parameter] = {
                kind: tensors[f"{kind}/{name}"].to(parameter.device) for kind in kinds
            }
        self.step_count = int(tensors["step_count"])

    def weights(self) -> dict[str, torch.Tensor]:
        """The part of ``state`` that is the model."""
        return {f"weight/{name}": parameter.detach() for name, parameter in self.student.named_parameters()}

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the weights of ``state()`` or ``weights()``.

        Raises:
            DistillError: They are another model's.
        """
        mine = self.weights()
        theirs = {name: tensor for name, tensor in tensors.items() if name.startswith("weight/")}
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            raise DistillError("the checkpoint is of another model")
        for name, weight in mine.items():
            weight.copy_(theirs[name])
