"""Models as people have them: what is loaded, what is refused, and with what words."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from distill.examples import DistillError
from distill.lm import support
from distill.lm.load import ModelError, compute_dtype, load_model
from distill.lm.prefix_lm import PrefixLM
from distill.lora import LoRA
from distill.opcd import OPCD
from tests.conftest import byte_tokenizer, tiny_llama


def adapted(base: Path, folder: Path, **settings: Any) -> None:
    """Random adapters for a model, as peft writes them."""
    model = get_peft_model(load_model(str(base)).model, LoraConfig(r=2, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_way_is_found_and_may_be_asked_for(tmp_path: Path) -> None:
    folder = str(saved(tmp_path, tiny_llama()))
    assert str(load_model(folder).support) == "as a prefix tree"
    assert str(load_model(folder, compute="padded").support) == "in padded batches with sdpa attention"


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_flash_attention_is_tried_where_it_can_be(
    installed: bool, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "is_flash_attn_2_available", lambda: installed)
    model: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    is_tried = installed and device == "cuda" and dtype == torch.bfloat16
    assert support._attentions(model) == (*(["flash_attention_2"] if is_tried else []), "sdpa", "eager")


@pytest.mark.parametrize("has_units", [True, False])
def test_what_products_run_in_depends_on_the_machine_alone(
    has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed, it was one thing on a quiet machine and now and then the other on a busy one."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    cpu = torch.device("cpu")
    assert compute_dtype("auto", cpu) == ("bfloat16" if has_units else "float32")
    assert compute_dtype("float16", cpu) == "float16"
    assert compute_dtype("auto", torch.device("meta")) == "float32"


def test_finding_the_way_compiles_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would stay compiled in a prefix tree, where every pass has another shape: minutes on a GPU."""
    compiled: list[Any] = []
    monkeypatch.setattr(support, "compile_layers", compiled.append)
    model = tiny_llama()
    support.find_support(model)
    support.language_model(model, "tree")
    assert compiled == []
    support.language_model(model, "padded")
    assert compiled == [model]


def test_an_attention_that_is_not_there_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is taken, and the run's first lines name it."""
    monkeypatch.setattr(support, "_attentions", lambda _: ("flash_attention_2", "sdpa", "eager"))
    found = support.find_support(tiny_llama(), "padded")
    assert str(found) == "in padded batches with sdpa attention"


def test_a_way_that_is_not_exact_is_refused_in_a_line(tmp_path: Path) -> None:
    config = Qwen3_5TextConfig(
        vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    folder = str(saved(tmp_path, Qwen3_5ForCausalLM(config)))
    assert load_model(folder).support.way == "padded"
    with pytest.raises(ModelError, match="cannot be used: it is not computed exactly: tree with") as error:
        load_model(folder, compute="tree")
    assert "\n" not in str(error.value)


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama(tie=False))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights: its files hold no lm_head\.weight"):
        load_model(str(folder))


def test_a_resized_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama(tie=False))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(ModelError) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_tokens_without_a_row_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama())
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'<new>' as token 258, its embedding 258 rows: call"):
        load_model(str(folder))


def test_adapters_are_merged_and_it_is_said(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    student = load_model(str(base)).model
    lora: Any = LoRA(student, rank=2, alpha=4)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    lora._peft.peft_config["default"].base_model_name_or_path = str(base)
    lora._peft.save_pretrained(tmp_path / "adapters")
    expected = PrefixLM(student).logits([(5, 6, 7)])
    loaded = load_model(str(tmp_path / "adapters"))
    assert loaded.notes == (f"the adapters in {tmp_path / 'adapters'} are merged into {base}",)
    torch.testing.assert_close(PrefixLM(loaded.model).logits([(5, 6, 7)]), expected, atol=1e-4, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any("lora" in name for name in loaded.model.state_dict())


def test_a_flipped_bit_of_adapters_is_found(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    student = load_model(str(base)).model
    lora = LoRA(student, rank=2, alpha=4)
    adapters = [(name, part.detach()) for name, part in student.named_parameters() if "lora_" in name]
    lora.save(tmp_path / "adapters", adapters, base=str(base))
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: what is in it is not what was written"):
        load_model(str(tmp_path / "adapters"))


@pytest.mark.parametrize("is_renamed", [True, False])
def test_adapters_that_are_not_there_are_refused(tmp_path: Path, is_renamed: bool) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    adapted(base, tmp_path / "adapters", target_modules="all-linear")
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    if is_renamed:
        tensors = {name.replace("model.layers", "layers"): tensor for name, tensor in load_file(file).items()}
    else:
        tensors = {name: tensor for name, tensor in load_file(file).items() if "lora_A" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks adapters that its adapter_config\.json asks for") as error:
        load_model(str(tmp_path / "adapters"))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_adapters_in_one_of_two_tied_ends_are_refused(tmp_path: Path, end: str) -> None:
    tied, apart = saved(tmp_path / "tied", tiny_llama()), saved(tmp_path / "apart", tiny_llama(tie=False))
    adapted(apart, tmp_path / "adapters", target_modules=["q_proj", end])
    load_model(str(tmp_path / "adapters"))
    adapted(tied, tmp_path / "others", target_modules=["q_proj", end])
    with pytest.raises(ModelError, match="an embedding that is the head too"):
        load_model(str(tmp_path / "others"))


def test_others_digests_are_no_seal(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama())
    file = folder / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "sshs_model_hash": "0f" * 32})
    load_model(str(folder))
    save_file(load_file(file), file, metadata={"format": "pt", "sha257": "0f" * 32})
    with pytest.raises(ModelError, match="is damaged"):
        load_model(str(folder))


def test_named_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": "{{ messages }}"} for name in ("a", "b")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    with pytest.raises(ModelError, match="has no default chat template"):
        load_model(str(folder))


def test_adapters_without_a_base_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load_model(str(tmp_path))


def test_adapters_beside_a_configuration_are_merged(tmp_path: Path) -> None:
    """Else transformers would put them into the model unseen, with every weight frozen."""
    base = saved(tmp_path / "base", tiny_llama())
    adapted(base, tmp_path / "adapters", target_modules=["q_proj"])
    expected = load_model(str(tmp_path / "adapters")).model.state_dict()
    shutil.copy(base / "config.json", tmp_path / "adapters")
    loaded = load_model(str(tmp_path / "adapters"))
    assert loaded.notes == (f"the adapters in {tmp_path / 'adapters'} are merged into {base}",)
    torch.testing.assert_close(loaded.model.state_dict(), expected)


def test_adapters_beside_a_whole_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    adapted(base, base, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"holds a model \(model\.safetensors\) and adapters"):
        load_model(str(base))
    monkeypatch.setattr("distill.lm.load._adapted", lambda *_: None)
    with pytest.raises(ModelError, match="holds adapters, which were not merged"):
        load_model(str(base))


def test_adapters_of_a_hub_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    repository = tmp_path / "hub" / "models--some--adapters"
    adapted(base, repository / "snapshots" / "0", target_modules=["q_proj"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    expected = load_model(str(repository / "snapshots" / "0")).model.state_dict()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_model("some/adapters")
    assert loaded.notes == (f"the adapters in some/adapters are merged into {base}",)
    torch.testing.assert_close(loaded.model.state_dict(), expected)


def test_adapters_that_nothing_takes_are_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny_llama())
    adapted(base, tmp_path / "adapters", target_modules=["q_proj", "v_proj"])
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match=r"holds \S*v_proj\.lora_A\.weight, which is not among"):
        load_model(str(tmp_path / "adapters"))


def test_adapters_may_stand_on_adapters(tmp_path: Path) -> None:
    """As those of a run that began from a folder of adapters."""
    first, second = tmp_path / "first", tmp_path / "second"
    base = saved(tmp_path / "base", tiny_llama())
    adapted(base, first, target_modules=["q_proj"])
    begun = load_model(str(first)).model
    lora = LoRA(begun, rank=2, alpha=4)
    for name, parameter in begun.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    adapters = [(name, part.detach()) for name, part in begun.named_parameters() if "lora_" in name]
    lora.save(second, adapters, base=str(first))
    expected = PrefixLM(begun).logits([(5, 6, 7)])
    loaded = load_model(str(second))
    torch.testing.assert_close(PrefixLM(loaded.model).logits([(5, 6, 7)]), expected, atol=1e-4, rtol=1e-4)
    assert loaded.notes == (
        f"the adapters in {first} are merged into {base}",
        f"the adapters in {second} are merged into {first}",
    )
    config = first / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(second)}))
    with pytest.raises(ModelError, match="which is adapters again, and so on"):
        load_model(str(second))


def test_adapters_are_not_put_beside_adapters() -> None:
    """peft would replace them, since both are called alike."""
    model = tiny_llama()
    LoRA(model, rank=2, alpha=4)
    with pytest.raises(DistillError, match="has adapters already"):
        LoRA(model, rank=2, alpha=4)


def test_a_student_with_nothing_to_train_is_refused() -> None:
    student: Any = tiny_llama()
    student.requires_grad_(False)
    with pytest.raises(DistillError, match="all weights of the student are frozen"):
        OPCD(student, PrefixLM(tiny_llama(1)), lr=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_not_trained(dtype: torch.dtype) -> None:
    """Adapters beside them, which are wider, are."""
    student = tiny_llama(dtype=dtype)
    with pytest.raises(DistillError, match="too coarse to train"):
        OPCD(student, PrefixLM(tiny_llama(1)), lr=1e-3)
    LoRA(student, rank=2, alpha=4)
    OPCD(student, PrefixLM(tiny_llama(1)), lr=1e-3)
