"""The direction of imports (DESIGN section 2), walked with ast."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agents", "distill", "envs", "evals", "experience")

# The picture of DESIGN section 2, and: distill shares the policies' agents.prefix_tree, prefix_lm, lm_head.
# Composition roots: nothing imports them but each other.
ROOTS = {
    "agents.self_improve",
    "agents.command",
    "agents.session",
    "agents.learning",
    "agents.consolidation",
    "agents.measurement",
    "agents.config",
    "agents.play",
    "agents.tracking",
    "agents.run_folder",
    "evals.bench_rollout",
    "evals.bench_insights",
    "evals.benchmark",
    "evals.suite",
    "evals.forgetting",
    "distill.benchmark",
    "distill.system_prompt",
}
SHARED = {"agents.policy", "agents.prompts", "agents.rollout", "agents.prefix_tree"}
WITH_TORCH = {
    "agents.lm_head",
    "agents.prefix_lm",
    "agents.hf_policy",
    "agents.models",
    "agents.tree_attention",
    "agents.vllm_engine",
    "agents.vllm_policy",
    "agents.vllm_servers",
    "agents.vllm_teacher",
}

ALLOWED_PACKAGES = {
    "envs": {"envs"},
    "experience": {"experience"},
    "agents": {"agents", "envs", "experience"},
    "distill": {"distill", "envs", "experience"},
    "evals": {"evals", "envs", "experience"},
}


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}  # from agents import session
    return names


def is_allowed(module: str, target: str) -> bool:
    if target in ROOTS:
        return module in ROOTS
    if module in ROOTS or target.split(".")[0] in ALLOWED_PACKAGES[module.split(".")[0]]:
        return True
    if module.startswith("distill."):
        return target in {*SHARED, "agents.prefix_lm", "agents.lm_head"}
    return module.startswith("evals.") and target in SHARED


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_picture(module: str) -> None:
    for target in imports(modules()[module]):
        if target.split(".")[0] in PACKAGES and target.count(".") < 2:
            assert is_allowed(module, target), f"{module} must not import {target}"


def test_torch_stays_where_it_belongs() -> None:
    for module, tree in modules().items():
        heavy = {name.split(".")[0] for name in imports(tree)} & {"torch", "transformers"}
        if heavy:
            assert module in WITH_TORCH | ROOTS or module.startswith("distill."), f"{module} imports {heavy}"


def test_vllm_is_imported_in_one_place() -> None:
    assert [m for m, tree in modules().items() if "vllm" in imports(tree)] == ["agents.vllm_engine"]


def test_a_forbidden_edge_is_seen() -> None:
    assert not is_allowed("experience.store", "agents.policy")
    assert not is_allowed("envs.words", "experience.trace")
    assert not is_allowed("agents.policy", "distill.loss")
    assert not is_allowed("evals.report", "agents.self_improve")
    assert not is_allowed("distill.opcd", "agents.hf_policy")


def test_agents_init_is_empty() -> None:
    assert (ROOT / "agents" / "__init__.py").read_text() == ""
