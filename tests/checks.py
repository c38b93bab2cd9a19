"""Each property that holds for many things, written once: of invertible layers, models, ops."""

from __future__ import annotations

import copy
import math
import pickle

import torch
from torch import Tensor, nn

# ---------------------------------------------------------------- transforms


def randomize(module: nn.Module, std: float = 0.1, seed: int = 0) -> nn.Module:
    """Move every parameter: what starts at zero or at the identity hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))
    return module


def check_transform(transform: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    """The contract of DESIGN.md for a transform whose initialisation, if it has one, is done."""
    transform = copy.deepcopy(transform).double()
    x = x.double()
    context = None if context is None else context.double()
    before = x.clone()
    _check_round_trip(transform, x, context, tolerance=1e-10)
    _check_log_det(transform, x, context)
    _check_batches(transform, x, context)
    _check_gradients(transform, x[:2], None if context is None else context[:2])
    _check_copies(transform, x, context)
    _check_rebuild(transform, x, context)
    if context is not None:
        changed = torch.cat([t.flatten(1) for t in _parts(transform(x, context + 1.0)[0])], 1)
        given = torch.cat([t.flatten(1) for t in _parts(transform(x, context)[0])], 1)
        assert ((changed - given).abs().amax(1) > 1e-6).all(), "the context reaches no output"
    assert torch.equal(x, before), "the caller's tensor was changed"

    single = copy.deepcopy(transform).float()
    _check_round_trip(single, x.float(), None if context is None else context.float(), 1e-5)
    half = copy.deepcopy(transform).bfloat16()
    y, log_det = half(x.bfloat16(), None if context is None else context.bfloat16())
    assert log_det.dtype == torch.float32
    assert all(part.dtype == torch.bfloat16 for part in _parts(y))


def check_compiles(transform: nn.Module, x: Tensor) -> None:
    """fullgraph=True, forward, inverse and gradients equal to eager's."""
    torch._dynamo.reset()
    for name in ("forward", "inverse"):
        eager = getattr(transform, name)
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        results = []
        for function in (eager, compiled):
            leaf = x.detach().clone().requires_grad_()
            y, log_det = function(leaf)
            (grad,) = torch.autograd.grad(y.square().sum() + log_det.sum(), leaf)
            results.append((y, log_det, grad))
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def _parts(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def _check_round_trip(
    transform: nn.Module, x: Tensor, context: Tensor | None, tolerance: float
) -> None:
    y, log_det = transform(x, context)
    again, inverse_log_det = transform.inverse(y, context)
    assert log_det.shape == inverse_log_det.shape == x.shape[:1]
    assert log_det.dtype == x.dtype
    torch.testing.assert_close(again, x, rtol=tolerance, atol=tolerance)
    # Sums over all elements: their rounding grows with the number of them.
    torch.testing.assert_close(
        inverse_log_det, -log_det, rtol=tolerance, atol=tolerance * math.sqrt(x[0].numel())
    )


def _check_log_det(transform: nn.Module, x: Tensor, context: Tensor | None) -> None:
    _, log_det = transform(x, context)
    for index in range(min(2, x.shape[0])):
        rows = slice(index, index + 1)
        given = None if context is None else context[rows]

        def flat(values: Tensor, given: Tensor | None = given) -> Tensor:
            y, _ = transform(values.view(1, *x.shape[1:]), given)
            return torch.cat([part.flatten() for part in _parts(y)])

        jacobian = torch.autograd.functional.jacobian(flat, x[index].flatten())
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_det[index], expected, rtol=1e-8, atol=1e-8)


def _check_batches(transform: nn.Module, x: Tensor, context: Tensor | None) -> None:
    y, log_det = transform(x, context)
    for size in (0, 1):
        given = None if context is None else context[:size]
        few, few_log_det = transform(x[:size], given)
        back, _ = transform.inverse(few, given)
        assert back.shape == x[:size].shape
        torch.testing.assert_close(few_log_det, log_det[:size])
        for part, whole in zip(_parts(few), _parts(y), strict=True):
            torch.testing.assert_close(part, whole[:size])


def _check_gradients(transform: nn.Module, x: Tensor, context: Tensor | None) -> None:
    """Of both directions, in x, context and every parameter, against finite differences."""
    leaves = [x.clone().requires_grad_()]
    if context is not None:
        leaves.append(context.clone().requires_grad_())
    parameters = [p for p in transform.parameters() if p.requires_grad]

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        y, log_det = transform(*tensors[: len(leaves)])
        return *_parts(y), log_det

    def round_trip_halfway(*tensors: Tensor) -> tuple[Tensor, ...]:
        # Not the way back alone: a Split's inverse takes a pair.
        y, _ = transform(*tensors[: len(leaves)])
        scaled = tuple(1.1 * part for part in _parts(y))
        x, log_det = transform.inverse(
            scaled if isinstance(y, tuple) else scaled[0], *tensors[1 : len(leaves)]
        )
        return x, log_det

    for function in (forward, round_trip_halfway):
        assert torch.autograd.gradcheck(function, (*leaves, *parameters), fast_mode=True)


def _check_copies(transform: nn.Module, x: Tensor, context: Tensor | None) -> None:
    expected = transform(x, context)
    other = randomize(copy.deepcopy(transform), seed=1)
    other.load_state_dict(transform.state_dict())
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform)), other):
        for actual, value in zip(twin(x, context), expected, strict=True):
            for a, b in zip(_parts(actual), _parts(value), strict=True):
                assert torch.equal(a, b)


def _check_rebuild(transform: nn.Module, x: Tensor, context: Tensor | None) -> None:
    y, log_det = transform(x, context)
    if isinstance(y, tuple):
        return
    y = y.detach()
    before = y.clone()
    leaf, again, log_det_again = transform.rebuild(y, context)
    assert leaf.is_leaf
    assert leaf.requires_grad
    torch.testing.assert_close(leaf.detach(), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again, y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_again, log_det, rtol=1e-9, atol=1e-9)
    assert torch.equal(y, before)
    stored = x.clone().requires_grad_()
    stored_y, stored_log_det = transform(stored, context)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (expected,) = torch.autograd.grad((stored_y * weights).sum() + stored_log_det.sum(), stored)
    (actual,) = torch.autograd.grad((again * weights).sum() + log_det_again.sum(), leaf)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- models


def check_model(model: nn.Module, x: Tensor) -> None:
    """A flow's likelihood, inverse and sampling; x is real, small enough for a full Jacobian."""
    model = randomize(copy.deepcopy(model).double(), std=0.05)
    x = x.double()
    model.initialize(x)
    latents, log_det = model(x)
    assert [tuple(z.shape[1:]) for z in latents] == [tuple(s) for s in model.latent_shapes]

    again, inverse_log_det = model.inverse(latents)
    torch.testing.assert_close(again, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)

    def flat(values: Tensor) -> Tensor:
        return torch.cat([z.flatten() for z in model(values.view(1, *x.shape[1:]))[0]])

    log_prob = model.log_prob(x)
    assert log_prob.shape == x.shape[:1]
    for index in range(2):
        z = flat(x[index].flatten())
        jacobian = torch.autograd.functional.jacobian(flat, x[index].flatten())
        base = torch.distributions.Normal(0, 1).log_prob(z).sum()
        expected = base + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_prob[index], expected, rtol=1e-8, atol=1e-8)

    assert model.log_prob(x[:0]).shape == (0,)
    torch.testing.assert_close(model.log_prob(x[:1]), log_prob[:1])
    draws = [
        model.sample(3, temperature=0.7, generator=torch.Generator().manual_seed(s))
        for s in (5, 5, 6)
    ]
    assert draws[0].shape == (3, *x.shape[1:])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert model.sample(0).shape == (0, *x.shape[1:])


# ----------------------------------------------------------------------------------------------------- ops


def check_op(op, reference, inputs: tuple[Tensor, ...], overload, arguments: tuple) -> None:
    """Everything an op promises, for one choice of options.

    op and reference take the float64 `inputs`; `arguments` are the inputs and options as the registered `overload`
    takes them.
    """
    check_values(op, reference, inputs)
    _check_views(op, inputs)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)
    torch.library.opcheck(overload, arguments)
    torch._dynamo.reset()  # or the parameters of a test add up to too many recompilations
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*inputs), op(*inputs)):
        torch.testing.assert_close(ours, theirs)


TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-2,
    torch.float16: 2.5e-3,
}


def check_values(op, reference, inputs: tuple[Tensor, ...], dtypes=tuple(TOLERANCE)) -> None:
    """Results and all gradients, of each dtype, against the reference in float64 on the same rounded numbers."""
    for dtype in dtypes:
        rounded = tuple(t.to(dtype) for t in inputs)
        before = [t.clone() for t in rounded]
        ours, our_gradients = _with_gradients(op, rounded)
        theirs, their_gradients = _with_gradients(reference, tuple(t.double() for t in rounded))
        for t, saved in zip(rounded, before):
            assert torch.equal(t, saved), "an input was written to"
        for name, a, b in [
            *(("result", a, b) for a, b in zip(ours, theirs)),
            *(("gradient", a, b) for a, b in zip(our_gradients, their_gradients)),
        ]:
            assert a.shape == b.shape
            scale = b.abs().amax().clamp_min(1.0) if b.numel() else torch.tensor(1.0)
            error = (a.double() - b).abs().max() / scale if b.numel() else torch.tensor(0.0)
            assert error <= TOLERANCE[dtype], f"{name} in {dtype}: relative error {error:.2e}"


def _with_gradients(op, inputs):
    leaves = tuple(t.detach().clone().requires_grad_() for t in inputs)
    results = op(*leaves)
    generator = torch.Generator().manual_seed(7)
    cotangents = [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).bfloat16().to(r.dtype)
        for r in results
    ]
    return [r.detach() for r in results], torch.autograd.grad(results, leaves, cotangents)


def _check_views(op, inputs: tuple[Tensor, ...]) -> None:
    """Strides change nothing: each input in turn is a chunk, a transposed, a stepped, an expanded view."""
    expected = op(*inputs)
    for i, given in enumerate(inputs):
        for view in _views_of(given):
            assert torch.equal(view, given)
            results = op(*inputs[:i], view, *inputs[i + 1 :])
            for ours, theirs in zip(results, expected):
                torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(op(*(v for t in inputs for v in list(_views_of(t))[-1:])), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def _views_of(tensor: Tensor):
    yield torch.cat([torch.zeros_like(tensor), tensor], -1)[..., tensor.shape[-1] :]
    yield tensor.repeat_interleave(2, -1)[..., ::2]
    if tensor.dim() >= 2:
        yield torch.cat([torch.zeros_like(tensor), tensor], 1)[:, tensor.shape[1] :]
        yield tensor.transpose(0, -1).contiguous().transpose(0, -1)
        yield tensor.transpose(1, -1).contiguous().transpose(1, -1)
