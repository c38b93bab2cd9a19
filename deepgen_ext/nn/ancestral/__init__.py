"""Ancestral sampling of causal networks: recorded, compiled to a program, run by one kernel."""

from .sampler import AncestralSampler

__all__ = ["AncestralSampler"]
