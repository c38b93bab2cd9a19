from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .accumulation import accumulation_dtype

Split = tuple[Tensor, Tensor, Tensor, list[list[Tensor]]]


def split_parameters(parameters: Tensor, channels: int, mixtures: int) -> Split:
    """logits (n, K, ...), means and log scales (n, C, K, ...), coefficients[c][j] (n, K, ...)."""
    grouped = parameters.unflatten(1, (-1, mixtures))
    means, log_scales = grouped[:, 1 : 1 + channels], grouped[:, 1 + channels : 1 + 2 * channels]
    first = [1 + 2 * channels + c * (c - 1) // 2 for c in range(channels)]
    coefficients = [[grouped[:, first[c] + j] for j in range(c)] for c in range(channels)]
    return grouped[:, 0], means, log_scales.clamp(min=-7), coefficients


def discretized_logistic_mixture(
    parameters: Tensor, levels: Tensor, *, n_levels: int = 256, mixtures: int = 10
) -> Tensor:
    """log sum over k of pi_k product over c of P(level_c | k, levels before c), (n, H, W)."""
    values = parameters.to(accumulation_dtype(parameters.dtype))
    logits, means, log_scales, coefficients = split_parameters(values, levels.shape[1], mixtures)
    half = 1 / (n_levels - 1)
    x = 2 * levels.to(values.dtype).unsqueeze(2) / (n_levels - 1) - 1
    log_prob = torch.log_softmax(logits, 1)
    for c in range(levels.shape[1]):
        mean = means[:, c]
        for j in range(c):
            mean = mean + torch.tanh(coefficients[c][j]) * x[:, j]
        inverse_scale = torch.exp(-log_scales[:, c])
        above = (x[:, c] + half - mean) * inverse_scale
        below = (x[:, c] - half - mean) * inverse_scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        width = 2 * half * inverse_scale
        inner = logsigmoid(above) + logsigmoid(-below) + torch.log(-torch.expm1(-width))
        level = levels[:, c : c + 1]
        at_ends = torch.where(level == 0, logsigmoid(above), logsigmoid(-below))
        is_inner = (level > 0) & (level < n_levels - 1)
        log_prob = log_prob + torch.where(is_inner, inner, at_ends)
    return torch.logsumexp(log_prob, 1)


def discretized_logistic_mixture_draw(
    parameters: Tensor,
    uniforms: Tensor,
    *,
    n_levels: int = 256,
    mixtures: int = 10,
    temperature: float = 1.0,
) -> Tensor:
    """x_c = mean_c + temperature * scale_c * logit(u_c), rounded to a level; u_0 first chooses k."""
    values = parameters.to(accumulation_dtype(parameters.dtype))
    u = uniforms.to(values.dtype)
    logits, means, log_scales, coefficients = split_parameters(values, u.shape[1], mixtures)
    weights = torch.softmax(logits / temperature, 1)
    cdf = weights.cumsum(1)
    k = (cdf <= u[:, :1]).sum(1, keepdim=True).clamp(max=mixtures - 1)
    pi = weights.gather(1, k)
    rest = (u[:, :1] - (cdf.gather(1, k) - pi)) / pi
    epsilon = torch.finfo(u.dtype).eps
    x: list[Tensor] = []
    levels: list[Tensor] = []
    for c in range(u.shape[1]):
        mean = means[:, c].gather(1, k)
        for j in range(c):
            mean = mean + torch.tanh(coefficients[c][j].gather(1, k)) * x[j]
        own = rest if c == 0 else u[:, c : c + 1]
        own = own.clamp(epsilon / 4, 1 - epsilon / 2)
        drawn = mean + temperature * log_scales[:, c].gather(1, k).exp() * torch.logit(own)
        levels.append(((drawn + 1) * (n_levels - 1) / 2).round().clamp(0, n_levels - 1))
        x.append(2 * levels[-1] / (n_levels - 1) - 1)
    return torch.cat(levels, 1).long()
