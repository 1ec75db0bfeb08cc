"""A synthetic world to train and test the small demo model on.

Three kinds of documents: reports with five facts among filler and decoys, notes to translate, scenes to describe.
Every target is a function of the document; the held-out world shares no name and no combination with the training one.
"""

from .documents import KINDS, SCHEMA, Document, documents
from .shards import World, write_shards
from .texts import showcase, tokenizer_texts

__all__ = ["KINDS", "SCHEMA", "Document", "World", "documents", "showcase", "tokenizer_texts", "write_shards"]
