"""The direction of imports (DESIGN section 2), walked with ast."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agents", "distill", "envs", "evals", "experience")
ALLOWED: dict[str, set[str]] = {
    "envs": set(),
    "experience": set(),
    "distill": set(),
    "evals": {"envs", "experience"},
    "agents": set(PACKAGES),
}


@cache
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
    return names


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_picture(module: str) -> None:
    package = module.partition(".")[0]
    for target in imports(modules()[module]):
        other = target.partition(".")[0]
        if other in PACKAGES and other != package:
            assert other in ALLOWED[package], f"{module} must not import {target}"


def test_vllm_is_imported_in_one_place() -> None:
    assert [m for m, tree in modules().items() if "vllm" in imports(tree)] == ["agents.policies.vllm.engine"]


def test_agents_init_is_empty() -> None:
    assert (ROOT / "agents" / "__init__.py").read_text() == ""
