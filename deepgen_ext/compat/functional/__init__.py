"""What takes the place of other libraries' functions, with their signatures: change the import, and
nothing else.

| here | in the place of |
|---|---|
| `spectral_norm` | `torch.nn.utils.parametrizations.spectral_norm` |
| `rational_quadratic_spline` | `nflows.transforms.splines.rational_quadratic` |
| `unconstrained_rational_quadratic_spline` | the same |
| `InputOutsideDomain`, which the first of them raises | `nflows.transforms.base` |
| `fixed_point_iter`, `anderson_solver` | `torchdeq.solver` |
| `masked_conv2d(input, weight, mask, ...)` | `F.conv2d(input, weight * mask, ...)`, which everybody writes |
| `affine_coupling_transform` | the methods of nflows' `AffineCouplingTransform` |
| `MonotonicAffineTransform` | `zuko.transforms` |

Affine couplings are layers with a net of their own in nflows, normflows and FrEIA, not functions.
Two parts of theirs are written without the net, and these are here: nflows' method, in the form in
which its spline couplings have it (`_coupling_transform(inputs, transform_params, inverse)`), and
zuko's transformation, which its layers take as `univariate`. For `x * s.exp() + t` and
`s.flatten(1).sum(1)`, the RealNVP code of one's own, `ops.affine_coupling(x, s, t)` is there as it is.
"""

from deepgen_ext.nn import spectral_norm

from .affine import MonotonicAffineTransform, affine_coupling_transform
from .convolution import masked_conv2d
from .fixed_point import anderson_solver, fixed_point_iter
from .splines import (
    InputOutsideDomain,
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)

__all__ = [
    "InputOutsideDomain",
    "MonotonicAffineTransform",
    "affine_coupling_transform",
    "anderson_solver",
    "fixed_point_iter",
    "masked_conv2d",
    "rational_quadratic_spline",
    "spectral_norm",
    "unconstrained_rational_quadratic_spline",
]
