"""Models, one paper a file."""

from .flow import Glow, RealNVP

__all__ = ["Glow", "RealNVP"]
