"""Inverse autoregressive flow."""

from __future__ import annotations

from ...nn.transforms import InverseAutoregressive
from .maf import AutoregressiveFlow


class IAF(AutoregressiveFlow):
    """Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016,
    arXiv:1606.04934: a chain of `InverseAutoregressive` layers.

    From noise to samples each layer is z' = mu + sigma * z with (mu, log sigma) functions of the
    noise before: `sample` and `sample_and_log_prob` are one pass of each net, and differentiable
    without any solving, which is what a posterior or a fit to an energy wants. Scoring given data
    finds feature after feature, in about the time of one pass too; its gradient goes by the
    implicit function theorem and can be taken once.

    Arguments and errors as of `MAF`.
    """

    layer = InverseAutoregressive
