"""CUDA kernels run on the CPU give what the CPU kernels give, in several orders of threads."""

import os

import torch

ORDERS = (
    "ascending",
    "random:1",
)  # a dropped barrier was seen to hide in descending order, never in both of these
# Sums come out in another order, and half types round the last bit either way.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 5e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}


def check_emulated(
    name: str, *arguments, magnified: float = 1.0, dtype: torch.dtype | None = None
) -> None:
    """torch.ops.deepgen_ext.<name>(*arguments) against torch.ops.deepgen_ext_emulated.<name>.

    `magnified`: how many times as far apart as usual the function brings rounding errors.
    `dtype`: whose rounding they are; None: of the first argument.
    """
    first = arguments[0]
    if dtype is None:
        dtype = first.dtype if isinstance(first, torch.Tensor) else first[0].dtype
    expected = getattr(torch.ops.deepgen_ext, name)(*arguments)
    for order in ORDERS:
        os.environ["DEEPGEN_EMULATION_ORDER"] = order
        results = getattr(torch.ops.deepgen_ext_emulated, name)(*arguments)
        assert len(results) == len(expected)
        for ours, theirs in zip(results, expected):
            assert ours.dtype == theirs.dtype
            scale = theirs.double().abs().amax().clamp_min(1) if theirs.numel() else 1.0
            error = (ours.double() - theirs.double()).abs() / scale
            worst = error.max().item() if error.numel() else 0.0
            assert worst <= magnified * TOLERANCE[dtype], (
                f"{name}, {order} threads: off by {worst:.2e}"
            )
