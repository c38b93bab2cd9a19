"""Which of our ops ran, how long, and how far from the hardware's limit.

`profile` watches a block of your own code; `measurement` times ops against rivals, which is what
`deepgen profile` and the benchmarks run on.
"""

from deepgen_ext.profiling.session import Call, Row, profile

__all__ = ["Call", "Row", "profile"]
