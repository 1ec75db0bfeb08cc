"""What the plugin touches in vLLM is still there; what moves is named; and nothing that it touches is left out."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from model_runtime import vllm_plugin
from model_runtime.vllm_plugin.pinned import PINS
from model_runtime.vllm_plugin.pins import VllmMismatch, check_pins, check_vllm

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("model_runtime/vllm_plugin", "model_runtime/backends")
CPU_WORKER = "vllm.v1.worker.cpu_worker:"


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


@pytest.mark.vllm
@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_it_is_where_the_plugin_needs_it(pin: Any) -> None:
    if pin.name.startswith(CPU_WORKER) and not _on_cpu():
        pytest.skip("importing vLLM's CPU worker changes torch for the whole process")
    assert pin.moved() is None


# --- what moved is named ---------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("owner", "name", "left", "said"),
    [
        ("vllm.forward_context", "override_forward_context", None, "override_forward_context is gone"),
        ("vllm.forward_context", "override_forward_context", lambda: None, "takes no forward_context"),
        ("vllm.v1.attention.backends.cpu_attn", "CPUAttentionMetadata", int, "has no query_start_loc, seq_lens"),
        (
            "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend",
            "forward_includes_kv_cache_update",
            True,
            "forward_includes_kv_cache_update is True, not False",
        ),
        ("vllm._custom_ops", "cpu_attn_reshape_and_cache", lambda key, value: None, "takes no key_cache, value_cache"),
        (
            "vllm.multimodal.processing:BaseMultiModalProcessor",
            "_postprocess_prompt",
            None,
            "BaseMultiModalProcessor._postprocess_prompt is gone",
        ),
    ],
)
def test_what_moved_is_named(owner: str, name: str, left: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, inner = owner.partition(":")
    holder = importlib.import_module(module)
    holder = getattr(holder, inner) if inner else holder
    if left is None:
        monkeypatch.delattr(holder, name)
    else:
        monkeypatch.setattr(holder, name, left)
    with pytest.raises(VllmMismatch) as raised:
        check_pins("model", "cpu")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.vllm
def test_a_module_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.sequence", None)
    with pytest.raises(VllmMismatch, match=r"vllm\.sequence cannot be imported \(ModuleNotFoundError"):
        check_pins("model")


@pytest.mark.vllm
def test_the_model_does_not_load_on_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_runtime.vllm_plugin.model import T5Gemma2ForConditionalGeneration

    monkeypatch.delattr("vllm.v1.attention.backends.cpu_attn.CPUAttentionMetadataBuilder.build")
    monkeypatch.delattr("vllm.v1.attention.backend.AttentionMetadataBuilder.build")
    with pytest.raises(VllmMismatch, match=r"CPUAttentionMetadataBuilder\.build is gone"):
        T5Gemma2ForConditionalGeneration(vllm_config=None)  # type: ignore[arg-type]


@pytest.mark.vllm
def test_the_renderer_is_not_made_on_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_runtime.vllm_plugin.renderer import T5Gemma2Renderer

    monkeypatch.delattr("vllm.multimodal.media.MediaConnector.load_from_url_async")
    with pytest.raises(VllmMismatch, match=r"MediaConnector\.load_from_url_async is gone"):
        T5Gemma2Renderer(None, None)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.dev7+gabcdef", "0.33.2+cu130"])
def test_versions_that_it_is_for(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    check_vllm()


@pytest.mark.vllm
@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "0.34.0rc1", "1.0", "dev", ""])
def test_versions_that_it_is_not_for(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    with pytest.raises(VllmMismatch) as raised:
        check_vllm()
    assert f"vLLM {version or 'of no version'} is installed: pip install" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("where", "left", "said"),
    [
        ("vllm.__version__", "0.34.0", "vLLM 0.34.0 is installed"),
        ("vllm.transformers_utils.config._CONFIG_REGISTRY", (), "_CONFIG_REGISTRY.__setitem__ is gone"),
    ],
)
def test_registering_with_another_vllm_leaves_its_other_models_alone(
    where: str, left: Any, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    monkeypatch.setattr(where, left)
    monkeypatch.delitem(MODELS_CONFIG_MAP, vllm_plugin.ARCHITECTURE, raising=False)
    with caplog.at_level(logging.ERROR):
        vllm_plugin.register()
    assert [said in record.getMessage() for record in caplog.records] == [True]
    assert vllm_plugin.ARCHITECTURE not in MODELS_CONFIG_MAP


@pytest.mark.vllm
def test_vllm_finds_it_and_registering_loads_no_model() -> None:
    [found] = entry_points(group="vllm.general_plugins", name="t5gemma2")
    assert found.value == "model_runtime.vllm_plugin:register"
    code = (
        "import sys\n"
        "from vllm.plugins import load_general_plugins\n"
        "load_general_plugins()\n"
        "from vllm import ModelRegistry\n"
        f"known = {vllm_plugin.ARCHITECTURE!r} in ModelRegistry.get_supported_archs()\n"
        "heavy = {'model_runtime.vllm_plugin.model', 'vllm.v1.attention.backends.cpu_attn'} & set(sys.modules)\n"
        "sys.exit(0 if known and not heavy else f'known: {known}, loaded: {heavy}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


# --- nothing is left out ---------------------------------------------------------------------------------------------


@dataclass
class Uses:
    """What a source file takes from vLLM: `module:name` for imports and attributes, keywords of calls."""

    names: set[str] = field(default_factory=set)
    keywords: set[tuple[str, str]] = field(default_factory=set)


def _uses(source: str) -> Uses:
    tree = ast.parse(source)
    uses, aliases = Uses(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            uses.names |= {f"{alias.name}:" for alias in node.names if alias.name.split(".")[0] == "vllm"}
            aliases |= {alias.asname or alias.name: f"{alias.name}:" for alias in node.names if alias.name == "vllm"}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}:{alias.name}"
                uses.names.add(f"{node.module}:{alias.name}")
    for node in ast.walk(tree):
        if name := _named(node, aliases):
            uses.names.add(name)
        if isinstance(node, ast.Call) and (name := _named(node.func, aliases)):
            uses.keywords |= {(name, word.arg) for word in node.keywords if word.arg}
    return uses


def _named(node: ast.AST, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _named(node.value, aliases)):
        return owner + node.attr if owner.endswith(":") else f"{owner}.{node.attr}"
    return None


def _spellings(name: str) -> set[str]:
    """A name, and the same where what stands before its last part is a module."""
    module, _, path = name.partition(":")
    owner, _, last = path.rpartition(".")
    return {name, f"{module}.{owner}:{last}"} if owner else {name}


def _unpinned(uses: Uses) -> Iterator[str]:
    known = {pin.name for pin in PINS}
    known |= {prefix for name in known for prefix in _prefixes(name)}
    known |= {f"{pin.name}.{name}" for pin in PINS for name in pin.has}
    takes = {pin.name: pin.takes for pin in PINS}
    yield from sorted(name for name in uses.names if not _spellings(name) & known)
    for name, keyword in sorted(uses.keywords):
        # What only hands its keywords on is pinned as such; the one that gets them has a line of its own.
        if not any({keyword, "kwargs"} & set(takes.get(spelling, ())) for spelling in _spellings(name)):
            yield f"{name}({keyword}=)"


def _prefixes(name: str) -> Iterator[str]:
    module, _, path = name.partition(":")
    yield f"{module}:"
    while "." in path:
        path = path.rpartition(".")[0]
        yield f"{module}:{path}"


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_everything_taken_from_vllm_is_pinned(path: Path) -> None:
    missing = list(_unpinned(_uses(path.read_text(encoding="utf-8"))))
    assert not missing, f"pinned.py does not hold: {', '.join(missing)}"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("from vllm.config import VllmConfig", []),
        ("from vllm.config import VllmConfig, Other", ["vllm.config:Other"]),
        ("def f():\n    import vllm.beam as b", ["vllm.beam:"]),
        ("from vllm import _custom_ops as ops\nops.cpu_attn_reshape_and_cache(1)", []),
        ("from vllm import _custom_ops as ops\nops.rms_norm(1)", ["vllm:_custom_ops.rms_norm"]),
        ("from vllm.config import CUDAGraphMode as M\nM.FULL, M.PIECEWISE", ["vllm.config:CUDAGraphMode.PIECEWISE"]),
        (
            "from vllm.model_executor.layers.attention import Attention\nAttention(1, prefix='', sinks=None)",
            ["vllm.model_executor.layers.attention:Attention(sinks=)"],
        ),
        ("import vllm\nvllm.__version__", []),
        ("import vllm\nvllm.LLM()", ["vllm:LLM"]),
    ],
)
def test_what_is_not_pinned_is_seen(source: str, missing: list[str]) -> None:
    assert list(_unpinned(_uses(source))) == missing


@pytest.mark.vllm
def test_every_method_that_vllm_calls_by_name_is_pinned() -> None:
    imported = [pin for pin in PINS if _on_cpu() or not pin.name.startswith(CPU_WORKER)]
    pinned = {(_class_of(pin.name), pin.name.rpartition(".")[2]) for pin in imported}
    missing = []
    for one in _own_classes():
        # A module's forward is torch's name, not vLLM's.
        given = {"forward"} if issubclass(one, nn.Module) else set()
        bases = [base for base in one.__mro__ if base.__module__.split(".")[0] == "vllm"]
        for name, member in vars(one).items():
            overrides = any(name in vars(base) for base in bases) and _is_method(member)
            if (
                overrides
                and name not in given
                and not name.startswith("__")
                and not any((base, name) in pinned for base in bases)
            ):
                missing.append(f"{one.__name__}.{name}")
    assert not missing


def _is_method(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, staticmethod | classmethod | property)


def _class_of(name: str) -> Any:
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    for step in path.split(".")[:-1]:
        owner = getattr(owner, step)
    return owner if inspect.isclass(owner) else None


def _own_classes() -> list[type]:
    modules = {found.name for found in pkgutil.iter_modules(vllm_plugin.__path__)}
    names = [f"{vllm_plugin.__name__}.{name}" for name in sorted(modules if _on_cpu() else modules - {"cpu_worker"})]
    members = [(name, member) for name in names for member in vars(importlib.import_module(name)).values()]
    own = [one for name, one in members if inspect.isclass(one) and one.__module__ == name]
    assert len(own) > 10
    return own
