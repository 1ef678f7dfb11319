"""distill runs where there is nothing but torch, transformers, safetensors and numpy."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "accelerate", "agents", "bm25s", "datasets", "envs", "evals", "experience",
    "filelock", "gguf", "gymnasium", "jinja2", "math_verify", "matplotlib", "openai", "pandas",
    "peft", "PIL", "psycopg", "pyarrow", "pydantic", "rapidfuzz", "reasoning_gym", "rich", "scipy",
    "sentence_transformers", "sqlalchemy", "sympy", "trl", "tyro", "vllm", "yaml",
)  # fmt: skip

SCRIPT = """
import importlib, sys
# These first: where other packages are installed, they take some of them.
import transformers.integrations.sdpa_attention, transformers.modeling_layers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from torch.distributed.fsdp import fully_shard
for name in {absent!r}:
    sys.modules[name] = None
for module in {modules!r}:
    importlib.import_module(module)
"""


def test_distill_needs_neither_our_other_packages_nor_theirs() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "distill").rglob("*.py"))
        if path.stem not in ("__init__", "lora")
    ]
    assert "distill.lm.load" in modules
    script = SCRIPT.format(absent=ABSENT, modules=modules)
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
