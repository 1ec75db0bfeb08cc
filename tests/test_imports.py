"""The direction of imports: jobs → pipelines → workers → model_runtime, infra beside the first three."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "jobs": {"pipelines", "workers", "model_runtime", "infra"},
    "pipelines": {"workers", "model_runtime", "infra"},
    "workers": {"model_runtime", "infra"},
    "model_runtime": set(),
    "infra": set(),
}
RAY_FOLDERS = {"pipelines", "infra", "jobs"}
# transformers' and vLLM's models; the tokenizer and image processor have their own file
MODELS_ONLY_IN = (
    "model_runtime/backends/",
    "model_runtime/vllm_plugin/",
    "model_runtime/training.py",
)
PROCESSORS_ONLY_IN = "model_runtime/processing.py"


def _sources() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, absolute module, imported name or '') of every import in the file, inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name
        elif isinstance(node, ast.Call):
            yield from _dynamic(node)


def _dynamic(node: ast.Call) -> Iterator[tuple[int, str, str]]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        yield node.lineno, str(node.args[0].value), ""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    package = relative.split("/")[0]
    wrong = []
    for line, module, name in _imports(path):
        top = module.split(".")[0]
        if top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]:
            wrong.append(f"{relative}:{line}: {package} must not import {top}")
        if top == "ray" and package not in RAY_FOLDERS:
            wrong.append(f"{relative}:{line}: ray belongs to {', '.join(sorted(RAY_FOLDERS))}")
        if top == "vllm" and not relative.startswith(MODELS_ONLY_IN):
            wrong.append(f"{relative}:{line}: vllm belongs to {', '.join(MODELS_ONLY_IN)}")
        if top == "transformers" and not _may_use_transformers(relative, module, name):
            wrong.append(f"{relative}:{line}: transformers belongs to {', '.join(MODELS_ONLY_IN)}")
        if top == "tests":
            wrong.append(f"{relative}:{line}: tests are imported by nobody")
    assert not wrong, "\n".join(wrong)


def _may_use_transformers(relative: str, module: str, name: str) -> bool:
    if relative.startswith(MODELS_ONLY_IN):
        return True
    # processing.py may take tokenizers, image processors and configs, never a model
    return relative == PROCESSORS_ONLY_IN and not (name or module).endswith(("Model", "LM", "Generation"))


def test_the_packages_are_found() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in _sources()}
    assert found == set(MAY_IMPORT)


def test_workers_and_runtime_import_without_ray() -> None:
    """What the walk above cannot see: no module reaches Ray through somebody else's import."""
    import subprocess
    import sys

    code = "import sys, workers.tasks, model_runtime, pipelines.job; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
