"""How entries are measured: the package's own measurement, which `deepgen profile` runs on too."""

from deepgen_ext.profiling.measurement import (
    OURS,
    TOLERANCE,
    Case,
    Curve,
    Entry,
    Result,
    Results,
    Rival,
    Row,
    Setting,
    Summary,
    copy_floors,
    differentiated,
    measure,
)

__all__ = [
    "OURS",
    "TOLERANCE",
    "Case",
    "Curve",
    "Entry",
    "Result",
    "Results",
    "Rival",
    "Row",
    "Setting",
    "Summary",
    "copy_floors",
    "differentiated",
    "measure",
]
