"""Public implementations, from a checkout of the user's: ``--peer NAME=PATH``.

A peer is one file that defines a ``Peer``, listed in ``PEERS``.
"""

from __future__ import annotations

from pathlib import Path

from bench.peers.base import Peer
from bench.peers.mgupta8143 import MGupta8143
from bench.peers.pytorch_ntm import PytorchNTM

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (PytorchNTM, MGupta8143)}


def parse(text: str) -> Peer:
    """The peer of ``NAME=PATH``; raises ``ValueError`` for what is not one."""
    name, separator, path = text.partition("=")
    if not separator or name not in PEERS:
        raise ValueError(f"a peer must be NAME=PATH with NAME one of {', '.join(PEERS)}: {text!r}")
    return PEERS[name](Path(path))
