"""The process that opens images and tokenizes: `python -m workers.inputs_process`, started by workers.inputs_client."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from model_runtime import ModelError
from workers.child_process import Broken, Parent, one_line


@dataclass(frozen=True, slots=True)
class Ready:
    """The model folder has been read."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """The model folder cannot be used: `line` is for a person."""

    line: str


def main() -> None:
    """First message: an Inputs; then lists of (document, tasks), answered by one Work for each document, in order."""
    parent = Parent(sys.argv)
    try:
        inputs = parent.receive()
        inputs.load()
        parent.send(Ready())
        while True:
            for document, todo in parent.receive():
                parent.send(inputs.work(document, todo))
    except ModelError as error:
        parent.send(Unusable(str(error)))
    except BaseException as error:
        parent.send(Broken(one_line(error), isinstance(error, MemoryError)))
        sys.exit(1)


if __name__ == "__main__":
    # Not as __main__: what is sent and unpickled by name has to be one class on both sides.
    from workers.inputs_process import main as run

    run()
