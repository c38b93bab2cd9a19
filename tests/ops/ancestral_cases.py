"""What plain torch draws from the networks of ancestral_programs, and what the kernels draw."""

import itertools

import torch

from tests.ops.ancestral_programs import CACHED, F64, NETWORKS

# ---------------------------------------------------------------- plain torch


def draw_category(logits, uniform, temperature):
    below = (logits / temperature).softmax(1).cumsum(1)
    return (below <= uniform[:, None]).sum(1).clamp(max=logits.shape[1] - 1)


def draw_pixel(network, values, uniforms, temperature):
    """All channels of a pixel from a mixture of logistics: values (n, 10 K), uniforms (n, 3)."""
    k, channels = network.mixtures, network.channels
    logits, means, scales, coefficients = values.split([k, channels * k, channels * k, 3 * k], 1)
    chosen = draw_category(logits, uniforms[:, 0], temperature)
    weights = (logits / temperature).softmax(1)
    of = torch.arange(len(values))
    below = weights.cumsum(1)[of, chosen] - weights[of, chosen]
    levels = []
    for c in range(channels):
        u = (uniforms[:, 0] - below) / weights[of, chosen] if c == 0 else uniforms[:, c]
        mean = means.view(-1, channels, k)[of, c, chosen]
        for j in range(c):
            coefficient = coefficients.view(-1, 3, k)[of, c * (c - 1) // 2 + j, chosen]
            mean = mean + coefficient.tanh() * (2 * levels[j] / (network.n_levels - 1) - 1)
        scale = scales.view(-1, channels, k)[of, c, chosen].clamp(min=-7).exp()
        x = mean + temperature * scale * (u.log() - (1 - u).log())
        level = ((x + 1) * (network.n_levels - 1) / 2).round().clamp(0, network.n_levels - 1)
        levels.append(level)
    return torch.stack(levels, 1).long()


def draw_real(network, values, noise, temperature):
    """All channels of a pixel: values (n, 2 C), standard normal noise (n, C)."""
    mean, log_scale = values.chunk(2, 1)
    return mean + temperature * log_scale.clamp(-7, 7).exp() * noise


def naive(network, uniforms, given, temperature, levels, known):
    """The whole network for every level of every pixel."""
    n, channels, height, width = uniforms.shape
    drawn = torch.zeros_like(levels)
    for y, x in itertools.product(range(height), range(width)):
        for c in range(channels if network.draws == "categorical" else 1):
            image = drawn
            if network.draws != "gaussian":
                image = 2 * drawn.double() / (network.n_levels - 1) - 1
            values = network(image, *given)[:, :, y, x]
            if network.draws != "categorical":
                draw = draw_real if network.draws == "gaussian" else draw_pixel
                here = draw(network, values, uniforms[:, :, y, x], temperature)
                fixed = known[:, :1, y, x]
                drawn[:, :, y, x] = torch.where(fixed, levels[:, :, y, x], here)
            else:
                logits = values.view(n, channels, -1)[:, c]
                here = draw_category(logits, uniforms[:, c, y, x], temperature)
                drawn[:, c, y, x] = torch.where(known[:, c, y, x], levels[:, c, y, x], here)
    return drawn


# ---------------------------------------------------------------- the tests


class Case:
    """A network, its random numbers and what plain torch draws with them."""

    def __init__(self, name, n=3, height=5, width=6, temperature=1.0, some_known=False, **options):
        self.network = NETWORKS[name](**options)
        self.shape = (n, self.network.channels, height, width)
        self.temperature = temperature
        self.is_real = self.network.draws == "gaussian"
        self.uniforms = torch.rand(self.shape, dtype=F64)
        self.levels = torch.randint(self.network.n_levels, self.shape)
        if self.is_real:
            self.uniforms, self.levels = torch.randn(2, *self.shape, dtype=F64)
        self.known = torch.rand(self.shape) < (0.3 if some_known else 0)
        if self.network.draws != "categorical":
            self.known = self.known[:, :1].expand(self.shape)
        self.conditions, given = [], []
        if "map" in self.network.conditions:
            given.append(torch.randn(n, 12, height, width, dtype=F64))
            self.conditions.append(given[-1].permute(2, 3, 0, 1).contiguous())
        if "vector" in self.network.conditions:
            given.append(torch.randn(n, 3, dtype=F64))
            self.conditions.append(given[-1])
        if hasattr(self.network, "given"):
            self.conditions += self.network.given(n, height, width)
        self.expected = naive(
            self.network, self.uniforms, given, temperature, self.levels, self.known
        )

    def arguments(self, dtype=F64, *, tile=1, samples=slice(None), device="cpu", spare=0):
        """What the op takes, by name and in its order."""
        program, weights, cache = self.network.program(self.shape[3], dtype)
        if spare:
            program = with_spare_nodes(program, spare)
        uniforms = self.uniforms[samples].to(device, dtype).contiguous()
        known = self.known[samples].to(device).contiguous() if self.known.any() else None
        kind = dtype if self.is_real else torch.int64
        levels = torch.zeros_like(uniforms, dtype=kind)
        if known is not None:
            levels = self.levels[samples].to(device, kind, copy=True).contiguous()
        conditions = [
            (c[:, :, samples] if c.ndim == 4 else c[samples]).to(device, dtype).contiguous()
            for c in self.conditions
        ]
        return {
            "program": program,
            "weights": weights.to(device),
            "conditions": conditions,
            "uniforms": uniforms,
            "known": known,
            "levels": levels,
            "caches": torch.zeros(len(uniforms) * cache, dtype=dtype, device=device),
            "tile": tile,
            "n_levels": self.network.n_levels,
            "temperature": self.temperature,
            "first_row": 0,
            "last_row": self.shape[2],
        }

    def draw(self, ops, dtype=F64, by_row=False, **options):
        given = self.arguments(dtype, **options)
        height = self.shape[2]
        for first in range(0, height, 1 if by_row else height):
            last = first + 1 if by_row else height
            ops.ancestral_sample(*{**given, "first_row": first, "last_row": last}.values())
        return given["levels"].cpu()

    def agrees(self, drawn, tolerance=1e-12):
        """Where, (n, C, H, W), these are the levels, or nearly the numbers, that plain torch draws."""
        if not self.is_real:
            return drawn == self.expected
        return (drawn - self.expected).abs() <= tolerance * (1 + self.expected.abs())


def with_spare_nodes(program, count):
    """The same program with nodes that nobody uses: too many for the GPU's shared memory."""
    nodes = program[0].item()
    spare = torch.tensor([CACHED, 1, 1, 1, 0, 0], dtype=torch.int32).repeat(count)
    at = 8 + 6 * nodes
    program = torch.cat([program[:at], spare, program[at:]])
    program[0] += count
    return program
