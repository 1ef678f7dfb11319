"""A model's folder, written from weights that come one after the other: at no time are they all in memory.

In files weights have the names of the model's checkpoint, which are not always its own: transformers renames
what it loads, and puts a layer's experts into one tensor. Others, as vLLM, read checkpoints as published.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.hub import cached_file

from distill.lm.sealed import seal_folder

FILE_BYTES = 4 << 30
"""Of weights in one file, but for what one layer may add."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder with all that the model's own has, with digests of the weights that it holds."""
    save_weights(model, model.state_dict().items(), folder)
    save_reader(model, tokenizer, folder)


def save_weights(
    model: PreTrainedModel,
    weights: Iterable[tuple[str, torch.Tensor]],
    folder: Path,
    *,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write what ``from_pretrained`` reads: the configuration, and the weights in sealed files.

    They are named as in the model's ``state_dict``; what it holds itself is not looked at.
    """
    own = model.state_dict(keep_vars=True)
    tied = {name for name, other in model.all_tied_weights_keys.items() if own.get(name) is own.get(other)}
    files: list[Path] = []
    held: dict[str, torch.Tensor] = {}
    dtype = model.dtype

    def write() -> None:
        # The library knows what a model's weights are called in files, and which of them are put otherwise.
        model.save_pretrained(folder, state_dict=dict(held), max_shard_size="1000TB")
        files.append((folder / WEIGHTS).rename(folder / f"part-{len(files)}.safetensors"))
        held.clear()

    for layer in _by_layer((name, tensor.detach().cpu()) for name, tensor in weights if name not in tied):
        if sum(tensor.nbytes for tensor in held.values()) > file_bytes:
            write()
        held |= layer
        dtype = next(reversed(layer.values())).dtype
    write()
    _name(files)
    seal_folder(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")  # which need not be what the model computes with
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_reader(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write beside a model's weights what reads for it: its tokenizer, and what reads images, if it does."""
    tokenizer.save_pretrained(folder)
    source = model.name_or_path  # empty of one that was made here
    for name in PROCESSOR_FILES if source else ():
        found = cached_file(
            str(source),
            name,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is not None:
            shutil.copyfile(found, folder / name)


def as_stored(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights as ``save_pretrained`` would write them: where names change, a layer at once."""
    if getattr(model, "_weight_conversions", None):  # which loading leaves there
        for layer in _by_layer(weights):
            yield from revert_weight_conversion(model, layer).items()
    else:
        yield from weights


def _by_layer(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Those of each layer together: of these is made what is put otherwise in files."""
    for _, layer in groupby(weights, lambda weight: re.split(r"(\.\d+\.)", weight[0], maxsplit=1)[:2]):
        yield dict(layer)


def _name(files: list[Path]) -> None:
    """Give the files of weights their names, and where there are several, say what is where."""
    if len(files) == 1:
        files[0].rename(files[0].with_name(WEIGHTS))
        return
    where: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        final = file.rename(file.with_name(f"model-{number:05}-of-{len(files):05}.safetensors"))
        size += final.stat().st_size
        with safe_open(final, framework="pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), final.name)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    files[0].with_name(INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
