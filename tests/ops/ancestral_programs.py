"""Small networks in plain torch, each with a program of ancestral_sample written by hand.

Every number of csrc/ancestral_sample.h is given here, none by the compiler of networks.
"""

import itertools

import torch
import torch.nn.functional as F

CACHED, MAP, VECTOR = range(3)
(LINEAR, COPY, RELU, ELU, NEGATIVE_ELU, TANH, SIGMOID, AFFINE, ADD, SUBTRACT, MULTIPLY, GATE) = range(12)  # fmt: skip
SIGMOID_GATE, CATEGORICAL, MIXTURE, GAUSSIAN = 12, 13, 14, 15
SAME, FINER, COARSER = range(3)
F64 = torch.float64


class Writer:
    """A program in the making; every number of csrc/ancestral_sample.h is given by hand."""

    def __init__(self, width, dtype=F64):
        self.width, self.dtype = width, dtype
        self.panel = 64 // dtype.itemsize
        self.nodes, self.steps, self.terms, self.taps = [], ([], []), [], []
        self.weights = []
        self.position = self.cache = 0

    def node(self, channels, rows=1, pad=0, stride=1, place=CACHED, condition=0):
        offset = condition
        if place == CACHED:
            offset = self.cache
            self.cache += rows * (-(-self.width // stride) + 2 * pad) * channels
        self.nodes.append([place, channels, stride, rows, pad, offset])
        return len(self.nodes) - 1

    def pack(self, values):
        begin = self.position
        filled = torch.zeros(-(-values.numel() // self.panel) * self.panel, dtype=F64)
        filled[: values.numel()] = values.flatten()
        self.weights.append(filled)
        self.position += filled.numel()
        return begin

    def matrix(self, weight):
        """(out, in) by panels of outputs."""
        out, channels = weight.shape
        rows = torch.zeros(-(-out // self.panel) * self.panel, channels, dtype=F64)
        rows[:out] = weight
        return self.pack(rows.view(-1, self.panel, channels).transpose(1, 2))

    def step(self, kind, dst, channels, *, a=-1, b=-1, to=0, constants=None, terms=(), dy=0, dx=0,
             a_channel=0, b_channel=0, row=False):  # fmt: skip
        """terms: (src, src_channel, ratio, [(dy, dx, phase, weight (channels, inputs))])."""
        first = len(self.terms)
        for src, src_channel, ratio, taps in terms:
            inputs = taps[0][3].shape[1]
            self.terms.append([src, src_channel, inputs, ratio, len(self.taps), len(taps)])
            for y, x, phase, weight in taps:
                self.taps.append([y, x, phase, self.matrix(weight)])
        packed = -1 if constants is None else self.pack(constants)
        words = [kind, dst, to, channels, a, a_channel, b, b_channel, packed, first, len(terms)]
        self.steps[not row].append([*words, dy, dx])

    def conv(self, src, dst, weight, bias, *, row_sum=None, ratio=SAME, left=None, phases=False):
        """A convolution, of which row_sum (a node) gets the upper taps in a row step."""
        out, inputs, height, width = weight.shape
        taps = []
        for ky, kx in itertools.product(range(height), range(width)):
            y, x, phase = ky - (height - 1), kx - (width // 2 if left is None else left), -1
            if weight[:, :, ky, kx].abs().max() > 0:
                taps.append((y, x, phase, weight[:, :, ky, kx]))
        pixel = [t for t in taps if t[0] == 0]
        self.step(
            LINEAR, row_sum, out, constants=bias, row=True,
            terms=[(src, 0, ratio, [t for t in taps if t[0] < 0])],
        )  # fmt: skip
        self.step(LINEAR, dst, out, a=row_sum, terms=[(src, 0, ratio, pixel)] if pixel else [])

    def finish(self, image):
        counts = [len(self.nodes), len(self.steps[0]), len(self.steps[1])]
        header = [*counts, len(self.terms), len(self.taps), image, self.cache, 0]
        words = header + sum(
            [*self.nodes, *self.steps[0], *self.steps[1], *self.terms, *self.taps], []
        )
        weights = torch.cat(self.weights) if self.weights else torch.zeros(0)
        return torch.tensor(words, dtype=torch.int32), weights.to(self.dtype), self.cache


# ---------------------------------------------------------------- the networks


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        fan_in = torch.Size(shape[1:]).numel() or 1
        yield 1.6 * torch.randn(shape, generator=generator, dtype=F64) / fan_in**0.5


def causal_mask(weight, mask_type, groups=1):
    """Rows are cut below the centre; the centre tap obeys the order of channel groups."""
    out, inputs, height, width = weight.shape
    centre = height // 2, width // 2
    masked = weight.clone()
    masked[:, :, centre[0], centre[1] + 1 :] = 0
    own = torch.arange(out) * groups // out
    seen = torch.arange(inputs) * groups // inputs
    hidden = seen >= own[:, None] if mask_type == "A" else seen > own[:, None]
    masked[:, :, centre[0], centre[1]][hidden] = 0
    masked[:, :, centre[0] + 1 :] = 0
    return masked


class Plain:
    """7x7 "A", ReLU, 3x3 "B", ReLU, 1x1: the PixelCNN of van den Oord et al. (2016) in small."""

    channels, n_levels, draws, conditions = 1, 19, "categorical", ()

    def __init__(self, hidden=20):
        self.hidden = hidden
        first, self.b1, second, self.b2, self.last, self.b3 = parameters(
            (hidden, 1, 7, 7), (hidden,), (hidden, hidden, 3, 3), (hidden,), (19, hidden), (19,)
        )
        self.first, self.second = causal_mask(first, "A"), causal_mask(second, "B")

    def __call__(self, x, *conditions):
        h = F.conv2d(x, self.first, self.b1, padding=3).relu()
        h = F.conv2d(h, self.second, self.b2, padding=1).relu()
        return F.conv2d(h, self.last[:, :, None, None], self.b3)

    def program(self, width, dtype):
        w = Writer(width, dtype)
        c = self.hidden
        image = w.node(1, rows=4, pad=3)
        sum1, h1, r1 = w.node(c), w.node(c), w.node(c, rows=2, pad=1)
        sum2, h2, logits = w.node(c), w.node(c), w.node(19)
        w.conv(image, h1, self.first[:, :, :4], self.b1, row_sum=sum1)
        w.step(RELU, r1, c, a=h1)
        w.conv(r1, h2, self.second[:, :, :2], self.b2, row_sum=sum2)
        w.step(RELU, h2, c, a=h2)
        w.step(
            LINEAR, logits, 19, constants=self.b3, terms=[(h2, 0, SAME, [(0, 0, -1, self.last)])]
        )
        w.step(CATEGORICAL, image, 1, a=logits)
        return w.finish(image)


class Gated:
    """Two channels in order, gates, every step channel by channel, a map and a vector."""

    channels, n_levels, draws = 2, 5, "categorical"
    conditions = ("map", "vector")

    def __init__(self):
        first, self.b1, self.scale, self.shift, self.into_vector, second = parameters(
            (24, 2, 3, 3), (24,), (12,), (12,), (12, 3), (10, 12)
        )
        self.first = causal_mask(first, "A", groups=2)
        self.second = causal_mask(second[:, :, None, None], "B", groups=2)

    def __call__(self, x, given, vector):
        h = F.conv2d(x, self.first, self.b1, padding=1)
        # Groups stay in order: the first half of the channels belongs to the first image channel.
        halves = [half.chunk(2, 1) for half in h.chunk(2, 1)]
        g = torch.cat([a.tanh() * b.sigmoid() for a, b in halves], 1)
        g = g * self.scale[:, None, None] + self.shift[:, None, None]
        g = g + given - F.elu(-g) * F.elu(g).tanh()
        g = g * (vector @ self.into_vector.T)[:, :, None, None].sigmoid() + g.relu()
        return F.conv2d(g, self.second)

    def program(self, width, dtype):
        w = Writer(width, dtype)
        image = w.node(2, rows=2, pad=1)
        h_sum, h, g, g2, e, e2 = (w.node(c) for c in (24, 24, 12, 12, 12, 12))
        vector_term, logits = w.node(12), w.node(10)
        given = w.node(12, place=MAP, condition=0)
        vector = w.node(3, place=VECTOR, condition=1)
        upper = [
            (dy, dx, -1, self.first[:, :, dy + 1, dx + 1]) for dy in (-1,) for dx in (-1, 0, 1)
        ]
        w.step(LINEAR, h_sum, 24, constants=self.b1, terms=[(image, 0, SAME, upper)], row=True)
        to_vector = [(vector, 0, SAME, [(0, 0, -1, self.into_vector)])]
        w.step(LINEAR, vector_term, 12, terms=to_vector, row=True)
        w.step(SIGMOID, vector_term, 12, a=vector_term, row=True)
        for group in range(2):
            rows = slice(12 * group, 12 * group + 12)
            terms = [(image, 0, SAME, [(0, -1, -1, self.first[rows, :, 1, 0])])]
            if group:
                terms.append((image, 0, SAME, [(0, 0, -1, self.first[rows, :1, 1, 1])]))
            at = {"to": 6 * group, "a_channel": 6 * group}
            both = {**at, "b_channel": 6 * group}
            w.step(LINEAR, h, 12, a=h_sum, a_channel=12 * group, to=12 * group, terms=terms)
            w.step(
                GATE, g, 6, a=h, a_channel=12 * group, b=h, b_channel=12 * group + 6, to=6 * group
            )
            factors = torch.cat([t[6 * group : 6 * group + 6] for t in (self.scale, self.shift)])
            w.step(AFFINE, g, 6, a=g, constants=factors, **at)
            w.step(NEGATIVE_ELU, e, 6, a=g, **at)
            w.step(ELU, e2, 6, a=g, **at)
            w.step(TANH, e2, 6, a=e2, **at)
            w.step(MULTIPLY, e, 6, a=e, b=e2, **both)
            w.step(ADD, g2, 6, a=g, b=given, **both)
            w.step(SUBTRACT, g2, 6, a=g2, b=e, **both)
            w.step(RELU, e, 6, a=g2, **at)
            w.step(MULTIPLY, e2, 6, a=g2, b=vector_term, **both)
            w.step(ADD, e2, 6, a=e2, b=e, **both)
            seen = 6 * group + 6
            weight = self.second[5 * group : 5 * group + 5, :seen, 0, 0]
            w.step(LINEAR, logits, 5, to=5 * group, terms=[(e2, 0, SAME, [(0, 0, -1, weight)])])
            w.step(CATEGORICAL, image, 1, a=logits, a_channel=5 * group, dy=group)
        return w.finish(image)


class Pyramid:
    """Down by two and up again, once for rows above and once for what is left in the row; draws
    from a mixture. With a channel of ones beside the image's.
    """

    channels, n_levels, draws, mixtures = 3, 256, "mixture", 2
    conditions = ()

    def __init__(self, c=9):
        self.c = c
        self.down_rows, self.up_rows, self.down, self.up, self.last, self.bias = parameters(
            (c, 4, 2, 3), (c, c, 2, 3), (c, 4, 2, 2), (c, c, 2, 2), (20, 2 * c + 4), (20,)
        )
        self.bias[2:8] *= 0.3
        self.bias[8:14] -= 1

    def __call__(self, x):
        height, width = x.shape[2:]
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        above = F.pad(x, (0, 0, 1, 0))[:, :, :height]
        beside = F.pad(x, (1, 0))[..., :width]
        u = F.conv2d(F.pad(above, (1, 1, 1, 0)), self.down_rows, stride=2).tanh()
        v = F.conv2d(F.pad(beside, (1, 0, 1, 0)), self.down, stride=2)
        v = F.elu(v)
        u = F.conv_transpose2d(u, self.up_rows, stride=2)[:, :, :height, 1 : width + 1]
        v = F.conv_transpose2d(v, self.up, stride=2)[:, :, :height, :width]
        return F.conv2d(torch.cat([u, v, beside], 1), self.last[:, :, None, None], self.bias)

    def program(self, width, dtype):
        w = Writer(width, dtype)
        c = self.c
        one = w.node(1, place=VECTOR, condition=0)
        image = w.node(4, rows=2, pad=1)
        above, beside = w.node(4, rows=2, pad=1), w.node(4, rows=2, pad=1)
        u, v = (w.node(c, rows=2, pad=1, stride=2) for _ in range(2))
        joined, out = w.node(2 * c + 4), w.node(20)
        # The ones stand in the row before anything reads them.
        w.step(COPY, image, 1, to=3, a=one, row=True)
        w.step(COPY, above, 4, a=image, dy=-1, row=True)
        taps = [
            (ky - 1, kx - 1, -1, self.down_rows[:, :, ky, kx]) for ky in (0, 1) for kx in range(3)
        ]
        w.step(LINEAR, u, c, terms=[(above, 0, FINER, taps)], row=True)
        w.step(TANH, u, c, a=u, row=True)
        taps = []
        for ky, kx in itertools.product(range(2), range(3)):
            # Cropped by one column: column j of the output is j + 1 of the full one.
            phase = 2 * ky + (kx + 1) % 2
            dx = ((kx + 1) % 2 + 1 - kx) // 2
            taps.append((0, dx, phase, self.up_rows[:, :, ky, kx].T))
        w.step(LINEAR, joined, c, terms=[(u, 0, COARSER, taps)], row=True)
        w.step(COPY, beside, 4, a=image, dx=-1)
        taps = [(ky - 1, kx - 1, -1, self.down[:, :, ky, kx]) for ky in (0, 1) for kx in (0, 1)]
        w.step(LINEAR, v, c, terms=[(beside, 0, FINER, taps)])
        w.step(ELU, v, c, a=v)
        taps = [(0, 0, 2 * ky + kx, self.up[:, :, ky, kx].T) for ky in (0, 1) for kx in (0, 1)]
        w.step(LINEAR, joined, c, to=c, terms=[(v, 0, COARSER, taps)])
        w.step(COPY, joined, 4, to=2 * c, a=beside)
        w.step(
            LINEAR, out, 20, constants=self.bias, terms=[(joined, 0, SAME, [(0, 0, -1, self.last)])]
        )
        w.step(MIXTURE, image, 20, a=out, dy=2)
        return w.finish(image)

    def given(self, n, height, width):
        return [torch.ones(n, 1, dtype=F64)]


class RealNumbers:
    """A 3x3 "A", the sum with a map and with a projection of it, tanh, 1x1: means and log scales of
    three real channels.

    Some log scales lie beyond the largest that counts.
    """

    channels, n_levels, draws = 3, 2, "gaussian"
    conditions = ("map",)

    def __init__(self):
        first, self.bias, self.last, self.last_bias, self.projection = parameters(
            (12, 3, 3, 3), (12,), (6, 12), (6,), (12, 12)
        )
        self.first = causal_mask(first, "A")
        self.last_bias = self.last_bias * 0.2
        self.last_bias[3] = -9

    def __call__(self, x, given):
        projected = F.conv2d(given, self.projection[:, :, None, None])
        h = (F.conv2d(x, self.first, self.bias, padding=1) + given + projected).tanh()
        return F.conv2d(h, self.last[:, :, None, None], self.last_bias)

    def program(self, width, dtype):
        w = Writer(width, dtype)
        image = w.node(3, rows=2, pad=1)
        above, h, out = w.node(12), w.node(12), w.node(6)
        given = w.node(12, place=MAP, condition=0)
        known = w.node(12)
        w.conv(image, h, self.first[:, :, :2], self.bias, row_sum=above)
        itself = [(0, 0, -1, self.projection)]
        w.step(LINEAR, known, 12, a=given, terms=[(given, 0, SAME, itself)], row=True)
        w.step(ADD, h, 12, a=h, b=known)
        w.step(TANH, h, 12, a=h)
        centre = [(0, 0, -1, self.last)]
        w.step(LINEAR, out, 6, constants=self.last_bias, terms=[(h, 0, SAME, centre)])
        w.step(GAUSSIAN, image, 3, a=out)
        return w.finish(image)


NETWORKS = {"plain": Plain, "gated": Gated, "pyramid": Pyramid, "real": RealNumbers}
