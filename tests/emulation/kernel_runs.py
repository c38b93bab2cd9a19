"""What runs every CUDA kernel of the project over the shapes and layouts at its edges."""

import functools
import itertools

import torch

# Around the edges of vectors, groups and pieces; rows whose start is not aligned to 16 bytes.
SHAPES = [(0, 3, 2, 2), (1, 1, 1, 1), (3, 5, 3, 3), (2, 8, 24, 24), (70, 8, 1, 1), (2, 3, 41, 40)]


def unaligned(tensor):
    """The same values, each sample one run of memory, but no sample starting at 16 bytes."""
    rows = tensor.new_empty(tensor.shape[0], tensor.shape[1:].numel() + 1)
    return rows[:, 1:].copy_(tensor.flatten(1)).view(tensor.shape)


def run_affine_coupling(ops, dtype, layout):
    for shape in SHAPES:
        x, raw, shift, grad = (torch.randn(shape).to(dtype) for _ in range(4))
        if layout == "chunk":
            raw, shift = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype).chunk(2, 1)
        elif layout == "unaligned":
            x, raw = unaligned(x), unaligned(raw)
        elif layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        sum_type = torch.promote_types(dtype, torch.float32)
        grad_log_det = torch.randn(shape[0], dtype=sum_type)
        mask = torch.rand(shape[-2:]) < 0.5 if layout == "contiguous" else None
        scale_maps = ["exp", "tanh", "sigmoid", "atan"]
        if layout == "contiguous":
            scale_maps += ["softclip", "softplus", "floored_sigmoid", "reciprocal_sigmoid"]
        for scale_map, inverse in itertools.product(scale_maps, (False, True)):
            options = (mask, scale_map, 2.0, inverse)
            ops.affine_coupling(x, raw, shift, *options)
            ops.affine_coupling_backward(grad, grad_log_det, x, raw, *options)
        parameters = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype)
        for inverse in (False, True):
            options = ("sigmoid", 2.0, inverse)
            ops.half_coupling(x, grad, parameters, inverse, *options)
            ops.half_coupling_backward(grad, grad_log_det, x, parameters, *options)


def run_bernoulli_log_prob(ops, dtype, layout):
    sums = torch.promote_types(dtype, torch.float32)
    for shape, x_type in itertools.product([*SHAPES, (3, 2, 1, 4099)], (torch.uint8, dtype, sums)):
        logits = torch.randn(shape).to(dtype)
        x = torch.randint(0, 2, shape).to(x_type)
        if layout == "chunk":  # draws of one image
            x = x[:, :1]
        elif layout == "channels_last":
            logits = logits.contiguous(memory_format=torch.channels_last)
        elif layout == "unaligned":
            x, logits = unaligned(x), unaligned(logits)
        for batch_dims in (1, 2):
            grad = torch.randn(shape[:batch_dims], dtype=sums)
            ops.bernoulli_log_prob(x, logits, batch_dims)
            ops.bernoulli_log_prob_backward(grad, x, logits, (False, True))


def run_channel_affine(ops, dtype, layout):
    for shape in SHAPES:
        x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "unaligned":
            x = unaligned(x)
        log_scale, shift = torch.randn(2, shape[1]).to(dtype)
        grad_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for inverse in (False, True):
            ops.channel_affine(x, log_scale, shift, inverse)
            ops.channel_affine_backward(grad, grad_log_det, x, log_scale, inverse)


def run_ancestral_sample(ops, dtype, layout):
    """Layouts here: one sample a block, tiles, more nodes than fit, more values than fit."""
    if dtype not in (torch.float32, torch.float64):
        return
    from tests.ops.ancestral_cases import NETWORKS, Case

    shapes = [(2, 33), (1, 1)] if layout == "contiguous" else [(3, 3)]
    for name, shape in itertools.product(NETWORKS, shapes):
        case = Case(name, n=3, height=shape[0], width=shape[1], some_known=layout == "chunk")
        if layout == "contiguous":
            case.draw(ops, dtype)
        elif layout == "chunk":
            case.draw(ops, dtype, tile=2, by_row=True)
        elif layout == "channels_last":
            case.draw(ops, dtype, tile=2, spare=5000)
    if layout == "unaligned":
        Case("plain", n=8, height=1, width=3, hidden=270).draw(ops, dtype, tile=8)


def run_categorical_draw(ops, dtype, layout):
    for n, levels, height, width in [(0, 4, 2, 2), (1, 2, 1, 1), (3, 17, 5, 7), (1, 1100, 3, 3)]:
        logits = torch.randn(n, 2 * levels, height, width).to(dtype)
        if layout == "channels_last":
            logits = logits.contiguous(memory_format=torch.channels_last)
        elif layout == "chunk":
            logits = torch.cat([logits, logits], 1).chunk(2, 1)[1]
        elif layout == "unaligned":
            logits = unaligned(logits)
        ops.categorical_draw(logits, torch.rand(n, 2, height, width), levels, 0.7)


def run_discretized_logistic_mixture(ops, dtype, layout):
    for (n, channels, height, width), mixtures in [
        ((0, 3, 2, 2), 10),
        ((1, 1, 1, 1), 1),
        ((3, 3, 5, 7), 18),
        ((33, 2, 1, 1), 3),
        ((2, 5, 3, 11), 2),
    ]:
        rows = mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)
        parameters = torch.randn(n, rows, height, width).to(dtype)
        if layout == "channels_last":
            parameters = parameters.contiguous(memory_format=torch.channels_last)
        elif layout == "chunk":
            parameters = torch.cat([parameters, parameters], 1).chunk(2, 1)[1]
        elif layout == "unaligned":
            parameters = unaligned(parameters)
        # Levels out of range too: they must not lead out of memory.
        levels = torch.randint(-3, 300, (n, channels, height, width))
        grad = torch.randn(n, height, width, dtype=torch.promote_types(dtype, torch.float32))
        for given in (levels, levels.byte()):
            ops.discretized_logistic_mixture(parameters, given, 256, mixtures)
            ops.discretized_logistic_mixture_backward(grad, parameters, given, 256, mixtures)
        uniforms = torch.rand(levels.shape)
        ops.discretized_logistic_mixture_draw(parameters, uniforms, 256, mixtures, 0.7)


def run_masked_conv2d(ops, dtype, layout):
    for shape, outputs, kernel in (
        ((2, 3, 5, 7), 6, (3, 5)),
        ((1, 6, 1, 1), 3, (3, 3)),
        ((2, 3, 1, 9), 69, (1, 7)),
    ):
        x, weight = torch.randn(shape).to(dtype), torch.randn(outputs, shape[1], *kernel).to(dtype)
        grad = torch.randn(shape[0], outputs, *shape[2:]).to(dtype)
        if layout == "channels_last":
            x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        elif layout == "unaligned":
            x, grad = unaligned(x), unaligned(grad)
        bias = grad.new_ones(outputs) if layout == "contiguous" else None
        for mask_type, groups, dilation in itertools.product("AB", (1, 3), (1, 2)):
            ops.masked_conv2d(x, weight, bias, mask_type, groups, dilation)
            ops.masked_conv2d_backward(
                grad, x, weight, mask_type, groups, dilation, (True, True, False)
            )


def run_rational_quadratic_spline(ops, dtype, layout):
    for shape, bins in itertools.product(
        [*SHAPES[:3], (2, 3, 5, 7), (1, 2, 45, 46)], (1, 2, 9, 40)
    ):
        if bins > 9 and shape[-1] > 5:
            continue
        x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
        sizes = (bins, bins, bins - 1)
        parameters = [torch.randn(*shape, size).to(dtype) for size in sizes]
        if layout == "chunk":
            parameters = torch.cat(parameters, -1).split(sizes, -1)
        elif layout == "unaligned":
            x, parameters = unaligned(x), [unaligned(t) for t in parameters]
        elif layout == "channels_last":
            parameters = torch.cat(parameters, -1).movedim(-1, 2).contiguous().movedim(2, -1)
            parameters = parameters.split(sizes, -1)
        grad_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for inverse in (False, True):
            given = (x, *parameters, inverse, 1.5, 1e-3, 1e-3, 1e-3)
            ops.rational_quadratic_spline(*given)
            ops.rational_quadratic_spline_backward(grad, grad_log_det, *given)
        if layout == "contiguous":
            parameters[2] = torch.randn(*shape, bins + 1).to(dtype)
            given = (x, *parameters, False, 1.5, 1e-3, 1e-3, 1e-3, [-2.0, 1.0, 0.0, 5.0])
            ops.rational_quadratic_spline(*given)
            ops.rational_quadratic_spline_backward(grad, grad_log_det, *given)


def run_chain(name, vectors, ops, dtype, layout):
    sum_type = torch.promote_types(dtype, torch.float32)
    for samples, features, steps in [(0, 3, 2), (1, 1, 1), (70, 2, 3), (9, 33, 2), (300, 5, 1)]:
        z, grad = (torch.randn(samples, features).to(dtype) for _ in range(2))
        if layout == "unaligned":
            z, grad = unaligned(z), unaligned(grad)
        elif layout == "channels_last":
            z = z.t().contiguous().t()
        parameters = torch.rand(steps, vectors * features + 2, dtype=sum_type)
        grad_log_det = torch.randn(samples, dtype=sum_type)
        getattr(ops, name)(z, parameters)
        getattr(ops, name + "_backward")(grad, grad_log_det, z, parameters)


def run_autoregressive_inverse(ops, dtype, layout):
    if dtype not in (torch.float32, torch.float64) or layout not in ("contiguous", "unaligned"):
        return  # of matrices alone, and of these types alone
    for D, n, hidden in ((1, 0, (3,)), (2, 1, (5, 4)), (19, 9, (30, 30, 30)), (33, 2, (1300,))):
        degrees = [torch.randint(0, D, (h,)).sort().values for h in hidden]
        residual = len(hidden) == 3
        if residual:
            degrees = [degrees[0]] * 3
        for element, parameters in (("affine", 2), ("spline", 11), ("softclip_spline", 11)):
            sizes = [D, *hidden, D * parameters]
            weights = [torch.randn(b, a).to(dtype) for a, b in itertools.pairwise(sizes)]
            biases = [torch.randn(n, b).to(dtype) for b in sizes[1:]]
            z, x, grad = (torch.randn(n, D).to(dtype) for _ in range(3))
            if layout == "unaligned":
                weights = [unaligned(w) for w in weights]
                biases = [b.mean(0) for b in biases]
            network = (weights, biases, degrees)
            options = (element, "tanh", 2.0, 4, 3.0, "elu", residual)
            ops.autoregressive_inverse(z, *network, *options)
            ops.autoregressive_inverse_adjoint(grad, grad[:, 0], z, x, *network, *options)


def run_block_triangular_linear(ops, dtype, layout):
    if layout not in ("contiguous", "unaligned"):
        return  # of matrices alone
    for n, rows, columns in ((0, 5, 7), (1, 1, 1), (3, 4, 0), (5, 9, 13), (70, 60, 90)):
        visible = (torch.arange(rows) * columns // rows).clamp(0, columns)
        x, grad = torch.randn(n, columns).to(dtype), torch.randn(n, rows).to(dtype)
        weight = torch.randn(rows, columns).to(dtype)
        bias = torch.randn(rows).to(dtype)
        if layout == "unaligned":
            x, grad, weight = unaligned(x), unaligned(grad), unaligned(weight)
            bias = bias.expand(n, rows)
        wanted = (True, True, layout == "contiguous")
        ops.block_triangular_linear(x, weight, bias, visible)
        ops.block_triangular_linear_backward(grad, x, weight, visible, wanted)


def run_power_iteration(ops, dtype, layout):
    sums = torch.promote_types(dtype, torch.float32)
    weights = [
        torch.randn(shape).to(dtype)
        for shape in ((1, 1), (7, 5), (6, 4, 3, 3), (130, 260), (3, 2100), (1, 9), (9, 1))
    ]
    if layout == "channels_last":
        weights = [w.movedim(0, -1).contiguous().movedim(-1, 0) for w in weights]
    elif layout == "chunk":
        weights = [torch.cat((w, w)).chunk(2)[1] for w in weights] * 8  # more than a launch takes
    elif layout == "unaligned":
        weights = [unaligned(w) for w in weights]
    us = [torch.randn(w.shape[0]).to(sums) for w in weights]
    vs = [torch.randn(w[0].numel()).to(sums) for w in weights]
    grads = [torch.randn_like(w) for w in weights]
    for n_iterations in (1, 2):
        ops.power_iteration(weights, us, vs, n_iterations, 1e-12)
    for coefficient in (None, 0.5):
        ops.spectral_normalize(weights, us, vs, 1, 1e-12, coefficient)
        sigmas = torch.rand(len(weights)).to(sums)
        ops.spectral_normalize_backward(grads, sigmas, weights, us, vs, sigmas, coefficient)


def run_fixed_point_step(ops, dtype, layout):
    if dtype not in (torch.float32, torch.float64) or layout not in ("contiguous", "unaligned"):
        return
    sizes = ((0, 3), (1, 1), (5, 7), (3, 300))
    for (n, features), memory in itertools.product(sizes, (0, 2, 5)):
        x, y = (torch.randn(n, features, dtype=dtype) for _ in range(2))
        pairs = [torch.randn(n, memory, features, dtype=dtype) for _ in range(2)]
        gram = torch.zeros(n, memory, memory, dtype=torch.float64)
        record = torch.tensor([1e-6, torch.inf, torch.inf, 0.0], dtype=torch.float64).repeat(n, 1)
        state = torch.zeros(n, 5, dtype=torch.int32)
        for _ in range(7):  # past the place where a pair takes the oldest one's
            g_x, given = 0.5 * x.sin(), y
            if layout == "unaligned":
                g_x, given = unaligned(g_x), unaligned(given)
            ops.fixed_point_step(x, g_x, given, *pairs, gram, record, state, 0.5, 1e-15)


def run_fixed_point_mlp(ops, dtype, layout):
    """Layouts here: several activations, weights in shared memory or not, unaligned rows."""
    if dtype not in (torch.float32, torch.float64):
        return
    cases = [(0, 4, (5,)), (1, 1, ()), (11, 5, (13, 6))]
    if layout == "channels_last":
        cases = [(3, 100, (120,)), (2, 600, (4,))]
    for (n, features, hidden), memory in itertools.product(cases, (0, 3)):
        sizes = (features, *hidden, features)
        weights = [torch.randn(b, a).to(dtype) / a for a, b in itertools.pairwise(sizes)]
        biases = [torch.randn(b).to(dtype) for b in sizes[1:]]
        y = torch.randn(n, features, dtype=dtype)
        if layout == "unaligned":
            y, weights = unaligned(y), [unaligned(w) for w in weights]
        betas = torch.ones(len(hidden), dtype=dtype)
        tolerance = torch.full((n,), 1e-5, dtype=torch.float64)
        activations = ("relu", "lipswish") if layout == "contiguous" else ("tanh", "sin")
        for activation in activations:
            ops.fixed_point_mlp(
                y, y, tolerance, weights, biases, betas, activation, 0.9, 1e-7, 9, memory
            )


RUNS = {
    "affine_coupling": run_affine_coupling,
    "ancestral_sample": run_ancestral_sample,
    "autoregressive_inverse": run_autoregressive_inverse,
    "bernoulli_log_prob": run_bernoulli_log_prob,
    "block_triangular_linear": run_block_triangular_linear,
    "categorical_draw": run_categorical_draw,
    "channel_affine": run_channel_affine,
    "discretized_logistic_mixture": run_discretized_logistic_mixture,
    "fixed_point_mlp": run_fixed_point_mlp,
    "fixed_point_step": run_fixed_point_step,
    "masked_conv2d": run_masked_conv2d,
    "rational_quadratic_spline": run_rational_quadratic_spline,
    "power_iteration": run_power_iteration,
    "planar_chain": functools.partial(run_chain, "planar_chain", 2),
    "radial_chain": functools.partial(run_chain, "radial_chain", 1),
}
