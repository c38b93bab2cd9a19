"""Models with torch's spectral norms, and pairs of them, before and after accelerate."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hook
from torch.utils.checkpoint import checkpoint

from tests.compat.accelerated_models import close, strictly_accelerated

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hook}
WIDTH = 4


def network(norm, n: int = 4, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    """Layers that take and give WIDTH x 1 x 1: what they do to an image is known by their order."""
    torch.manual_seed(0)
    layers = [norm(nn.Conv2d(WIDTH, WIDTH, 1)) for _ in range(n - 2)]
    layers += [
        norm(nn.ConvTranspose2d(WIDTH, WIDTH, 1)),
        norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    ]
    return nn.ModuleList(layers).to(dtype)


def original(layer: nn.Module) -> nn.Parameter:
    is_new = parametrize.is_parametrized(layer)
    return layer.parametrizations.weight.original if is_new else layer.weight_orig


def run(model: nn.ModuleList, order: str) -> Tensor:
    weight = original(model[0])
    x = torch.linspace(-1, 1, 2 * WIDTH, dtype=weight.dtype).view(2, WIDTH, 1, 1)
    for index in order:
        x = torch.tanh(model[int(index)](x))
    return x


class Twins:
    """torch's model and ours, with which the same is done; they are compared after each action."""

    def __init__(self, norm, n: int = 4) -> None:
        given = network(norm, n)
        self.models = [given, strictly_accelerated(given, n)]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in self.models]

    def compare(self, results: list[list[Tensor]]) -> None:
        for model, found in zip(self.models, results, strict=True):
            found += [*model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        close(results[1], results[0], 1e-9)

    def use(self, order: str) -> None:
        self.compare([[run(model, order)] for model in self.models])

    def use_without_graph(self, order: str) -> None:
        with torch.no_grad():
            self.use(order)

    def use_for_inference(self, order: str) -> None:
        with torch.inference_mode():
            self.compare([[run(model, order)] for model in self.models])

    def learn(self, order: str) -> None:
        """Two passes before one backward pass; an optimiser's step."""
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            optimizer.zero_grad()
            (run(model, order).square().sum() + run(model, order[::-1]).sum()).backward()
        self.compare([[], []])
        for optimizer in self.optimizers:
            optimizer.step()

    def checkpoint(self, order: str) -> None:
        for model in self.models:
            model.zero_grad()
            checkpoint(run, model, order, use_reentrant=False).square().sum().backward()
        self.compare([[], []])

    def interrupted(self, order: str) -> None:
        """A pass within which a weight of a later layer is written."""
        results = []
        for model in self.models:
            first = run(model, order[:1])
            with torch.no_grad():
                original(model[int(order[-1])]).mul_(torch.linspace(1, 2, WIDTH).view(-1, 1, 1, 1))
            results.append([first, run(model, order[1:])])
        self.compare(results)

    def replaced_vectors(self, order: str) -> None:
        """u or v of a later layer, within a pass."""
        results = []
        for model in self.models:
            first = run(model, order[:1])
            with torch.no_grad():
                vector = [*model[int(order[-1])].buffers()][len(order) % 2]
                vector.copy_(torch.linspace(0, 1, len(vector)))
            results.append([first, run(model, order[1:])])
        self.compare(results)

    def replaced_data(self, order: str) -> None:
        for model in self.models:
            weight = original(model[int(order[-1])])
            weight.data = weight.detach() + 0.1
        self.use(order)

    def evaluate(self, order: str) -> None:
        for model in self.models:
            model.eval()
        self.use(order)
        self.use_without_graph(order)
        for model in self.models:
            model.train()

    def copy(self, order: str) -> None:
        """The copies go on, the originals are used once more, both from where they were."""
        self.use_without_graph("0123")  # of the hook's weights torch copies none with a graph
        before, self.models = self.models, [copy.deepcopy(model) for model in self.models]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in self.models]
        self.use(order)
        self.compare([[run(model, order)] for model in before])
