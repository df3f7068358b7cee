"""Gated sums over all images of all pairs of atoms, and their slopes, without a network's tape.

    M_i = Σ_j ω(d) σ(z1) ⊙ z2,    z1 ∥ z2 = (A h_i + B h_j) ⊙ D(d),    h_i ← softplus(h_i + tanh(M_i))

A pair (i, j) has many images, but s = A h_i + B h_j is one vector for all of them. A gate σ(s1 y) of any
y = D1(d) is a sum over those at a few fixed y_k (`facetry.nn.gates`), and what stands beside them is a sum of
a few functions ψ of d (`facetry.nn.chebyshev`). So the images enter by moments of their distances alone,

    P_ij = Σ_T ω(d) ψ(d),    M_i = Σ_j s2_ij ⊙ Σ_k σ(s1_ij ⊙ y_k) ⊙ (P_ij U_k),

which all layers and both directions of a pair share: the work does not grow with how many images there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from facetry.nn.chebyshev import LowRank
from facetry.nn.gates import gate_choice, gate_nodes, gate_weights

_SAMPLES = 1025  # where the largest filters are looked for
_COUNTED = 7  # s1 between 0 and the largest, at which messages are compared
_GATES = 20  # tolerance of gates in units of that of filters
_PARTS = 2  # sizes of z tabulated for each factor of 2


class Memory:
    """Buffers by name that grow and are never given back, for steps that repeat."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Float[Tensor, "..."]:
        """A buffer with anything in it, until the name is asked for again."""
        size = 1
        for number in shape:
            size *= number
        buffer = self.kept.get(name)
        if buffer is None or len(buffer) < size:
            self.kept[name] = buffer = self.like.new_empty(size)
        return buffer[:size].view(shape)


@dataclass(frozen=True)
class FrozenLayer:
    """Weights of one layer: `nodes` takes h to a1 ∥ b1 ∥ a2 ∥ b2 with s_ij = a_i + b_j, `inner` and `outer`
    take the basis of the filter to D1 and D2."""

    nodes: Float[Tensor, "channels four_channels"]
    bias: Float[Tensor, " four_channels"]
    inner: Float[Tensor, "channels basis"]
    inner_bias: Float[Tensor, " channels"]
    outer: Float[Tensor, "channels basis"]
    outer_bias: Float[Tensor, " channels"]

    def gates(self, h: Float[Tensor, "atoms channels"]) -> tuple[Tensor, Tensor]:
        """a1 and b1."""
        channels = len(self.nodes)
        a, b, _, _ = torch.addmm(self.bias, h, self.nodes).split(channels, 1)
        return a, b

    def spread(
        self, low: Float[Tensor, " channels"], high: Float[Tensor, " channels"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """|s1| in the middle of all vectors of atoms between `low` and `high`, its standard deviation over
        them, and its largest value."""
        channels = len(self.nodes)
        a, b = self.nodes[:, :channels], self.nodes[:, channels : 2 * channels]
        bias = self.bias[:channels] + self.bias[channels : 2 * channels]
        middle = ((high + low) / 2 @ (a + b) + bias).abs()
        half = (high - low) / 2
        deviation = (half.square() @ (a.square() + b.square()) / 3).sqrt()
        return middle, deviation, middle + half @ (a.abs() + b.abs())


@dataclass(frozen=True)
class GateTable:
    """Gates σ(t_k s1) of one layer and what stands beside them, U_0 beside a gate of 1. `nodes` and `bias`
    are the layer's, but give s1 times the largest |D1|; it holds where that is below `most`."""

    nodes: Float[Tensor, "channels four_channels"]
    bias: Float[Tensor, " four_channels"]
    t: tuple[float, ...]
    constant: Float[Tensor, "rank channels"]
    matrices: tuple[Float[Tensor, "rank channels"], ...]
    most: Float[Tensor, " channels"]


class FilterTables:
    """ψ up to `high` and the tables of all layers, for |s1| up to `bounds`."""

    def __init__(
        self,
        layers: list[FrozenLayer],
        basis: Callable[[Float[Tensor, " points"]], Float[Tensor, "points basis"]],
        high: float,
        bounds: list[Float[Tensor, " channels"]],
        tolerance: float,
        dtype: torch.dtype,
    ) -> None:
        device = bounds[0].device
        samples = basis(torch.linspace(0.0, high, _SAMPLES, dtype=torch.float64, device=device))
        gates = [
            _Gates(layer, samples, bound, tolerance) for layer, bound in zip(layers, bounds, strict=True)
        ]

        def columns(d: Tensor) -> tuple[Tensor, Tensor]:
            phi = basis(d)
            counted, wanted = zip(*(g.columns(phi) for g in gates), strict=True)
            return torch.cat(counted, 1), torch.cat(wanted, 1)

        self.series = LowRank(columns, high, tolerance, dtype, device)
        self.layers: list[GateTable] = []
        blocks = self.series.matrix.split([(len(g.t) + 1) * len(g.top) for g in gates], 1)
        for g, block in zip(gates, blocks, strict=True):
            constant, *matrices = (m.contiguous() for m in block.split(len(g.top), 1))
            scale = g.top.to(dtype)
            scale = torch.cat([scale, scale, torch.ones_like(scale), torch.ones_like(scale)])
            self.layers.append(
                GateTable(
                    g.layer.nodes * scale,
                    g.layer.bias * scale,
                    g.t,
                    constant,
                    tuple(matrices),
                    g.reach.to(dtype),
                )
            )


class _Gates:
    """t_k of a layer, and as functions of d what stands beside them. All channels have the same nodes, as
    many as the largest z = |s1| |D1| asks for; where a channel needs fewer, the others weigh nothing."""

    def __init__(
        self,
        layer: FrozenLayer,
        samples: Float[Tensor, "points basis"],
        bound: Float[Tensor, " channels"],
        tolerance: float,
    ) -> None:
        self.layer = layer
        self.top = (samples @ layer.inner.T + layer.inner_bias).abs().amax(0).clamp(min=1e-6)
        power = torch.ceil(_PARTS * torch.log2((bound * self.top).clamp(min=0.1)))
        self.reach = torch.exp2(power / _PARTS)
        reaches = torch.unique(self.reach).tolist()
        self.t = gate_nodes(reaches[-1], _GATES * tolerance)
        self.groups = [
            (torch.nonzero(self.reach == reach)[:, 0], reach, gate_choice(self.t, reach, _GATES * tolerance))
            for reach in reaches
        ]

    def columns(self, phi: Float[Tensor, "points basis"]) -> tuple[Tensor, Tensor]:
        """Messages over s2 as they should be, for some s1, and the weights of gates of 1 and of all t_k."""
        inner = (phi @ self.layer.inner.T + self.layer.inner_bias) / self.top
        outer = phi @ self.layer.outer.T + self.layer.outer_bias
        some = torch.linspace(1.0, 0.0, _COUNTED, dtype=inner.dtype, device=inner.device)[:, None, None]
        counted = torch.sigmoid(some * self.reach * inner) * outer
        weights = inner.new_zeros((len(self.t), *inner.shape))
        for members, reach, chosen in self.groups:
            part = inner[:, members]
            nodes = part.new_tensor([self.t[k] for k in chosen])
            found = gate_weights(nodes, reach, part.flatten()).view(-1, *part.shape)
            for k, weight in zip(chosen, found, strict=True):
                weights[k, :, members] = weight
        wanted = torch.cat([(0.5 * (1 - weights.sum(0)) * outer)[None], weights * outer])
        return counted.transpose(0, 1).flatten(1), wanted.transpose(0, 1).flatten(1)


@dataclass
class _Kept:
    """What the way back needs of one layer."""

    s2: Tensor
    total: Tensor
    slope: Tensor
    gates: tuple[Tensor, ...]
    t: Tensor
    slope_out: Tensor


class GatedSums:
    """The layers at one configuration: `forward` to the vectors of atoms, `backward` to slopes in the moments
    of pairs. `beyond` says after `forward` whether some s1 were larger than the tables hold for."""

    def __init__(
        self,
        tables: list[GateTable],
        first: Int[Tensor, " pairs"],
        second: Int[Tensor, " pairs"],
        moments: Float[Tensor, "pairs rank"],
        memory: Memory,
    ) -> None:
        self.tables, self.moments, self.memory = tables, moments, memory
        self.center = torch.cat([first, second])
        self.neighbor = torch.cat([second, first])
        self.kept: list[_Kept] = []
        self.largest: list[Tensor] = []

    def forward(self, h: Float[Tensor, "atoms channels"]) -> Float[Tensor, "atoms channels"]:
        (atoms, f), pairs = h.shape, len(self.moments)
        memory, moments = self.memory, self.moments
        scratch, outer = memory.take("scratch", 2, pairs, f), memory.take("outer", pairs, f)
        s1, rows = memory.take("s1", 2, pairs, f), scratch.view(-1, f)
        both, s1_rows = outer.expand(2, pairs, f), s1.view(-1, f)
        gate_slope = torch.ops.aten.sigmoid_backward.grad_input
        for number, table in enumerate(self.tables):
            a1, b1, a2, b2 = torch.addmm(table.bias, h, table.nodes).split(f, 1)
            s2, total, slope, *gates = memory.take(f"layer {number}", 3 + len(table.t), 2, pairs, f).unbind()
            torch.index_select(a1, 0, self.center, out=s1_rows)
            s1_rows += torch.index_select(b1, 0, self.neighbor, out=rows)
            torch.index_select(a2, 0, self.center, out=s2.view(-1, f))
            s2 += torch.index_select(b2, 0, self.neighbor, out=rows).view_as(s2)
            self.largest.append((torch.abs(s1_rows, out=rows).amax(0) / table.most).amax())
            torch.mm(moments, table.constant, out=total[0])
            total[1] = total[0]
            slope.zero_()
            for t, matrix, gate in zip(table.t, table.matrices, gates, strict=True):
                torch.mm(moments, matrix, out=outer)
                torch.mul(s1, t, out=gate).sigmoid_()
                total.addcmul_(gate, both)
                slope.add_(gate_slope(both, gate, grad_input=scratch), alpha=t)
            m = h.new_zeros((atoms, f)).index_add_(0, self.center, torch.mul(s2, total, out=s1).view(-1, f))
            t = torch.sigmoid(2 * m).mul_(2).sub_(1)  # tanh(m), ten times as fast
            below = torch.sigmoid(-(h + t))
            self.kept.append(_Kept(s2, total, slope, tuple(gates), t, 1 - below))
            h = torch.log(below).neg_()  # softplus(h + t)
        return h

    def beyond(self) -> bool:
        """Whether a larger table is needed; where atoms coincide, too."""
        return not bool(torch.stack(self.largest).amax() <= 1)

    def backward(self, by_h: Float[Tensor, "atoms channels"]) -> Float[Tensor, "pairs rank"]:
        """Slopes in the moments of every pair from those in the vectors of atoms."""
        (atoms, f), pairs = by_h.shape, len(self.moments)
        by_moments = torch.zeros_like(self.moments)
        by_message, part = self.memory.take("scratch", 2, pairs, f), self.memory.take("outer", pairs, f)
        for number in reversed(range(len(self.tables))):
            table, kept = self.tables[number], self.kept[number]
            by_x = by_h * kept.slope_out
            by_m = by_x * (1 - kept.t.square())
            torch.index_select(by_m, 0, self.center, out=by_message.view(-1, f))
            q = kept.s2.mul_(by_message)
            one, other = q.unbind()
            by_moments.addmm_(torch.add(one, other, out=part), table.constant.T)
            for matrix, gate in zip(table.matrices, kept.gates, strict=True):
                gate_one, gate_other = gate.unbind()
                torch.mul(one, gate_one, out=part).addcmul_(other, gate_other)
                by_moments.addmm_(part, matrix.T)
            by_h = by_x
            if number:
                by_s1, by_s2 = kept.slope.mul_(q).view(-1, f), kept.total.mul_(by_message).view(-1, f)
                by_nodes = by_h.new_zeros((4, atoms, f))
                by_nodes[0].index_add_(0, self.center, by_s1)
                by_nodes[1].index_add_(0, self.neighbor, by_s1)
                by_nodes[2].index_add_(0, self.center, by_s2)
                by_nodes[3].index_add_(0, self.neighbor, by_s2)
                by_h = torch.addmm(by_h, by_nodes.transpose(0, 1).flatten(1), table.nodes.T)
        return by_moments
