"""What of a model is not trained, since no text reaches it."""

import torch
from transformers import PreTrainedModel

from distill.lm.head import LMHead
from distill.lm.span import Span
from distill.lm.support import WAYS, supported


def freeze_unreached(student: PreTrainedModel) -> None:
    """Freeze what no text reaches, such as a vision tower: DDP would wait for its gradients.

    ``OPCD`` does it itself but for a model that comes in shards, of which it can only be found out before.
    Which of many experts a token reaches is chance: they all stay.
    """
    if not any(p.requires_grad for p in student.parameters()):
        return
    student.eval()
    forward_pass = WAYS[supported(student).way].forward_pass
    with torch.enable_grad():
        hidden_ND = forward_pass.of(student, [Span((0, 0), 2)]).hidden(student, None)
    reached = {id(LMHead.of(student).weight_VD), id(LMHead.of(student).map.bias_V)}
    seen, waiting = set(), [hidden_ND.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))
        waiting += [following for following, _ in node.next_functions]
    for name, parameter in student.named_parameters():
        if id(parameter) not in reached and "expert" not in name:
            parameter.requires_grad_(False)
