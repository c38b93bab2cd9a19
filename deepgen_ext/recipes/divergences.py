"""``deepgen divergences``: two parallel lines at a distance, their divergences known and estimated.

p is uniform on the segment {0} x [0, 1], q on {theta} x [0, 1]. For theta other than 0

    KL(p || q) = inf,  JS(p, q) = ln 2,  W(p, q) = |theta|,

and all are 0 at theta = 0: only W has a gradient that leads there. A critic estimates each from
samples: of the minimax game (ln 4 - loss) / 2 bounds JS from below and E_p[s] estimates KL(p || q);
of the Wasserstein game the gap, divided by the critic's largest slope, bounds W from below. Arjovsky
et al. 2017, arXiv:1701.07875, example 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import GAN, WGANGP, AdversarialModel
from deepgen_ext.models.adversarial import objective
from deepgen_ext.recipes.games import critic_steps, figure, save_rows, slopes
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["Line", "closed_forms", "draw_lines", "estimate", "run_divergences"]

THETAS = (-1.0, -0.7, -0.4, -0.2, 0.0, 0.2, 0.4, 0.7, 1.0)
BATCH = 256


@dataclass(frozen=True)
class Line:
    """At one theta: divergences estimated by trained critics, and the gradient in theta that each
    game gives its generator. The minimax generator minimises E[ln(1 - D)], which is 2 JS - ln 4 for
    the best critic.
    """

    theta: float
    kl: float
    js: float
    wasserstein: float
    minimax_gradient: float
    non_saturating_gradient: float
    wasserstein_gradient: float


def closed_forms(theta: float) -> tuple[float, float, float]:
    """(KL, JS, W) in nats and units of length."""
    if theta == 0:
        return 0.0, 0.0, 0.0
    return math.inf, math.log(2), abs(theta)


def estimate(theta: float, *, steps: int, seed: int) -> Line:
    """Train a critic of each game on samples of both lines for so many steps."""
    torch.manual_seed(seed)
    minimax = _trained(GAN((2,), objective="minimax", width=64, ema=0), theta, steps, 1e-3, seed)
    # The two-sided penalty would hold a critic that starts with the wrong sign.
    game = _trained(WGANGP((2,), one_sided=True, width=64, ema=0), theta, steps, 1e-3, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    real, fake = _points(0.0, 4096, generator), _points(theta, 4096, generator)

    def gradient(model: AdversarialModel, name: str) -> float:
        shift = torch.zeros((), requires_grad=True)
        moved = fake + torch.stack((shift, torch.zeros(())))
        loss = objective(name).generator_loss(model.critic(moved))
        return torch.autograd.grad(loss, shift)[0].item()

    with torch.no_grad():
        scores = minimax.scores(real, fake)
        js = (math.log(4) - objective("minimax").critic_loss(*scores).item()) / 2
        kl = scores[0].mean().item()
        gap = -objective("wasserstein").critic_loss(*game.scores(real, fake)).item()
    between = torch.lerp(fake, real, torch.rand(len(real), 1, generator=generator))
    steepest = slopes(game, torch.cat((between, real, fake))).max().item()
    return Line(
        theta,
        kl,
        js,
        gap / steepest,
        gradient(minimax, "minimax"),
        gradient(minimax, "non-saturating"),
        gradient(game, "wasserstein"),
    )


def run_divergences(out: Path, *, steps: int, seed: int) -> list[Line]:
    """Estimate at nine distances; ``out`` is the picture, a .csv of that name the numbers."""
    lines = [estimate(theta, steps=steps, seed=seed) for theta in THETAS]
    columns = (*Line.__dataclass_fields__, "kl_exact", "js_exact", "wasserstein_exact")
    rows = [(*vars(line).values(), *closed_forms(line.theta)) for line in lines]
    save_rows(out.with_suffix(".csv"), columns, rows)
    draw_lines(lines, out)
    return lines


def draw_lines(lines: list[Line], out: Path) -> None:
    """Four panels: each divergence, and the gradients."""
    drawing, ((kl, js), (wasserstein, gradients)) = figure(2, 2, (10, 7), sharex=True)
    thetas = [line.theta for line in lines]
    kl.plot(thetas, [line.kl for line in lines], "C0o-", label="estimated, $E_p[s]$")
    kl.set(title="KL(p || q): infinite but at 0", ylabel="nats")
    js.plot([-1, 1], [math.log(2)] * 2, "k", lw=1, label="exact, ln 2 but at 0")
    js.plot(0, 0, "ko")
    js.plot(thetas, [line.js for line in lines], "C0o", label="estimated")
    js.set(title="JS(p, q)", ylabel="nats")
    wasserstein.plot(thetas, [abs(theta) for theta in thetas], "k", lw=1, label="exact, |theta|")
    wasserstein.plot(thetas, [line.wasserstein for line in lines], "C1o", label="estimated")
    wasserstein.set(title="W(p, q)", xlabel="theta", ylabel="length")
    for name, color in (("minimax", "C0"), ("non_saturating", "C2"), ("wasserstein", "C1")):
        values = [getattr(line, f"{name}_gradient") for line in lines]
        gradients.plot(thetas, values, color + "o-", label=name.replace("_", "-"))
    gradients.set(title="gradient of the generator's loss in theta", xlabel="theta")
    gradients.set_yscale("symlog", linthresh=0.1)
    for axes in (kl, js, wasserstein, gradients):
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(drawing, out)


def _points(theta: float, n: int, generator: torch.Generator) -> Tensor:
    return torch.stack((torch.full((n,), theta), torch.rand(n, generator=generator)), dim=1)


def _trained(
    model: AdversarialModel, theta: float, steps: int, rate: float, seed: int
) -> AdversarialModel:
    """Its critic, against samples of q in place of its generator's."""
    generator = torch.Generator().manual_seed(seed)
    model.generator.forward = lambda z, labels=None: _points(theta, len(z), generator)
    optimizer = model.optimizer(model.critic_parameters(), rate)
    for part in range(10):  # ever smaller steps: a critic that still swings says little
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - part / 10)
        critic_steps(
            model, optimizer, lambda n, g: _points(0.0, n, g), max(1, steps // 10), generator, BATCH
        )
    return model
