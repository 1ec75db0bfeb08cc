"""Preparing that breaks in earnest at certain texts, as a decoder's or a tokenizer's native code may."""

from __future__ import annotations

import os

from workers.documents import Document
from workers.inputs import Inputs, Work

from . import broken_backends

HARM = {
    "segfault": broken_backends.segfault,
    "abort": os.abort,
    "hang": broken_backends.sleep_for_ever,
    "leave": broken_backends.leave,
}


class BrokenInputs(Inputs):
    """The real thing, but a document whose text is a word of HARM does that."""

    def work(self, document: Document, todo: list[int]) -> Work:
        """As the real one."""
        if document.text in HARM:
            HARM[document.text]()
        return super().work(document, todo)


class UnloadableInputs(Inputs):
    """Reading the model folder crashes."""

    def load(self):
        """Never returns."""
        broken_backends.segfault()
