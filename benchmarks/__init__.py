"""Speed against every rival, each result checked before it is timed: `python benchmarks/run.py`."""
