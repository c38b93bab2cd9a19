"""The scale maps of affine couplings, all of them."""

SCALE_MAPS = (
    "exp",
    "tanh",
    "sigmoid",
    "atan",
    "softclip",
    "softplus",
    "floored_sigmoid",
    "reciprocal_sigmoid",
)
