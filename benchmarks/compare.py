"""Holds a record against an earlier one of the same device: what got slower, and what faster."""

from __future__ import annotations

from typing import Any


def regressions(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Entries whose ratio to their first floor has grown by more than both spreads together."""
    for key in ("device", "threads", "dtype", "tiny"):
        if now["about"][key] != before["about"][key]:
            mine, theirs = now["about"][key], before["about"][key]
            return [f"cannot compare: {key} is {mine!r} now and was {theirs!r}"]
    return [f"slower: {text}" for change, text in _changes(now, before) if change > 0]


def improvements(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Those whose ratio has shrunk by as much; none where the two cannot be compared."""
    if any(text.startswith("cannot") for text in regressions(now, before)):
        return []
    return [f"faster: {text}" for change, text in _changes(now, before) if change < 0]


def _changes(now: dict[str, Any], before: dict[str, Any]) -> list[tuple[float, str]]:
    """What has changed by more than both spreads together, and how."""
    found = []
    for name, entry in now["entries"].items():
        old = before["entries"].get(name, {})
        new_ratio, old_ratio = _against_floor(entry), _against_floor(old)
        if not (new_ratio and old_ratio) or list(entry["shape"]) != list(old["shape"]):
            continue
        change = new_ratio["median"] - old_ratio["median"]
        if abs(change) > new_ratio["spread"] + old_ratio["spread"]:
            ratios = f"{old_ratio['median']:.2f} -> {new_ratio['median']:.2f} of the floor"
            found.append((change, f"{name}, {ratios}"))
    return found


def _against_floor(entry: dict[str, Any]) -> dict[str, float] | None:
    if "columns" in entry or "rows" not in entry:
        return None
    ratios = entry["rows"]["ours"].get("ratio_to", {})
    return next((ratio for name, ratio in ratios.items() if name != "ours"), None)
