"""The autoregressive prior over a grid of latents: what it sees, what it scores, what it draws."""

import pytest
import torch

from deepgen_ext.models.autoregressive import naive_sample
from deepgen_ext.models.latent.grid_prior import GridPrior
from tests.checks import randomize

GRID = (2, 3, 4)


def build():
    torch.manual_seed(0)
    return randomize(GridPrior(GRID, 3, channels=6, layers=2, kernel_size=3), 0.3).double()


def inputs(n=3):
    return torch.randn(n, *GRID).double(), torch.randn(n, 3, *GRID[1:]).double()


def test_a_cell_depends_on_all_cells_before_it_and_on_the_map():
    prior, (z, condition) = build(), inputs(1)
    size = z[0].numel()
    for output in (0, 1):  # means, log scales

        def flat(z, condition, output=output):
            values = prior(z.view(1, *GRID), condition)[output]
            return values.permute(0, 2, 3, 1).flatten()

        of_z, of_condition = torch.autograd.functional.jacobian(flat, (z.flatten(), condition))
        of_z = of_z.view(size, *GRID).permute(0, 2, 3, 1).reshape(12, 2, 12, 2)
        seen = of_z.abs().amax((1, 3)) > 0
        # Two blocks of 3x3 kernels reach two rows up and the two cells to the left.
        assert not seen.triu().any()
        assert seen[5, :5].all()
        assert seen[11].sum() >= 8
        own = of_condition.view(12, 2, 3, 12).abs().amax((1, 2)).diagonal()
        assert (own > 0).all()


def test_draws_what_the_definition_draws():
    prior, (noise, condition) = build(), inputs()
    naive = naive_sample(prior.network, prior.distribution, noise, condition=condition)
    drawn = prior.draw(noise, condition)
    torch.testing.assert_close(drawn, naive, rtol=1e-11, atol=1e-11)
    assert (prior.draw(noise, condition + 1) - drawn).abs().max() > 1e-3


def test_scores_its_own_draws_by_the_change_of_variables():
    """z is a triangular function of the noise: ln p(z) = ln N(noise) - ln |det dz / d noise|."""
    prior, (noise, condition) = build(), inputs(1)
    z = prior.draw(noise, condition)
    step = 1e-6
    around = noise.expand(24, *GRID) + step * torch.eye(24).double().view(24, *GRID)
    moved = prior.draw(around, condition.expand(24, -1, -1, -1))
    jacobian = (moved - z).flatten(1) / step
    log_normal = torch.distributions.Normal(0, 1).log_prob(noise).sum()
    expected = log_normal - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(prior.log_prob(z, condition)[0], expected, rtol=1e-4, atol=1e-4)


def test_starts_as_standard_normal():
    prior = GridPrior(GRID, 3, channels=6, layers=2, kernel_size=3)
    z, condition = (value.float() for value in inputs())
    assert torch.equal(prior.draw(z, condition), z)
    expected = torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(prior.log_prob(z, condition), expected)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size: expected an odd number, got 4"):
        GridPrior(GRID, 3, channels=6, layers=2, kernel_size=4)


def test_blocks_add_to_what_they_are_given():
    """A middle block that adds nothing hands on what the first has seen of the row."""
    torch.manual_seed(0)
    prior = randomize(GridPrior(GRID, 3, channels=6, layers=3, kernel_size=3), 0.3).double()
    z, condition = inputs(1)
    with torch.no_grad():
        for parameter in prior.network.blocks[1].residual.parameters():
            parameter.zero_()
        for block in prior.network.blocks[:2]:  # the last block alone is read
            for parameter in block.skip.parameters():
                parameter.zero_()
        other = z.clone()
        other[:, :, 1, 0] += 1
        moved = (prior(other, condition)[0] - prior(z, condition)[0]).abs().amax((0, 1))
    assert moved[1, 1] > 1e-6
