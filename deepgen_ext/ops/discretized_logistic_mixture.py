"""Pixels under mixtures of discretised logistics (PixelCNN++): log-likelihood, its gradient, draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deepgen_ext._extension import library


def discretized_logistic_mixture(
    parameters: Tensor, levels: Tensor, *, n_levels: int = 256, mixtures: int = 10
) -> Tensor:
    r"""Log-likelihood of each pixel's levels under a mixture of K discretised logistics.

    log sum_k softmax(logits)_k prod_c P(level_c | k), where channel c's logistic has the mean
    mean_ck + sum over j < c of tanh(coefficient_cjk) x_j, with x = 2 level / (n_levels - 1) - 1 and
    the scale s = exp(max(log_scale_ck, -7)). P is the logistic's mass within half a step of x: the
    first and last level also take what lies beyond. With b, a = (x +- 1 / (n_levels - 1) - m) / s
    it is computed as sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which is exact: no density stands in
    where P is small, and over all levels the probabilities sum to 1.

    Args:
        parameters: (n, P, H, W), channels in the order logits K, means C*K, log_scales C*K,
            coefficients C(C-1)/2*K as (1<-0), (2<-0), (2<-1), ...; P = 3K for C = 1, 10K for C = 3.
            float32, float64, bfloat16 or float16 (computed in float32), any strides.
        levels: (n, C, H, W), uint8 or int64. Values are not checked: outside 0..n_levels-1 they
            count as the nearest of these.
        n_levels: 2 to 65536.
        mixtures: K.

    Returns:
        (n, H, W) in nats: float32 for half types, else the dtype of parameters.

    Differentiable in parameters, twice (the second time in plain torch operations), not through
    torch.func; where log_scale < -7 its gradient is 0. Forward and backward are one kernel each.
    Deterministic. Under autocast it runs in float32.

    Raises:
        ValueError: a shape or device that does not fit; the number of channels expected is named.
        TypeError: parameters that are not floating-point, levels neither uint8 nor int64.

    PixelCNN++: Salimans et al. 2017, arXiv:1701.05517.
    """
    return library.discretized_logistic_mixture(parameters, levels, n_levels, mixtures)


def discretized_logistic_mixture_draw(
    parameters: Tensor,
    uniforms: Tensor,
    *,
    n_levels: int = 256,
    mixtures: int = 10,
    temperature: float = 1.0,
) -> Tensor:
    r"""Draws levels from the mixtures, a deterministic function of one uniform a channel and pixel.

    uniforms[:, 0] chooses the component k by the cdf of softmax(logits / temperature); what is left
    of it, (u - cdf_{k-1}) / pi_k, is uniform again and draws channel 0; every other channel uses its
    own. x = m + temperature * s * logit(u), rounded to the nearest level; the means of later
    channels see the levels drawn. At temperature 1 levels follow `discretized_logistic_mixture`.

    Args:
        parameters, n_levels, mixtures: as in `discretized_logistic_mixture`.
        uniforms: (n, C, H, W), float32 or float64, in [0, 1). Values are not checked: others count
            as the nearest in (0, 1).
        temperature: positive and finite.

    Returns:
        Levels, int64, (n, C, H, W). Deterministic; not differentiable.

    Raises:
        ValueError: a shape or device that does not fit, or a temperature that is not positive.
        TypeError: parameters that are not floating-point, uniforms neither float32 nor float64.
    """
    return library.discretized_logistic_mixture_draw(
        parameters, uniforms, n_levels, mixtures, temperature
    )


@torch.library.register_fake("deepgen_ext::discretized_logistic_mixture")
def _(parameters, levels, n_levels, mixtures):
    sum_type = torch.float64 if parameters.dtype == torch.float64 else torch.float32
    n, _, height, width = parameters.shape
    return parameters.new_empty((n, height, width), dtype=sum_type)


@torch.library.register_fake("deepgen_ext::discretized_logistic_mixture_backward")
def _(grad_output, parameters, levels, n_levels, mixtures):
    return torch.empty_like(parameters)


@torch.library.register_fake("deepgen_ext::discretized_logistic_mixture_draw")
def _(parameters, uniforms, n_levels, mixtures, temperature):
    return torch.empty(uniforms.shape, dtype=torch.int64, device=parameters.device)


def _log_likelihood(parameters: Tensor, levels: Tensor, n_levels: int, mixtures: int) -> Tensor:
    """The op in plain torch operations, of which autograd knows every derivative."""
    channels = levels.shape[1]
    rows = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    rows = rows.unflatten(1, (-1, mixtures))
    levels = levels.clamp(0, n_levels - 1).unsqueeze(2)
    half = 1 / (n_levels - 1)
    x = 2 * half * levels.to(rows.dtype) - 1
    log_prob = torch.log_softmax(rows[:, 0], 1)
    row = 1 + 2 * channels
    for c in range(channels):
        mean = rows[:, 1 + c]
        for j in range(c):
            mean = mean + torch.tanh(rows[:, row]) * x[:, j]
            row += 1
        inverse_scale = torch.exp(-rows[:, 1 + channels + c].clamp(min=-7))
        centre = (x[:, c] - mean) * inverse_scale
        half_width = half * inverse_scale
        first, last = levels[:, c] == 0, levels[:, c] == n_levels - 1
        by_upper = torch.where(last, 0, logsigmoid(centre + half_width))
        by_lower = torch.where(first, 0, logsigmoid(half_width - centre))
        by_width = torch.where(first | last, 0, torch.log(-torch.expm1(-2 * half_width)))
        log_prob = log_prob + by_upper + by_lower + by_width
    return torch.logsumexp(log_prob, 1)


def _save_for_double_backward(ctx, inputs, output) -> None:
    grad_output, parameters, levels, ctx.n_levels, ctx.mixtures = inputs
    ctx.save_for_backward(grad_output, parameters, levels)


def _double_backward(ctx, cotangent):
    """The gradient of <cotangent, gradient>, from the formula in plain torch operations."""
    grad_output, parameters, levels = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [
            t if t.requires_grad else t.detach().requires_grad_() for t in (grad_output, parameters)
        ]
        log_likelihood = _log_likelihood(leaves[1], levels, ctx.n_levels, ctx.mixtures)
        (gradient,) = torch.autograd.grad(
            log_likelihood, leaves[1], leaves[0].to(log_likelihood.dtype), create_graph=True
        )
        by_grad_output, by_parameters = torch.autograd.grad(
            gradient, leaves, cotangent, create_graph=again
        )
    return by_grad_output, by_parameters, None, None, None


torch.library.register_autograd(
    "deepgen_ext::discretized_logistic_mixture_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)

for _device in ("cpu", "cuda"):
    torch.library.register_autocast(
        "deepgen_ext::discretized_logistic_mixture", _device, torch.float32
    )
