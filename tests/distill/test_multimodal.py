"""Checkpoints with images: trained as text, saved and handed on with all that they had, under its names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from distill.examples import DistillExample
from distill.lm.load import load_model
from distill.lm.padded_lm import PaddedLM
from distill.lm.save import as_stored, save_model
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from tests.conftest import byte_tokenizer
from tests.distill.test_families import LINEAR, SLIDING, SMALL, tiny

VISION: dict[str, Any] = {
    "hidden_size": 16, "embed_dim": 16, "intermediate_size": 16, "num_hidden_layers": 1, "depth": 1,
    "num_attention_heads": 2, "num_heads": 2, "out_hidden_size": 32, "projection_dim": 16, "image_size": 28,
    "patch_size": 14, "deepstack_visual_indexes": [0],
}  # fmt: skip
MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": SLIDING,
    "qwen2_vl": MROPE,
    "qwen3_vl": MROPE,
    "qwen3_5": LINEAR,
    "llava": {},
    "mistral3": {},
}
"""By transformers' type of the model, what its text part needs beside ``SMALL``."""


def with_images(kind: str) -> Any:
    """A tiny random model."""
    default: Any = CONFIG_MAPPING[kind]()
    settings: dict[str, Any] = {n: 263 for n in vars(default) if n.endswith(("_token_id", "_token_index"))}
    for name in default.sub_configs:
        part = getattr(default, name)
        fields = {*type(part).__dataclass_fields__, *getattr(type(part), "attribute_map", {})}
        values = (SMALL | {"vocab_size": 264} | KINDS[kind]) if name == "text_config" else VISION
        values = {name: value for name, value in values.items() if name in fields - {"n_embd", "n_layer"}}
        settings[name] = {**values, "model_type": part.model_type}
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(type(default)(**settings))
    return model.eval()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_has_all_that_the_original_has(kind: str, tmp_path: Path) -> None:
    original = with_images(kind)
    original.save_pretrained(tmp_path / "original")
    byte_tokenizer().save_pretrained(tmp_path / "original")
    (tmp_path / "original" / "preprocessor_config.json").write_text('{"size": 28}')
    loaded = load_model(str(tmp_path / "original"), device="cpu")
    assert type(loaded.model) is type(original)
    teacher = FrozenTeacher(PaddedLM(original))
    opcd = OPCD(loaded.model, teacher, lr=1e-2, compute=loaded.support.way)
    prompt, completion = (5, 6, 7, 8), (9, 10, 11)
    opcd.step(
        [DistillExample(student_prompt_ids=prompt, teacher_prompt_ids=prompt[1:], completion_ids=completion)]
    )
    save_model(loaded.model, loaded.tokenizer, tmp_path / "trained")
    assert (tmp_path / "trained" / "preprocessor_config.json").read_text() == '{"size": 28}'
    before, after = stored(tmp_path / "original"), stored(tmp_path / "trained")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vis" in name or "projector" in name for name in changed)
    again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not again[1]["missing_keys"]
    assert not again[1]["unexpected_keys"]
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, again[0].state_dict()[name]), name
    handed = dict(as_stored(loaded.model, loaded.model.state_dict().items()))
    assert handed.keys() >= after.keys()
    assert all(torch.equal(handed[name], tensor) for name, tensor in after.items())


def test_experts_are_handed_on_one_by_one(tmp_path: Path) -> None:
    tiny("Qwen3-MoE").save_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    asked: list[str] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in model.state_dict().items():
            asked.append(name)
            yield name, tensor

    expected, handed = stored(tmp_path), dict[str, torch.Tensor]()
    for name, tensor in as_stored(model, weights()):
        handed[name] = tensor
        if ".layers.0." in name:  # no more than a layer and what comes next is there at a time
            assert not any(".layers.1.mlp" in other for other in asked)
    assert any(".experts.3." in name for name in expected)
    assert handed.keys() >= expected.keys()
    assert all(torch.equal(handed[name], tensor) for name, tensor in expected.items())


def test_adapters_are_handed_on_under_the_same_names(tmp_path: Path) -> None:
    with_images("mistral3").save_pretrained(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    lora = LoRA(model, rank=2, alpha=16, seed=0)
    handed = dict(as_stored(model, lora.weights(merged=True)))
    assert all(torch.allclose(handed[name], tensor) for name, tensor in stored(tmp_path).items())
