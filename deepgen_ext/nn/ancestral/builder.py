"""Writes programs of `ops.ancestral_sample`, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .convolutions import Convolution, is_centre, matrices_of, rows_of
from .draws import Distribution, draws_of
from .features import DRAWN, EVERYTHING, NOTHING, Feature, Reach
from .program import CannotCompile, Kind, Place, Program, Ratio, Step, Tap, Term


class Builder:
    """A program in the making for images of `channels` channels, drawn in `groups` turns a pixel.

    A step goes where its result is first known: to the row steps if it needs nothing of the row
    being drawn; before the draw of its channel group if it needs the groups before; after it, if it
    is made of the drawn pixel alone.
    """

    def __init__(self, channels: int, groups: int) -> None:
        self.program = Program()
        self.groups = groups
        self._before: list[list[Step]] = [[] for _ in range(groups)]
        self._draws: list[list[Step]] = [[] for _ in range(groups)]
        self._after: list[list[Step]] = [[] for _ in range(groups)]
        self.program.image = self.program.add_node(Place.CACHED, channels)
        self.image = Feature(self.program.image, 0, channels, 1, DRAWN, groups)
        self.n_conditions = 0

    def finish(self) -> Program:
        for group in range(self.groups):
            self.program.pixel_steps += self._before[group]
            self.program.pixel_steps += self._draws[group]
            self.program.pixel_steps += self._after[group]
        return self.program

    # ------------------------------------------------------------ layers

    def condition(self, channels: int, stride: int, is_map: bool) -> Feature:
        """The next of the tensors that do not depend on the image."""
        place = Place.MAP if is_map else Place.VECTOR
        stride = stride if is_map else 0
        node = self.program.add_node(place, channels, stride, offset=self.n_conditions)
        self.n_conditions += 1
        return Feature(node, 0, channels, stride, NOTHING)

    def pointwise(self, kind: Kind, a: Feature, b: Feature | None = None) -> Feature:
        """f(a) or f(a, b), channel by channel."""
        if b is not None:
            a, b = a.at_stride(b.stride), b.at_stride(a.stride)
        if b is not None and (a.channels, a.stride) != (b.channels, b.stride):
            raise CannotCompile(
                f"combines {a.channels} channels at stride {a.stride} with {b.channels} channels "
                f"at stride {b.stride}"
            )
        reach = a.reach if b is None else max(a.reach, b.reach)
        groups = self._common_groups([a] if b is None else [a, b])
        dst = self.program.add_node(Place.CACHED, a.channels, a.stride)
        out = Feature(dst, 0, a.channels, a.stride, reach, groups)

        def step(group: int, of: int) -> Step:
            to, channels = out.group(group, of)
            second = {} if b is None else {"b": b.node, "b_channel": b.group(group, of)[0]}
            return Step(kind, dst, to, channels, a.node, a.group(group, of)[0], **second)

        self._place(out, groups, step)
        return out

    def affine(self, a: Feature, factors: Callable[[], Tensor]) -> Feature:
        """scale * a + shift with `factors` = (scale, shift), each (channels,)."""
        dst = self.program.add_node(Place.CACHED, a.channels, a.stride)
        out = Feature(dst, 0, a.channels, a.stride, a.reach, a.groups)

        def step(group: int, of: int) -> Step:
            to, channels = out.group(group, of)
            part = slice(to, to + channels)
            return Step(
                Kind.AFFINE,
                dst,
                to,
                channels,
                a.node,
                a.group(group, of)[0],
                constants=lambda: factors().view(2, -1)[:, part].flatten(),
            )

        self._place(out, a.groups, step)
        return out

    def gate(self, a: Feature, groups: int, kind: Kind = Kind.GATE) -> Feature:
        """In each channel group tanh (or nothing) of the first half by sigmoid of the second."""
        if a.channels % (2 * groups):
            raise CannotCompile(f"cannot halve {a.channels} channels in {groups} groups")
        if a.reach.in_pixel and self.groups > 1 and groups != a.groups:
            raise CannotCompile(f"halves {groups} groups of channels that have {a.groups}")
        half = a.channels // (2 * groups)
        dst = self.program.add_node(Place.CACHED, a.channels // 2, a.stride)
        out = Feature(dst, 0, a.channels // 2, a.stride, a.reach, groups)

        def step(group: int, _: int) -> Step:
            first = a.channel + 2 * group * half
            return Step(kind, dst, group * half, half, a.node, first, a.node, first + half)

        self._place(out, groups, step, always_by_group=True)
        return out

    def concatenate(self, parts: Sequence[Feature], kinds: Sequence[Kind] = ()) -> Feature:
        """The parts one behind the other, each under its own function."""
        stride = max(part.stride for part in parts)
        parts = [part.at_stride(stride) for part in parts]
        if len({part.stride for part in parts}) > 1:
            raise CannotCompile("concatenates feature maps of several resolutions")
        self._refuse_groups(parts, "concatenates")
        channels = sum(part.channels for part in parts)
        reach = max(part.reach for part in parts)
        dst = self.program.add_node(Place.CACHED, channels, stride)
        out = Feature(dst, 0, channels, stride, reach)
        begin = 0
        for part, kind in zip(parts, kinds or [Kind.COPY] * len(parts), strict=True):
            step = Step(kind, dst, begin, part.channels, part.node, part.channel)
            self._place(out, 1, lambda group, of, step=step: step)
            begin += part.channels
        return out

    def slice(self, a: Feature, begin: int, channels: int) -> Feature:
        """Some of the channels, without a step."""
        self._refuse_groups([a], "takes a part of")
        return Feature(a.node, a.channel + begin, channels, a.stride, a.reach)

    def shift(self, a: Feature, rows: int, columns: int) -> Feature:
        """The map moved down and to the right; zeros enter."""
        reach = a.reach.moved(-rows * a.stride, -columns * a.stride)
        dst = self.program.add_node(Place.CACHED, a.channels, a.stride)
        out = Feature(dst, 0, a.channels, a.stride, reach)
        step = Step(Kind.COPY, dst, 0, a.channels, a.node, a.channel, dy=-rows, dx=-columns)
        self._read(a, Tap(-rows, -columns), Ratio.SAME)
        self._place(out, 1, lambda group, of: step)
        return out

    def convolve(
        self, a: Feature, conv: Convolution, known: Sequence[tuple[Feature, Convolution]] = ()
    ) -> Feature:
        """A convolution, plus those of `known`, 1x1 of conditions. What is taken from earlier rows,
        or known, is summed once a row, the rest a pixel.
        """
        if a.channels != conv.in_channels:
            raise CannotCompile(f"expects {conv.in_channels} channels, got {a.channels}")
        if conv.ratio == Ratio.COARSER and a.stride % 2:
            raise CannotCompile("doubles a resolution that is the image's already")
        stride = {Ratio.SAME: a.stride, Ratio.FINER: 2 * a.stride}.get(conv.ratio, a.stride // 2)
        reach = max(self._reach_through(a, conv, tap) for tap in conv.taps)
        for tap in conv.taps:
            self._read(a, tap, conv.ratio)
        for c, projection in known:
            if (projection.out_channels, c.stride) != (conv.out_channels, stride):
                raise CannotCompile(
                    f"adds {projection.out_channels} channels at stride {c.stride} to "
                    f"{conv.out_channels} channels at stride {stride}"
                )
        dst = self.program.add_node(Place.CACHED, conv.out_channels, stride)
        out = Feature(dst, 0, conv.out_channels, stride, reach, conv.groups)
        early = [tap for tap in conv.taps if _before_row(a, tap, conv.ratio)]
        late = [tap for tap in conv.taps if tap not in early]
        sums = -1
        if not reach.before_row and (early or known):
            sums = self.program.add_node(Place.CACHED, conv.out_channels, stride)
            for group in range(conv.groups):
                step = self._linear(a, conv, early, sums, -1, group, known)
                self.program.row_steps.append(step)
        taps, late_known = (late, ()) if sums >= 0 else (list(conv.taps), known)
        self._place(
            out,
            conv.groups,
            lambda group, _: self._linear(a, conv, taps, dst, sums, group, late_known),
            always_by_group=True,
        )
        return out

    def draw(self, parameters: Feature, distribution: Distribution) -> None:
        """The image's channels from the network's output."""
        for turn, step in draws_of(distribution, parameters, self.image, self.groups):
            self._draws[turn].append(step)

    # ------------------------------------------------------------ dependencies

    def _place(
        self,
        out: Feature,
        groups: int,
        step: Callable[[int, int], Step],
        always_by_group: bool = False,
    ) -> None:
        """Put the steps that compute `out`, step(group, of groups), where its inputs are known."""
        by_turns = out.reach.in_pixel and self.groups > 1
        if by_turns and groups != self.groups:
            raise CannotCompile(
                f"needs channels in {self.groups} groups, in the order in which the channels of a "
                f"pixel are drawn, and has {groups}: give it groups_in_order={self.groups}"
            )
        if out.reach > DRAWN:
            what = "later channels of its pixel" if out.reach.in_pixel else "later pixels"
            raise CannotCompile(f"sees {what}: it cannot be computed while an image is drawn")
        steps = (
            [step(group, groups) for group in range(groups)]
            if (by_turns or always_by_group)
            else [step(0, 1)]
        )
        for index, made in enumerate(steps):
            turn = index if by_turns else 0
            if out.reach.before_row:
                self.program.row_steps.append(made)
            elif out.reach.is_causal:
                self._before[turn].append(made)
            else:
                self._after[turn].append(made)

    def _reach_through(self, a: Feature, conv: Convolution, tap: Tap) -> Reach:
        rows, columns = tap.dy * a.stride, tap.dx * a.stride
        if conv.ratio == Ratio.COARSER:
            rows -= tap.phase // 2 * (a.stride // 2)
            columns -= tap.phase % 2 * (a.stride // 2)
        if (rows, columns) != (0, 0) or not a.reach.in_pixel:
            return a.reach.moved(rows, columns)
        if self.groups == 1 and conv.groups == 1:
            # Nothing precedes a channel group within its pixel: "A" has no tap here at all.
            return NOTHING if conv.mask_type == "A" else a.reach
        if conv.groups != a.groups or not conv.mask_type:
            return Reach(0, 0, EVERYTHING)
        return Reach(0, 0, max(a.reach.group - (conv.mask_type == "A"), -1))

    def _read(self, a: Feature, tap: Tap, ratio: Ratio) -> None:
        """Keep of a node what this tap still reads, after checking that it is there by then."""
        late = tap.dy > 0 or (not _before_row(a, tap, ratio) and tap.dx > 0)
        if late:
            raise CannotCompile(
                "reads rows below or pixels to the right of its own: it cannot be computed while "
                "an image is drawn"
            )
        node = self.program.nodes[a.node]
        # Upper rows are read before the pixels of this one take the place of the oldest.
        own_row_is_there = a.reach.before_row or ratio == Ratio.COARSER
        node.rows = max(node.rows, own_row_is_there - tap.dy)
        node.pad = max(node.pad, abs(tap.dx))

    def _linear(
        self,
        a: Feature,
        conv: Convolution,
        taps: list[Tap],
        dst: int,
        start: int,
        group: int,
        known: Sequence[tuple[Feature, Convolution]],
    ) -> Step:
        """Output group `group` of a convolution from some of its taps, plus those of `known`."""
        begin = conv.out_channels * group // conv.groups
        end = conv.out_channels * (group + 1) // conv.groups
        centre_channels = conv.in_channels
        if conv.mask_type:
            seen = group + (conv.mask_type == "B")
            centre_channels = conv.in_channels * seen // conv.groups
        terms = []
        for channels, chosen in (
            (conv.in_channels, [tap for tap in taps if not is_centre(tap, conv)]),
            (centre_channels, [tap for tap in taps if is_centre(tap, conv)]),
        ):
            if channels and chosen:
                weights = matrices_of(conv, begin, end, channels, chosen)
                terms.append(Term(a.node, a.channel, channels, conv.ratio, chosen, weights))
        for c, projection in known:
            chosen = list(projection.taps)
            weights = matrices_of(projection, begin, end, c.channels, chosen)
            terms.append(Term(c.node, c.channel, c.channels, projection.ratio, chosen, weights))
        biases = [p.bias for p in (conv, *(p for _, p in known)) if p.bias is not None]
        bias = rows_of(biases, begin, end) if start < 0 and biases else None
        return Step(Kind.LINEAR, dst, begin, end - begin, start, begin, constants=bias, terms=terms)

    def _common_groups(self, features: Sequence[Feature]) -> int:
        """Of those that depend on their own pixel; features known before have no order."""
        groups = {f.groups for f in features if f.reach.in_pixel}
        if len(groups) > 1:
            raise CannotCompile(f"combines channels in {' and '.join(map(str, groups))} groups")
        return groups.pop() if groups else 1

    def _refuse_groups(self, features: Sequence[Feature], verb: str) -> None:
        if self.groups > 1 and any(f.reach.in_pixel for f in features):
            raise CannotCompile(
                f"{verb} channels that are drawn in turns (groups_in_order={self.groups}): their "
                f"order would be lost"
            )


def _before_row(a: Feature, tap: Tap, ratio: Ratio) -> bool:
    """Whether what a tap reads is known before the first pixel of the row is drawn."""
    return a.reach.before_row or tap.dy < 0 or (ratio == Ratio.COARSER and tap.phase >= 2)
