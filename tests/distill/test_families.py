"""A tiny random model of each family: which way it takes, and that this is what the plain model computes.

``python -m tests.distill.test_families`` writes the table in docs/models.md.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from distill.examples import DistillError, DistillExample, scored
from distill.lm.decoding import Decoding
from distill.lm.padded_lm import PaddedLM
from distill.lm.save import save_weights
from distill.lm.support import find_support, language_model
from distill.lm.ways import state_bytes
from distill.lora import LoRA
from distill.loss import topk_reverse_kl
from distill.opcd import OPCD
from distill.parallel import Ranks
from distill.teacher import FrozenTeacher

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->\n"

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96, "sliding_window": 6,
    "attention_chunk_size": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "num_layers": 2, "num_heads": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "ffn_dim": 32, "word_embed_proj_dim": 32, "intermediate_size_mlp": 32, "shared_intermediate_size": 32,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
}  # fmt: skip
"""What every configuration is made small with, where it has the field."""
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8,
}  # fmt: skip
ZAMBA: dict[str, Any] = {
    "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 2, "chunk_size": 8,
    "hybrid_layer_ids": [1],
}  # fmt: skip
MLA: dict[str, Any] = {
    "head_dim": None, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 96,
    "original_max_position_embeddings": 12,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "partial_rotary_factor": 1.0,
    },
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "SmolLM3": ("smollm3", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen2-MoE": ("qwen2_moe", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "Qwen3-Next": ("qwen3_next", LINEAR),
    "Qwen3.5": ("qwen3_5_text", LINEAR),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", LINEAR),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", SLIDING),
    "Gemma 3": ("gemma3_text", SLIDING),
    "Gemma 3, multimodal": ("gemma3", {}),
    "Gemma 3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 5, "num_kv_shared_layers": 2, "laurel_rank": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
            "activation_sparsity_pattern": [0.0] * 5,
        },
    ),
    "Gemma 4": ("gemma4_text", SLIDING),
    "VaultGemma": ("vaultgemma", SLIDING),
    "Mistral": ("mistral", {}),
    "Ministral": ("ministral", SLIDING),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", {}),
    "Phi": ("phi", {}),
    "Phi 3, Phi 4": ("phi3", {}),
    "Phi 3 with longrope": ("phi3", LONGROPE),
    "Phi 3.5-MoE": ("phimoe", {}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", SLIDING),
    "OLMo hybrid": ("olmo_hybrid", LINEAR),
    "OLMoE": ("olmoe", {}),
    "Granite": ("granite", GRANITE),
    "Granite MoE": ("granitemoe", GRANITE),
    "Granite SWA": ("granite_swa", SLIDING | GRANITE),
    "Granite 4 hybrid": ("granitemoehybrid", MAMBA | GRANITE | {"layer_types": ["mamba", "attention"]}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Falcon": ("falcon", {"head_dim": None}),
    "Falcon-H1": (
        "falcon_h1",
        MAMBA
        | {
            "mamba_d_ssm": 64, "embedding_multiplier": 5.65, "lm_head_multiplier": 0.0195,
            "attention_in_multiplier": 0.9, "attention_out_multiplier": 1.1, "key_multiplier": 0.4,
            "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.2, "mlp_multipliers": [0.8, 0.2],
            "ssm_multipliers": [0.3, 0.2, 0.1, 0.5, 0.4],
        },
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba-2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "Nemotron": ("nemotron", {}),
    "Nemotron-H": (
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8,
            "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8,
        },
    ),
    "Bamba": ("bamba", MAMBA | {"attn_layer_indices": [1]}),
    "Jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}),
    "Zamba 2": ("zamba2", {"layer_types": ["mamba", "hybrid"], **ZAMBA}),
    "gpt-oss": ("gpt_oss", SLIDING),
    "MiMo V2 Flash": ("mimo_v2_flash", {}),
    "Llama 4, text": (
        "llama4_text",
        {
            "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
            "floor_scale": 4,
        },
    ),
    "DeepSeek V2": ("deepseek_v2", MLA),
    "DeepSeek V3": ("deepseek_v3", MLA),
    "MiniMax": ("minimax", LINEAR),
    "MiniMax M2": ("minimax_m2", {}),
    "GLM 4": ("glm4", {}),
    "GLM 4 MoE": ("glm4_moe", {}),
    "EXAONE 4": ("exaone4", SLIDING),
    "Hunyuan": ("hunyuan_v1_dense", {}),
    "Hunyuan MoE": ("hunyuan_v1_moe", {"moe_topk": 2}),
    "HyperCLOVA X": ("hyperclovax", {"logits_scaling": 0.125}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "Seed-OSS": ("seed_oss", {"residual_dropout": 0.5, "attention_dropout": 0.5}),
    "Cohere": ("cohere", {}),
    "Cohere 2": ("cohere2", SLIDING),
    "StableLM": ("stablelm", {}),
    "StarCoder 2": ("starcoder2", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "OPT": ("opt", {}),
}  # fmt: skip
"""By name: transformers' type of the model, and what its configuration needs beside ``SMALL``."""

WITHOUT_ADAPTERS = {"Falcon-H1", "Mamba", "Mamba-2", "Nemotron-H"}
"""Their layers read each other's weights past the adapters, so peft has none for them."""


def tiny(family: str) -> PreTrainedModel:
    kind, settings = FAMILIES[family]
    kind_of_config = CONFIG_MAPPING[kind]
    fields = set(kind_of_config.__dataclass_fields__) | set(getattr(kind_of_config, "attribute_map", {}))
    values = {name: value for name, value in (SMALL | settings).items() if name in fields or name in settings}
    if kind == "gemma3":
        text = {name: value for name, value in (SMALL | SLIDING).items() if name not in ("n_embd", "n_layer")}
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        values = {"text_config": text, "vision_config": vision, "image_token_id": 63}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        kind_of_config(**{name: value for name, value in values.items() if value is not None})
    )
    result: PreTrainedModel = model.eval()
    return result


def plain_loss(model: Any, examples: list[DistillExample]) -> torch.Tensor:
    """The mean over the examples, from prefixes one by one, with eager attention."""
    losses = []
    for e in examples:
        logits = []
        for prompt in (e.student_prompt_ids, e.teacher_prompt_ids):
            prefixes = [prompt + e.completion_ids[:end] for end in range(len(e.completion_ids))]
            rows = [model(torch.tensor([p]), use_cache=False).logits[0, -1] for p in prefixes]
            logits.append(torch.stack(rows))
        losses.append(topk_reverse_kl(logits[0] / 0.7, logits[1] / 0.5, k=8).mean())
    return torch.stack(losses).mean()


def test_enough_families() -> None:
    assert len({kind for kind, _ in FAMILIES.values()}) >= 40


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    again, about = loaded
    assert not about["missing_keys"]
    assert not about["mismatched_keys"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name

    assert row(family, model) in DOCS.read_text(encoding="utf-8").splitlines()

    draws = torch.Generator().manual_seed(1)
    shared, context, *rest = (
        tuple(torch.randint(3, 60, (n,), generator=draws).tolist()) for n in (5, 7, 2, 4, 3, 4)
    )
    examples = [
        DistillExample(
            student_prompt_ids=shared, teacher_prompt_ids=context + shared, completion_ids=rest[3]
        ),
        DistillExample(
            student_prompt_ids=shared + rest[0],
            teacher_prompt_ids=context + rest[0],
            completion_ids=rest[1],
        ),
        DistillExample(student_prompt_ids=rest[2], teacher_prompt_ids=context, completion_ids=rest[2]),
    ]
    naive: Any = copy.deepcopy(model)
    naive.set_attn_implementation("eager")
    loss = plain_loss(naive, examples)
    loss.backward()

    for checkpointing in (False, True):
        model.zero_grad()
        teacher = FrozenTeacher(language_model(copy.deepcopy(model)))
        opcd = OPCD(
            model, teacher, lr=1e-3, temperature=0.7, teacher_temperature=0.5, k=8,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        sums, *_ = opcd._forward_backward(scored(examples))
        assert float(sums[0]) == pytest.approx(float(loss), rel=2e-3)
        theirs = dict(naive.named_parameters())
        largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
        for name, mine in model.named_parameters():
            expected = theirs[name].grad
            if expected is not None:
                assert mine.grad is not None, name
                assert torch.allclose(mine.grad, expected, atol=2e-3 * largest, rtol=1e-3), name


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # peft's, at reading
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WITHOUT_ADAPTERS))
def test_adapters_are_saved_as_they_compute(family: str, tmp_path: Path) -> None:
    def logits(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(torch.tensor([[5, 6, 7, 8, 9]]), use_cache=False).logits
        return found

    model = tiny(family)
    plain = logits(model).detach()
    lora = LoRA(model, rank=4, alpha=8)
    logits(model).sum().backward()
    adapters = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
    for _, adapter in adapters:
        if adapter.grad is not None:  # one of Jamba's is passed by, so it never learns
            adapter.data.normal_(std=0.1)
    expected = logits(model).detach()
    assert not torch.allclose(expected, plain, atol=1e-2)

    save_weights(model, lora.weights(merged=True), tmp_path / "model")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    again, about = loaded
    assert not any(about.values())
    torch.testing.assert_close(logits(again).detach(), expected, atol=1e-4, rtol=1e-4)
    lora.save(tmp_path / "adapter", adapters, base="there")
    merged: Any = PeftModel.from_pretrained(tiny(family), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(merged.merge_and_unload()).detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(WITHOUT_ADAPTERS))
def test_a_family_without_adapters_is_refused(family: str) -> None:
    with pytest.raises(DistillError, match="Mamba-based"):
        LoRA(tiny(family), rank=4, alpha=8)


def test_a_pass_that_only_others_have_work_for_has_gradients() -> None:
    """Gemma 3n takes roots of lengths, and the padding's embedding is zeros: its gradient would be NaN."""
    model = tiny("Gemma 3n")
    teacher = FrozenTeacher(language_model(copy.deepcopy(model)))
    LoRA(model, rank=2, alpha=4)  # else the head, which is tied, would train that embedding
    opcd = OPCD(model, teacher, lr=1e-3, k=8)
    example = DistillExample(student_prompt_ids=(5, 6), teacher_prompt_ids=(7, 5, 6), completion_ids=(8,))
    expected = OPCD.step(copy.deepcopy(opcd), [example])
    maximum = Ranks.maximum

    def one_more(ranks: Ranks, values: Sequence[int]) -> list[int]:
        passes, *rest = maximum(ranks, values)
        return [passes + 1, *rest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "maximum", one_more)
        assert opcd.step([example]) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_that_is_lost_is_noticed_in_16_bits(dtype: torch.dtype) -> None:
    """Jamba drops it when several tokens are added: that shows in a few probes, and hardly in their mean."""
    exact: PreTrainedModel = tiny("Jamba")
    narrow: Any = tiny("Jamba")
    narrow.to(dtype=dtype)
    assert "anew at each turn" in str(find_support(exact))
    assert find_support(narrow) == find_support(exact)


@pytest.mark.parametrize("family", ["Falcon-H1", "LFM2", "Llama"])
def test_states_are_what_does_not_grow_with_a_sequence(family: str) -> None:
    model = tiny(family)
    find_support(model, "padded")
    held = []
    for length in (4, 5):
        alone = Decoding(model, 1)
        alone.step([[5] * length])
        held.append(alone.bytes)
    assert state_bytes(model) == 5 * held[0] - 4 * held[1]


def test_recurrent_states_have_to_fit_as_well() -> None:
    model = tiny("Falcon-H1")
    find_support(model)
    states = Decoding(model, 1)
    states.step([[5]])
    assert 0 < state_bytes(model) <= states.bytes
    lm = PaddedLM(model, max_bytes=4 * states.bytes)
    held: list[int] = []
    prefixes = [(token, token + 1) for token in range(5, 45)]
    expected = PaddedLM(model).logits(prefixes)
    step = Decoding.step

    def noted(decoding: Decoding, tokens: Sequence[Sequence[int]]) -> None:
        step(decoding, tokens)
        held.append(decoding.bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "step", noted)
        torch.testing.assert_close(lm.logits(prefixes), expected)
    assert max(held) <= lm.max_bytes


def row(family: str, model: PreTrainedModel) -> str:
    return f"| {family} | `{FAMILIES[family][0]}` | {find_support(model)} |"


def table() -> str:
    rows = [row(family, tiny(family)) for family in FAMILIES]
    return "\n".join(["| family | `model_type` | computed |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    DOCS.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
