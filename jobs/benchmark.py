"""`corpusmill benchmark`: what was asked, checked; the figures, one JSON line each; the section in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import typer
from rich.console import Console
from rich.text import Text

from infra.cluster import usable_cores
from infra.storage import redact
from model_runtime.backends.peers.load import NAMES as PEERS
from model_runtime.errors import ModelError
from model_runtime.folder import model_revision, resolve_checkpoint

from .bench.checkpoint import write_checkpoint
from .bench.figures import NAMES, figure
from .bench.machine import describe, today, versions
from .bench.report import append_section, cell
from .bench.types import Figure, PeerSpec, Settings
from .render import consoles, heading, table
from .text import one_line

DTYPES = ("bfloat16", "float32", "float16", "int8")
SIZES = ("demo", "270m", "1b", "4b")
DEFAULT_SIZE = "270m"
PEERS_DEFAULT = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command's options as they were typed."""

    folder: Path
    model: str | None
    size: str
    figures: str
    peers: str
    dtype: str | None
    lengths: str | None
    tasks: str | None
    tokens: int
    documents: int
    repeat: int
    device: str
    threads: int | None
    budget: float
    limit: float
    output: Path | None
    json: Path | None


def benchmark(asked: Asked) -> None:
    """Measure the figures, print each as one line of JSON, and write what was asked for."""
    _, err = consoles()
    names = _figures(asked.figures)
    _check_output(asked.output)
    settings = _settings(asked, err)
    done: list[Figure] = []
    with ExitStack() as stack:
        file = stack.enter_context(asked.json.open("a", encoding="utf-8")) if asked.json else None
        if asked.output is not None:
            # Also when it is interrupted: hours may stand behind the figures that are there.
            stack.callback(_write_section, asked, done, err)
        for name in names:
            for made in _measured(name, settings):
                done.append(made)
                _print(made, file)
        _show(err, done)


def _measured(name: str, settings: Settings) -> Iterator[Figure]:
    """The figure's cases; a figure that fails as a whole is one without values, and the others go on."""
    try:
        yield from figure(name)(settings)
    except ModelError:
        raise
    except Exception as error:
        why = one_line(redact(str(error))) or type(error).__name__
        settings.say(f"{name} failed: {why}")
        yield Figure(
            name=name,
            work={},
            unit="",
            values=(),
            missing={"the whole figure": f"{type(error).__name__}: {why}"},
            device=describe(settings.device, settings.threads),
            date=today(),
            versions=versions(),
        )


def _print(made: Figure, file: TextIO | None) -> None:
    print(made.line(), flush=True)
    if file is not None:
        print(made.line(), file=file, flush=True)


def _write_section(asked: Asked, done: Sequence[Figure], err: Console) -> None:
    if asked.output is None or not done:
        return
    model = Path(asked.model).name if asked.model else asked.size
    picture = append_section(asked.output, done, model=model, command=_command(asked, model))
    err.print(Text(f"wrote {asked.output} and {picture}", style="dim"), soft_wrap=True)


def _command(asked: Asked, model: str) -> str:
    """The command to repeat this, without the paths of one machine."""
    words = ["corpusmill benchmark", f"--figures {asked.figures}", f"--repeat {asked.repeat}"]
    words.append(f"--model {model}" if asked.model else f"--size {asked.size}")
    given = ("peers", PEERS_DEFAULT), ("dtype", None), ("lengths", None), ("tasks", None), ("threads", None)
    words += [f"--{name} {value}" for name, default in given if (value := getattr(asked, name)) != default]
    return " ".join([*words, f"--tokens {asked.tokens}", f"--documents {asked.documents}", f"--device {asked.device}"])


def _show(err: Console, done: Sequence[Figure]) -> None:
    for name in dict.fromkeys(made.name for made in done):
        cases = [made for made in done if made.name == name]
        heading(err, f"{name}, {cases[0].unit}")
        rows = []
        for case in cases:
            rows += [(case.case, value.peer, cell(case, value), _beaten(case, value.peer)) for value in case.values]
            rows += [(case.case, peer, "–", why) for peer, why in case.missing.items()]
        err.print(table([("work", "fold"), ("peer", "fold"), ("median", "fold"), ("native", "fold")], rows))


def _beaten(case: Figure, peer: str) -> str:
    """How many times better each native dtype is than this peer."""
    found = {name.split(" / ")[0]: ratio for name, ratio in case.ratios.items() if name.endswith(f" / {peer}")}
    return ", ".join(f"{name.removeprefix('native ')} {ratio:.2f}×" for name, ratio in found.items())


def _settings(asked: Asked, err: Console) -> Settings:
    device = _device(asked.device)
    peers = _peers(asked.peers, asked.dtype, device)
    if "gpu" in _words(asked.figures) and device == "cpu" and asked.size != "demo":
        raise _wrong("--figures", "gpu wants a CUDA device, and torch finds none")
    lengths = _numbers("--lengths", asked.lengths, 4)
    tasks = _numbers("--tasks", asked.tasks, 1)
    if asked.size not in SIZES:
        raise _wrong("--size", f"{asked.size!r} is not known; choose one of {', '.join(SIZES)}")
    if asked.model and asked.size != DEFAULT_SIZE:
        raise _wrong("--size", "a checkpoint of --model has its own size")

    def say(line: str) -> None:
        err.print(Text(line, style="dim"), soft_wrap=True)

    model, folder = _model(asked, say)
    return Settings(
        model=model,
        folder=folder,
        size=asked.size,
        peers=peers,
        device=device,
        threads=asked.threads or usable_cores(),
        repeat=asked.repeat,
        lengths=lengths,
        tasks=tasks,
        tokens=asked.tokens,
        documents=asked.documents,
        budget_seconds=asked.budget,
        limit_seconds=asked.limit,
        say=say,
    )


def _figures(words: str) -> list[str]:
    chosen = _words(words)
    if "all" in chosen:
        chosen = [name for name in NAMES if name != "gpu"]
    for name in chosen:
        if name not in NAMES:
            raise _wrong("--figures", f"{name!r} is not known; choose from {', '.join(NAMES)}, or all")
    if not chosen:
        raise _wrong("--figures", f"names none; choose from {', '.join(NAMES)}, or all")
    return list(dict.fromkeys(chosen))


def _peers(words: str, dtype: str | None, device: str) -> tuple[PeerSpec, ...]:
    """Peers by name, or name:dtype; without one, native computes in each of `dtype` and the others in their usual."""
    cuda = device != "cpu"
    native = _words(dtype) if dtype else ["bfloat16"] if cuda else ["bfloat16", "int8"]
    usual = {"ctranslate2": "bfloat16" if cuda else "int8"}
    found = []
    for word in PEERS if words == PEERS_DEFAULT else _words(words):
        name, _, own = word.partition(":")
        if name not in PEERS:
            raise _wrong("--peers", f"{name!r} is not known; choose from {', '.join(PEERS)}")
        for kind in [own] if own else native if name == "native" else [usual.get(name, "bfloat16")]:
            if kind not in DTYPES:
                option = "--peers" if own else "--dtype"
                raise _wrong(option, f"{kind!r} is not known; choose from {', '.join(DTYPES)}")
            found.append(PeerSpec(name=name, dtype=kind))
    if not found:
        raise _wrong("--peers", f"names none; choose from {', '.join(PEERS)}")
    return tuple(dict.fromkeys(found))


def _device(word: str) -> str:
    if word not in ("auto", "cpu", "cuda") and not word.startswith("cuda:"):
        raise _wrong("--device", f"{word!r} is not known; choose auto, cpu or cuda")
    if word == "cpu":
        return word
    import torch

    found = torch.cuda.device_count()
    if word == "auto":
        return "cuda" if found else "cpu"
    index = word.partition(":")[2] or "0"
    if not index.isdigit() or int(index) >= found:
        raise _wrong("--device", f"{word} is not there: torch finds {found} CUDA devices")
    return word


def _numbers(option: str, words: str | None, least: int) -> tuple[int, ...]:
    chosen = _words(words or "")
    for word in chosen:
        if not word.isdecimal() or int(word) < least:
            raise _wrong(option, f"{word!r} is no whole number of at least {least}")
    return tuple(sorted({int(word) for word in chosen}))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_output(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix != ".md" or path.is_dir():
        raise _wrong("--output", f"{path} is no Markdown file (.md)")
    if not path.parent.is_dir():
        raise _wrong("--output", f"the folder {path.parent} is not there")
    if find_spec("matplotlib") is None:
        raise _wrong("--output", "the plot needs matplotlib: pip install 'corpusmill[benchmark]'")


def _model(asked: Asked, say: Callable[[str], None]) -> tuple[Path, Path]:
    """(model folder, folder for what peers make of it)."""
    from model_runtime.config import ModelConfig

    if asked.model is not None:
        model = resolve_checkpoint(asked.model)
        ModelConfig.load(model)
        folder = asked.folder / f"peers-{model_revision(model)[:12]}"
    else:
        model = asked.folder / asked.size
        write_checkpoint(model, asked.size, say)
        folder = asked.folder / f"peers-{asked.size}"
    folder.mkdir(parents=True, exist_ok=True)
    return model.resolve(), folder.resolve()


def _wrong(option: str, text: str) -> typer.BadParameter:
    return typer.BadParameter(text, param_hint=option)
