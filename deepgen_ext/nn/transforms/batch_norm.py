"""Batch normalisation as an invertible layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .actnorm import check_channels
from .transform import Transform


class BatchNorm(Transform):
    """y = (x - m) / sqrt(v + eps) * exp(log_scale) + shift, per feature of x (n, D, ...).

    log_det = positions * sum(log_scale - log(v + eps) / 2), positions being H * W of images and 1 of
    vectors. The layer between the autoregressive ones of Papamakarios et al. 2017, arXiv:1705.07057
    (section 3.4 and appendix B); Dinh et al. 2017.

    In training m and v are the mean and the (biased) variance of the batch, through which gradients
    flow, and log_det is that of this map with m and v held fixed, as in both papers: it is then no
    function of the single sample. Running averages, the variance's unbiased, follow as in
    torch.nn.BatchNorm1d. In evaluation, and in the inverse always, m and v are the running ones: a
    density is exact in evaluation mode only. For the same reason it cannot be rebuilt from its
    output in training (`Sequential(reversible=True)`): use `ActNorm` there.

    Args:
        features: D.
        eps: added to the variance.
        momentum: weight of a new batch in the running averages.

    Raises:
        ValueError: features < 1, eps not above 0, a momentum outside of [0, 1]; on use, another
            number of features, or in training a batch with a single value per feature.
        RuntimeError: `rebuild` in training.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features: expected at least 1, got {features}")
        if not eps > 0:
            raise ValueError(f"eps: expected a positive number, got {eps}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        self.features = features
        self.eps = eps
        self.momentum = momentum
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(x, self.features)
        values = _accumulated(x)
        if self.training and x.shape[0]:
            mean, variance = self._statistics(values)
        else:
            mean, variance = self._running(values)
        log_scale = self._log_scale(variance)
        y = (values - _spread(mean, x)) * _spread(log_scale.exp(), x) + _spread(self.shift, x)
        return y.to(x.dtype), _log_det(log_scale, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(y, self.features)
        values = _accumulated(y)
        mean, variance = self._running(values)
        log_scale = self._log_scale(variance)
        x = (values - _spread(self.shift, y)) * _spread((-log_scale).exp(), y) + _spread(mean, y)
        return x.to(y.dtype), -_log_det(log_scale, y)

    def rebuild(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.training:
            raise RuntimeError(
                "BatchNorm cannot be rebuilt from its output in training: use ActNorm"
            )
        return super().rebuild(y, context)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        columns = values.transpose(0, 1).flatten(1)
        count = columns.shape[1]
        if count < 2:
            raise ValueError(
                f"x: batch normalisation in training needs at least 2 values of each feature, got "
                f"{tuple(values.shape)}"
            )
        variance, mean = torch.var_mean(columns, dim=1, correction=0)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance

    def _running(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.running_mean.to(values.dtype), self.running_var.to(values.dtype)

    def _log_scale(self, variance: Tensor) -> Tensor:
        return self.log_scale.to(variance.dtype) - 0.5 * (variance + self.eps).log()

    def extra_repr(self) -> str:
        return f"features={self.features}, eps={self.eps}, momentum={self.momentum}"


def _accumulated(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """(D,) to the shape that broadcasts over x (n, D, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))


def _log_det(log_scale: Tensor, x: Tensor) -> Tensor:
    positions = x[0, 0].numel() if x.shape[0] else 1
    return (positions * log_scale.sum()).expand(x.shape[0])
