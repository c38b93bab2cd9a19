"""A context either reaches a conditioner or is refused: it is never ignored."""

from __future__ import annotations

from torch import Tensor


def check_context(context: Tensor | None, features: int) -> None:
    """Raise a ValueError unless `context` is (batch, features, ...), or None if `features` is 0."""
    if context is None:
        if features:
            raise ValueError(f"context: expected (batch, {features}, ...), got None")
    elif not features:
        raise ValueError(
            f"context: this network was built with context_features=0, got {tuple(context.shape)}"
        )
    elif context.ndim < 2 or context.shape[1] != features:
        raise ValueError(f"context: expected (batch, {features}, ...), got {tuple(context.shape)}")
