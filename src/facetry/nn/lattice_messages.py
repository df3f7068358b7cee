"""Messages between the atoms of a supercell with weights for each orbit of pairs (Kaba and Ravanbakhsh 2022).

An edge from atom j in cell c_j to atom i in cell c_i puts v = h_i ∥ h_j ∥ e in the slot of c_j of a signal on
the cells. Two linear maps that commute with the lattice group, each with an activation, lead to the slot of
c_i:

    h_c = swish(W1[col(c_j, c)] v + b1)          m = swish(Σ_c W2[col(c, c_i)] h_c + b2)

h_c is the same for all cells of one orbit, so there are K of them, one for each colour, and

    m = swish(Σ_k A[κ, k] h_k + b2),    A[κ, k] = Σ_l N[κ, k, l] W2[l],    κ the colour of the edge

with N[κ, k, l] the number of differences d of colour k for which d + δ has colour l. W1 v is a sum of a term
for each atom and one for the distance, projected before they are gathered. An edge costs K F numbers and one
product of them with an (K F) x F matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 18  # numbers of hidden rows that exist at once on the CPU
_CHUNK_GPU = 1 << 26


@dataclass(frozen=True)
class EdgeSet:
    """Edges sorted by colour: those of colour k are the rows from bounds[k] to bounds[k + 1]."""

    center: Int[Tensor, " edges"]
    neighbor: Int[Tensor, " edges"]
    row: Int[Tensor, " edges"]  # of the embedded distance
    weight: Float[Tensor, " edges"]  # how many equal edges it stands for
    bounds: list[int]

    def pieces(self, most: int) -> Iterator[tuple[int, slice]]:
        """Colour and rows of stretches of one colour, not longer than `most`."""
        for colour, (first, last) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            for start in range(first, last, most):
                yield colour, slice(start, min(start + most, last))


@dataclass(frozen=True)
class Colours:
    """How the weights of a network's colours make those of one group.

    `mix` has a row for each colour of the group; `numbers` are N[κ, k, l] of the group.
    """

    mix: Float[Tensor, "colours weights"]
    numbers: Float[Tensor, "colours colours colours"]

    @staticmethod
    def of(table: Int[Tensor, "8"], weights: Int[Tensor, "8"]) -> Colours:
        """The group whose colours of differences are `table`, in a network with the colours `weights`, which
        may be finer: then the weights of an orbit are averaged."""
        group = nn.functional.one_hot(torch.unique(table, return_inverse=True)[1]).double()
        finer = nn.functional.one_hot(weights).double()
        size = group.sum(0)
        mix = group.T @ finer / size[:, None]
        member = group.argmax(0)  # a difference of each colour
        cells = torch.arange(8, device=table.device)
        moved = group[cells[None] ^ member[:, None]]  # κ, d, l
        return Colours(mix, torch.einsum("dk,xdl->xkl", group, moved))


def equivariant_weight(colours: int, outputs: int, inputs: int) -> nn.Parameter:
    """Uniform within ±1/√inputs: the eight slots that are summed do not count."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(colours, outputs, inputs).uniform_(-bound, bound))


class _Edgewise(nn.Module):
    """What both edge functions share: the gate, and the sum over edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gate = nn.Linear(channels, 1)

    def _operands(
        self, h: Tensor, e: Tensor, colours: Colours
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Terms of centres, neighbours and distances, the second matrices of the colours, their bias."""
        raise NotImplementedError

    def forward(
        self,
        h: Float[Tensor, "nodes channels"],
        e: Float[Tensor, "rows features"],
        edges: EdgeSet,
        colours: Colours,
    ) -> Float[Tensor, "nodes channels"]:
        """Σ over the edges of a node of σ(w·m + b) m. First derivatives only."""
        u, v, z, matrices, bias = self._operands(h, e, colours)
        gate, shift = self.gate.weight[0].to(u.dtype), self.gate.bias.to(u.dtype)
        keep = torch.is_grad_enabled()
        return _Sum.apply(u, v, z, matrices.to(u.dtype), bias.to(u.dtype), gate, shift, edges, keep).to(
            h.dtype
        )

    def rows(
        self,
        h: Float[Tensor, "nodes channels"],
        e: Float[Tensor, "rows features"],
        edges: EdgeSet,
        colours: Colours,
    ) -> tuple[Float[Tensor, "edges channels"], Float[Tensor, "edges 1"]]:
        """Messages and gates of single edges, for layers that need more than their sum."""
        u, v, z, matrices, bias = self._operands(h, e, colours)
        found = []
        for colour, rows in edges.pieces(len(edges.center) + 1):
            columns, matrix = _of_colour(colour, u, matrices)
            hidden = u[:, columns][edges.center[rows]] + v[:, columns][edges.neighbor[rows]]
            hidden = nn.functional.silu(hidden + z[:, columns][edges.row[rows]])
            found.append(nn.functional.silu(hidden @ matrices[matrix] + bias))
        message = torch.cat(found) if found else h[:0]
        return message, torch.sigmoid(self.gate(message))


class LatticeMessages(_Edgewise):
    """The two-layer function above. Parameters: K (F (2F + features) + F²) + 2F, and F + 1 of the gate."""

    def __init__(self, colours: int, channels: int, features: int) -> None:
        super().__init__(channels)
        inputs = 2 * channels + features
        self.inner = equivariant_weight(colours, channels, inputs)
        self.inner_bias = nn.Parameter(torch.empty(channels))
        self.outer = equivariant_weight(colours, channels, channels)
        self.outer_bias = nn.Parameter(torch.empty(channels))
        nn.init.uniform_(self.inner_bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        nn.init.uniform_(self.outer_bias, -1 / math.sqrt(channels), 1 / math.sqrt(channels))

    def _operands(
        self, h: Tensor, e: Tensor, colours: Colours
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        f = self.channels
        mix, numbers = colours.mix.to(self.inner), colours.numbers.to(self.inner)
        inner = torch.einsum("kl,lfi->kfi", mix, self.inner)
        outer = torch.einsum("kl,lfi->kfi", mix, self.outer)
        # A[κ] takes the rows of all h_k side by side
        matrices = torch.einsum("xkl,lfi->xkif", numbers, outer).flatten(1, 2)
        bias = self.inner_bias.repeat(len(mix))
        linear = nn.functional.linear
        u = linear(h, inner[:, :, :f].flatten(0, 1), bias)
        v = linear(h, inner[:, :, f : 2 * f].flatten(0, 1))
        z = linear(e, inner[:, :, 2 * f :].flatten(0, 1))
        return u, v, z, matrices, self.outer_bias


class ColourMessages(_Edgewise):
    """A function of one hidden layer for each colour of an edge, with a second matrix that all share:
    m = swish(W2 swish(W1[κ] v + b1[κ]) + b2), the reading of the appendix of Kaba and Ravanbakhsh 2022.

    With `kinds=2` edges between images of one atom have first matrices of their own; their colours come after
    the others.
    """

    def __init__(self, colours: int, channels: int, features: int, kinds: int) -> None:
        super().__init__(channels)
        self.kinds = kinds
        inputs = 2 * channels + features
        self.inner = equivariant_weight(kinds * colours, channels, inputs)
        self.inner_bias = nn.Parameter(torch.empty(kinds * colours, channels))
        nn.init.uniform_(self.inner_bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.outer = nn.Linear(channels, channels)

    def _operands(
        self, h: Tensor, e: Tensor, colours: Colours
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        f = self.channels
        mix = torch.block_diag(*[colours.mix.to(self.inner)] * self.kinds)
        inner = torch.einsum("kl,lfi->kfi", mix, self.inner)
        bias = (mix @ self.inner_bias).flatten()
        linear = nn.functional.linear
        u = linear(h, inner[:, :, :f].flatten(0, 1), bias)
        v = linear(h, inner[:, :, f : 2 * f].flatten(0, 1))
        z = linear(e, inner[:, :, 2 * f :].flatten(0, 1))
        return u, v, z, self.outer.weight.T[None], self.outer.bias


def _of_colour(colour: int, u: Tensor, matrices: Tensor) -> tuple[slice, int]:
    """Columns of the hidden rows that an edge of a colour has, and the number of its matrix: all columns and
    a matrix of its own, or columns of its own and the only matrix."""
    width = matrices.shape[1]
    if width == u.shape[1]:
        return slice(None), min(colour, len(matrices) - 1)
    return slice(colour * width, (colour + 1) * width), 0


class _Sum(torch.autograd.Function):
    """Gated sum of messages over the edges of each node, in stretches of edges that fit the cache.

    The K F hidden numbers of an edge are not kept but made again on the way back; the F that follow are kept,
    which saves a quarter of the products.
    """

    @staticmethod
    def forward(
        ctx,
        u: Tensor,
        v: Tensor,
        z: Tensor,
        matrices: Tensor,
        bias: Tensor,
        gate: Tensor,
        shift: Tensor,
        edges: EdgeSet,
        keep: bool,
    ) -> Tensor:
        kept = u.new_empty((len(edges.center) if keep else 0, len(bias)))
        ctx.save_for_backward(u, v, z, matrices, bias, gate, shift, kept)
        ctx.edges = edges
        exact = torch.promote_types(u.dtype, torch.float32)
        total = torch.zeros((len(u), len(bias)), dtype=exact, device=u.device)
        with torch.autocast(u.device.type, enabled=False):
            for colour, rows in edges.pieces(_stretch(u, matrices)):
                hidden, matrix = _hidden(u, v, z, matrices, edges, colour, rows)
                m = torch.addmm(bias, nn.functional.silu(hidden, inplace=True), matrix)
                if keep:
                    kept[rows] = m
                m = nn.functional.silu(m, inplace=True)
                scale = torch.sigmoid(m @ gate + shift) * edges.weight[rows].to(m)
                total.index_add_(0, edges.center[rows], m.mul_(scale[:, None]).to(exact))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, v, z, matrices, bias, gate, shift, kept = ctx.saved_tensors
        edges = ctx.edges
        exact = torch.promote_types(u.dtype, torch.float32)
        by_u, by_v, by_z, by_matrices, by_bias, by_gate, by_shift = (
            torch.zeros(t.shape, dtype=exact, device=t.device) for t in (u, v, z, matrices, bias, gate, shift)
        )
        with torch.autocast(u.device.type, enabled=False):
            for colour, rows in edges.pieces(_stretch(u, matrices)):
                columns, number = _of_colour(colour, u, matrices)
                hidden, matrix = _hidden(u, v, z, matrices, edges, colour, rows)
                s = torch.sigmoid(hidden)
                h = hidden.mul_(s)  # swish, and its slope s + h (1 - s)
                t = torch.sigmoid(kept[rows])
                m = kept[rows] * t
                g = torch.sigmoid(m @ gate + shift)
                weight = edges.weight[rows].to(m)
                incoming = gradient.index_select(0, edges.center[rows]).to(m)
                incoming.mul_(weight[:, None])
                by_g = (incoming * m).sum(1) * g * (1 - g)
                by_gate += by_g @ m
                by_shift += by_g.sum()
                by_m = incoming.mul_(g[:, None]).addr_(by_g, gate)
                by_y = by_m.mul_(t + m * (1 - t))
                by_bias += by_y.sum(0)
                by_matrices[number].addmm_(h.T.to(exact), by_y.to(exact))
                slope = s + h.mul_(1 - s)
                by_hidden = (by_y @ matrix.T).mul_(slope).to(exact)
                by_u[:, columns].index_add_(0, edges.center[rows], by_hidden)
                by_v[:, columns].index_add_(0, edges.neighbor[rows], by_hidden)
                by_z[:, columns].index_add_(0, edges.row[rows], by_hidden)
        found = (by_u, by_v, by_z, by_matrices, by_bias, by_gate, by_shift)
        return (*(x.to(t.dtype) for x, t in zip(found, ctx.saved_tensors, strict=False)), None, None)


def _stretch(u: Tensor, matrices: Tensor) -> int:
    """Edges worked on at once: few for the cache, enough for fast products."""
    return max(600, (_CHUNK if u.device.type == "cpu" else _CHUNK_GPU) // matrices.shape[1])


def _hidden(
    u: Tensor, v: Tensor, z: Tensor, matrices: Tensor, edges: EdgeSet, colour: int, rows: slice
) -> tuple[Tensor, Tensor]:
    """W1 v + b1 of some edges of one colour, and the matrix that follows."""
    columns, number = _of_colour(colour, u, matrices)
    hidden = u[:, columns].index_select(0, edges.center[rows])
    hidden += v[:, columns].index_select(0, edges.neighbor[rows])
    hidden += z[:, columns].index_select(0, edges.row[rows])
    return hidden, matrices[number]
