"""The OPCD update: make the student on the bare prompt behave like the teacher with the context."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from distill.comparison import KLComparison, States, of_each, rows_of
from distill.examples import DistillError, DistillExample, Scored, repetition, scored
from distill.lm.compiled import compile_layers
from distill.lm.freezing import freeze_unreached
from distill.lm.head import LMHead
from distill.lm.language_model import context_window
from distill.lm.shards import Shards, part, whole
from distill.lm.support import WAYS, supported
from distill.lm.transfer import sent
from distill.lm.ways import Way
from distill.loss import Direction, Mode
from distill.optimizer import MOMENTS, OptimizerKind, fits, make_optimizer, moments_of
from distill.parallel import Ranks, Sharding, like, shared
from distill.room import chunk_positions, pass_tokens
from distill.teacher import ScoringTeacher, Teacher

__all__ = ["OPCD", "DistillError", "StepStats"]

MAX_GRAD_NORM = 1.0
"""Gradients with a larger norm are scaled down to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One optimiser step, measured before its update, over all processes."""

    kl: float
    """To the teacher, in nats: what was minimised."""
    student_mass: float
    """The student's probability of the top-k tokens that the KL looks at one by one."""
    teacher_mass: float
    """The teacher's probability of the same tokens."""
    entropy: float
    """Of the student's next-token distribution, in nats."""
    teacher_entropy: float
    """NaN with a teacher that is known at the top-k only."""
    grad_norm: float
    """Before clipping."""
    completion_tokens: float
    """Mean length of the completions."""
    cut_off: float
    """Share of the completions that the length limit ended."""
    repetition: float
    """Mean share of a completion's 4-grams that it had before."""
    nodes: int
    """Tokens that went through the student: the batch's distinct prefixes, or its sequences with padding."""
    kls: tuple[float, ...] = ()
    """The KL of each completion of this process, the mean over its tokens."""

    def as_dict(self) -> dict[str, float]:
        """For the log: all but what is of single completions."""
        return {name: value for name, value in asdict(self).items() if name != "kls"}


class OPCD:
    """The student's optimiser: AdamW on its weights, or on its adapters, with clipped gradients."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | ScoringTeacher,
        *,
        lr: float,
        temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        k: int = 256,
        mode: Mode = "tail",
        direction: Direction = "reverse",
        vocabulary: int | None = None,
        optimizer: OptimizerKind = "adamw",
        warmup_steps: int = 0,
        max_nodes: int | None = None,
        chunk: int | None = None,
        compute_dtype: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        ranks: Ranks | None = None,
        engine: Sharding = "ddp",
        compute: Way | None = None,
    ) -> None:
        """Set up.

        Args:
            student: Its weights that require gradients are trained in place, without dropout. With ``fsdp``
                they become shards, if they are not yet.
            teacher: Who is imitated.
            lr: AdamW's learning rate; betas (0.9, 0.999).
            temperature: Divides the student's logits, as when it samples.
            teacher_temperature: Divides the teacher's; below 1 it is sharpened.
            k: See ``topk_reverse_kl``.
            mode: See ``topk_reverse_kl``.
            direction: ``reverse`` is the paper's OPCD; ``forward`` on the teacher's completions is context
                distillation; ``gated`` is the reverse KL where student and teacher agree, and the forward KL
                where they do not. See ``distill.loss``.
            vocabulary: Token ids from here on are padding, with which models of one family differ.
            optimizer: Whether its moments take 32 bits, or 8 where they can.
            warmup_steps: How many steps the learning rate takes to rise linearly to ``lr``.
            max_nodes: Tokens of one forward and backward pass, a step being as many as it takes. By default
                what the device has room for; see ``pass_tokens``.
            chunk: Positions whose logits exist at a time; by default by the device too.
            compute_dtype: What matrix products run in (autocast); the weights and moments keep their type.
            gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
            ranks: The processes that share each step.
            engine: How they share the model.
            compute: The student as a prefix tree, or in padded batches; by default as ``supported`` says.
                Weights that text does not reach are frozen.

        Raises:
            DistillError: Student and teacher do not fit each other, or a setting makes no sense.
            UnsupportedModelError: The student is not computed exactly.
        """
        narrow = {p.dtype for p in student.parameters() if p.requires_grad and p.dtype.itemsize < 4}
        if narrow:
            raise DistillError(
                f"weights in {str(narrow.pop()).removeprefix('torch.')} are too coarse to train, since most "
                "updates would be rounded away: load them in float32 (--precision float32, or mixed, whose "
                "products are in bfloat16), or train adapters beside them (--lora-rank)"
            )
        student.eval()
        way = supported(student, compute).way
        sizes = [LMHead.of(student).weight_VD.shape[0]]
        if not isinstance(teacher, ScoringTeacher):
            sizes.append(teacher.head.weight_VD.shape[0])
        if vocabulary is None and sizes[0] != sizes[-1]:
            raise DistillError(f"the teacher knows {sizes[1]} tokens and the student {sizes[0]}")
        self.student = student
        self.teacher = teacher
        self.ranks = ranks or Ranks()
        self.step_count = 0
        vocabulary, on_gpu = vocabulary or sizes[0], student.device.type == "cuda"
        self.comparison = KLComparison(
            teacher=teacher,
            k=k,
            mode=mode,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            vocabulary=vocabulary,
            chunk=chunk or chunk_positions(student.device, vocabulary),
            narrow=compute_dtype if on_gpu else None,
        )
        self._direction: Direction = direction
        self._lr, self._warmup_steps = lr, warmup_steps
        self._last_step: int | None = None
        self._max_nodes = max_nodes or pass_tokens(
            student, is_checkpointed=gradient_checkpointing, is_compiled=way == "padded"
        )
        self._window = context_window(student)
        self._pass = WAYS[way].forward_pass
        self._checkpointing = gradient_checkpointing
        if Shards.of(student) is None:
            freeze_unreached(student)
        if not self.parameters:
            raise DistillError("there is nothing to train: all weights of the student are frozen")
        if gradient_checkpointing:
            # transformers 5.24 has a new name for it.
            enable = getattr(
                student, "activation_checkpointing_enable", student.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        if way == "padded":
            compile_layers(student)
        self._compute_dtype = compute_dtype
        self._forward = shared(student, self.ranks, engine, compute_dtype)
        self._optimizer = make_optimizer(optimizer, self.parameters.values(), lr=lr, weight_decay=0.0)

    def step(self, examples: Sequence[DistillExample], direction: Direction | None = None) -> StepStats:
        """One update.

        Args:
            examples: This process's share of the step. The loss is averaged over the shares of all.
            direction: Of the KL in this step, where it is not the usual one.

        Raises:
            DistillError: No example, a sequence that does not fit a context window, or a loss or gradient
                that is not finite. The weights are then as before the step.
        """
        completions = int(self.ranks.sums([len(examples)])[0])
        if not completions:
            raise DistillError("there is nothing to train on: every completion was empty")
        self.comparison.check_windows(examples, self._window)
        batches = self._batches(examples)
        passes: list[torch.Tensor] = []
        kls: list[tuple[Scored, torch.Tensor]] = []
        nodes = 0
        ddp = self._forward if isinstance(self._forward, DistributedDataParallel) else None
        self._optimizer.zero_grad(set_to_none=True)
        # Every process makes as many passes, since they exchange shards and gradients.
        begin = max((example.student_prompt_ids[0] for example in examples), default=0)
        most, begin = self.ranks.maximum([len(batches), begin])
        batches += [[]] * (most - len(batches))
        for index, batch in enumerate(batches, 1):
            places, is_last = scored(batch or _nothing(begin), completions), index == len(batches)
            with ddp.no_sync() if ddp and not is_last else nullcontext():  # it exchanges gradients once
                pass_sums, kl_T, tokens = self._forward_backward(places, direction, counts=bool(batch))
            passes.append(pass_sums)
            kls.append((places, kl_T))
            nodes += tokens
        self.student.eval()
        # Fetched once, at the end: a GPU computes one pass while the next is made ready.
        sums = sum(torch.stack(passes).cpu().double(), torch.zeros(5, dtype=torch.float64))
        parameters = self.parameters.values()
        norm = float(whole(torch.nn.utils.clip_grad_norm_(list(parameters), MAX_GRAD_NORM)))
        of_completions = [
            [len(e.completion_ids), e.is_cut_off, repetition(e.completion_ids)] for e in examples
        ]
        per_completion = [sum(column) for column in zip(*of_completions, strict=True)] or [0.0] * 3
        *reduced, length, cut_off, repeated, all_nodes = self.ranks.sums(
            [*sums.tolist(), *per_completion, nodes]
        )
        loss = reduced[0]
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            self._optimizer.zero_grad(set_to_none=True)
            raise DistillError(
                f"loss {loss} with gradient norm {norm} at step {self.step_count + 1}: nothing was updated. "
                "Lower the learning rate or raise the teacher temperature"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.step()
        # A fused step does not count as a change with torch, and memos of the student's would miss it.
        torch.autograd.graph.increment_version(list(parameters))
        self._optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        names = ("kl", "student_mass", "teacher_mass", "entropy", "teacher_entropy")
        return StepStats(
            **dict(zip(names, reduced, strict=True)),
            grad_norm=norm,
            completion_tokens=length / completions,
            cut_off=cut_off / completions,
            repetition=repeated / completions,
            nodes=int(all_nodes),
            kls=of_each(examples, kls),
        )

    def rehearse(self, examples: Sequence[DistillExample]) -> None:
        """Compute the gradients of a step, on this process alone, and drop them: to see what it takes.

        Raises:
            DistillError: A sequence does not fit a context window.
        """
        self.comparison.check_windows(examples, self._window)
        for batch in self._batches(examples):
            self._forward_backward(scored(batch, len(examples)))
        self.student.eval()
        self._optimizer.zero_grad(set_to_none=True)

    def decay_until(self, step: int) -> None:
        """Let the learning rate fall linearly, from what it would have been at the first step, to 0 there."""
        self._last_step = step

    def _learning_rate(self) -> float:
        """Of the next step."""
        done, total = self.step_count, self._last_step
        rising = min(1.0, (done + 1) / max(1, self._warmup_steps))
        falling = 1.0 if total is None else max(0.0, 1 - done / total)
        return self._lr * rising * falling

    def _batches(self, examples: Sequence[DistillExample]) -> list[list[DistillExample]]:
        """The examples, as they are computed together."""
        sequences = [e.student_prompt_ids + e.completion_ids[:-1] for e in examples]
        groups = self._pass.pack(self.student, sequences, self._max_nodes)
        return [[examples[index] for index in group] for group in groups]

    def _forward_backward(
        self, places: Scored, direction: Direction | None = None, *, counts: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Add to the gradients.

        Args:
            places: What the pass scores.
            direction: Of the KL.
            counts: Whether it counts; else it is gone through for the others' sake.

        Returns:
            The pass's part of the step's sums, the KL where it scores, and its tokens.
        """
        self.student.eval()
        direction = direction or self._direction
        kl_T = torch.empty(0)
        # Before the pass: where the teacher is in shards, its head is gathered by all.
        rows = rows_of(places, self.student.device)
        teacher = self.comparison.teachers(places, rows)
        forward_pass = self._pass.of(self.student, places.student)
        weight_T = sent([weight * counts for weight in places.weights], self.student.device)

        def score() -> torch.Tensor:
            """Loss, then what is logged."""
            hidden_TD = forward_pass.hidden(self.student, self._compute_dtype)
            nonlocal kl_T
            mine = States(hidden_TD[rows], LMHead.of(self.student))
            result = self.comparison.kl(mine, teacher, places, weight_T, direction)
            kl_T = result.kl_T
            logged = [(weight_T * stat_T).sum() for stat_T in result[2:]]
            return torch.stack([result.loss, *logged])

        if self._checkpointing:
            _compute_again(self.student)
        sums = self._forward(score)
        (sums[0] * self.ranks.size).backward()  # gradients are averaged over processes, the loss is not
        return sums.detach(), kl_T, forward_pass.tokens if counts else 0

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name; with ``fsdp`` this process's shards."""
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights for a checkpoint: of shards this process's, else all on the main process."""
        return self._kept((f"weight/{name}", parameter) for name, parameter in self.parameters.items())

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, by name: weights, moments, step count.

        Put together, it does not depend on how many processes there are: a run may go on with another number.
        """
        moments = (
            (f"{key}/{name}", value)
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        )
        steps = [("step_count", torch.tensor(self.step_count))]
        return self.weights() | self._kept(moments) | self._kept(steps)

    def _kept(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        keeps = self.ranks.is_main or Shards.of(self.student) is not None
        return {name: part(tensor.detach()).cpu() for name, tensor in tensors if keeps}

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of ``state()`` or ``weights()``, put together, on every process; no moments.

        Raises:
            DistillError: They are another model's.
        """
        parameters = {f"weight/{name}": parameter for name, parameter in self.parameters.items()}
        if parameters.keys() != {name for name in tensors if name.startswith("weight/")}:
            raise DistillError("the checkpoint is of another model")
        self._optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in parameters.items():
                if (weight := tensors[name]).shape != parameter.shape:
                    raise DistillError("the checkpoint is of another model")
                parameter.copy_(like(weight, parameter))

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from ``state()``, put together, on every process.

        Raises:
            DistillError: It is another model's, or another optimizer's, or damaged.
        """
        self.load_weights(tensors)
        for name, parameter in self.parameters.items():
            kinds = [kind for kind in MOMENTS if f"{kind}/{name}" in tensors]
            if kinds and kinds != moments_of(self._optimizer, parameter):
                raise DistillError("the checkpoint is of another optimizer")
            state = self._optimizer.state[parameter] if kinds else {}
            for kind in kinds:
                moment = tensors[f"{kind}/{name}"]
                if not fits(moment, kind, self._optimizer, parameter):
                    raise DistillError("the checkpoint is of another optimizer")
                state[kind] = like(moment, parameter)
        count = tensors.get("step_count")
        if count is None or count.numel() != 1 or count.is_floating_point() or count < 0:
            raise DistillError("the checkpoint has no step_count")
        self.step_count = int(count)


def _nothing(token: int) -> list[DistillExample]:
    """What a process computes in a pass that only others have work for, of a token with which prompts begin.

    Not of any: that of padding may stand for zeros, whose length has no gradient.
    """
    return [DistillExample(student_prompt_ids=(token,), teacher_prompt_ids=(token,), completion_ids=(token,))]


def _compute_again(model: PreTrainedModel) -> None:
    """Let the layers of a model in eval mode keep no activations.

    Only the layers themselves are told that they are trained, not what they are made of; and what they do
    themselves in training alone, such as dropping and jittering, is switched off. So all is as in eval mode.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
            for name, value in vars(layer).items():
                if isinstance(value, float) and ("drop" in name or "jitter" in name):
                    setattr(layer, name, 0.0)
