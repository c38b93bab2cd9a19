"""The libraries whose modules are known: which version, and which of our files speaks of it."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import NamedTuple

from .accelerated import Accelerated


class Peer(NamedTuple):
    package: str
    version: str  # empty: any that deepgen_ext runs with
    file: str


PEERS = {
    peer.package: peer
    for peer in (
        Peer("nflows", "0.14", "nflows"),
        Peer("normflows", "1.7.3", "normflows"),
        Peer("zuko", "1.6.0", "zuko"),
        Peer("FrEIA", "0.2", "freia"),
        Peer("torch", "", "torch"),
    )
}


def peer_of(cls: type) -> Peer | None:
    """The library that defines the class itself."""
    return PEERS.get(cls.__module__.partition(".")[0])


def other_version(peer: Peer) -> str:
    """A sentence where another version is installed than the supported one."""
    if not peer.version:
        return ""
    try:
        found = importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        found = "of an unknown version"
    if found == peer.version:
        return ""
    return f"{peer.package} {found} is installed, {peer.version} is supported: its modules stay"


def replacements(peer: Peer) -> dict[type, type[Accelerated]]:
    """Of each class of the library, what replaces it. Imports the library."""
    file = importlib.import_module(f"deepgen_ext.compat.{peer.file}")
    return {fast.replaces: fast for fast in file.REPLACEMENTS}


def reasons_to_stay(peer: Peer) -> dict[type, str]:
    """Classes of the library that were looked at and are not replaced."""
    return importlib.import_module(f"deepgen_ext.compat.{peer.file}").STAYS
