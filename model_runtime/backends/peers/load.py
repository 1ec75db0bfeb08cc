"""Choose a peer by name, and import it there."""

from __future__ import annotations

from .types import Peer, PeerMissing

NAMES = ("native", "transformers-plain", "transformers-expert", "ctranslate2", "vllm")


def peer_class(name: str) -> type[Peer]:
    """The class of the peer called `name`; PeerMissing when it cannot be had here."""
    match name:
        case "native":
            from .native import NativePeer

            return NativePeer
        case "transformers-plain":
            from .transformers import PlainPeer

            return PlainPeer
        case "transformers-expert":
            from .transformers import ExpertPeer

            return ExpertPeer
        case "ctranslate2":
            from .ctranslate2 import CTranslate2Peer

            return CTranslate2Peer
        case "vllm":
            from .vllm import VllmPeer

            return VllmPeer
        case other:
            raise PeerMissing(f"{other} is no peer; choose from {', '.join(NAMES)}")
