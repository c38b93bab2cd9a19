"""Existing models of nflows, normflows, zuko and torch, with our kernels under their own names.

README.md in this folder lists what is replaced, what is gained, and what stays. A library is
imported only where a model brings it.
"""

from .acceleration import accelerate, report, restore

__all__ = ["accelerate", "report", "restore"]
