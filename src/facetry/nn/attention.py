"""ComFormer's two transformer layers: over the edges of an atom, over the lattice vectors of an edge.

A Linear of a concatenation is a sum of Linears, and a Linear of a Linear is one Linear. So what belongs to
atoms is projected per atom, what belongs to the crystal per crystal, and only the rest per edge:

    M(k_i ∥ k_j ∥ ε) = W₁ k_i + W₂ k_j + W₃ (W_e f + b_e) + b        W₃ W_e is multiplied out once a step

Values are the published formula's up to rounding; `tests/reference` holds the plain formula in float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

_CHUNK = 4096  # edges evaluated at once: their intermediate rows stay in the processor's cache


class Message(nn.Module):
    """Linear(3 C → C), SiLU, Linear(C → C): what an edge makes of two atoms and itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * channels, channels)
        self.out = nn.Linear(channels, channels)

    def parts(self) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c c"], Float[Tensor, "c c"]]:
        """The three C × C blocks of the first Linear, one for each concatenated input."""
        first, second, third = self.mix.weight.chunk(3, dim=1)
        return first, second, third


def _slices(layer: nn.Module, edges: int) -> list[slice]:
    """All edges at once in training, where the batch norm needs them; else pieces that fit the cache."""
    if layer.training or torch.is_grad_enabled():
        return [slice(0, edges)]
    return [slice(first, min(first + _CHUNK, edges)) for first in range(0, edges, _CHUNK)]


class NodewiseTransformer(nn.Module):
    """Gated attention of an atom over its edges, without softmax (Yan 2024, Eq. 3 to 5).

    q, k, v are Linear(x), ε = Linear(f); K = M_k(k_i ∥ k_j ∥ ε), V = M_v(v_i ∥ v_j ∥ ε);
    x'_i = softplus(x_i + BN(Linear(Σ sigmoid(BN(q_i ⊙ K / √C)) ⊙ V))). The sum is not normalised by degree.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.edge = nn.Linear(channels, channels)
        self.key_message = Message(channels)
        self.value_message = Message(channels)
        self.gate_norm = nn.BatchNorm1d(channels)
        self.concat = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels)

    def forward(
        self,
        x: Float[Tensor, "atoms channels"],
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"] | None,
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
        weight: Float[Tensor, " edges"] | None,
    ) -> Float[Tensor, "atoms channels"]:
        """`row` names the row of `f` that an edge reads (None: edge e reads row e)."""
        query = self.query(x) / math.sqrt(x.shape[1])
        key_parts = self._project(self.key_message, self.key, x)
        value_parts = self._project(self.value_message, self.value, x)
        if row is not None:  # few distinct rows: project them all, then gather
            key_edges = linear(f, *key_parts[2:])
            value_edges = linear(f, *value_parts[2:])
        total = query.new_zeros(query.shape, dtype=torch.promote_types(query.dtype, torch.float32))
        for part in _slices(self, len(center)):
            i, j = center[part], neighbor[part]
            if row is None:
                of_key, of_value = linear(f[part], *key_parts[2:]), linear(f[part], *value_parts[2:])
            else:
                of_key = key_edges.index_select(0, row[part])
                of_value = value_edges.index_select(0, row[part])
            key = of_key + key_parts[0].index_select(0, i) + key_parts[1].index_select(0, j)
            key = self.key_message.out(silu(key))
            gate = torch.sigmoid(self.gate_norm(query.index_select(0, i) * key))
            value = of_value + value_parts[0].index_select(0, i) + value_parts[1].index_select(0, j)
            message = gate * self.value_message.out(silu(value))
            if weight is not None:
                message = message * weight[part].to(message.dtype)[:, None]
            total = total.index_add(0, i, message.to(total.dtype))  # bfloat16 sums lose edges
        return softplus(x + self.norm(self.concat(total)))

    def _project(
        self, message: Message, project: nn.Linear, x: Float[Tensor, "atoms channels"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A message's first Linear taken apart: rows for centres, rows for neighbours, and the weight and
        bias that act on the edge's features."""
        to_center, to_neighbor, to_edge = message.parts()
        projected = project(x)
        bias = message.mix.bias + to_edge @ self.edge.bias
        return linear(projected, to_center), linear(projected, to_neighbor), to_edge @ self.edge.weight, bias


class EdgewiseTransformer(nn.Module):
    """Attention of an edge over the lattice vectors e1, e2, e3 (Yan 2024, Eq. 6 to 8).

    q, k, v are Linear(f); for each m: k^m, v^m are Linear_m(λ_m), θ^m = W_θ a_m without bias,
    K^m = M_k(k ∥ k^m ∥ θ^m), V^m = M_v(v ∥ v^m ∥ θ^m);
    f' = softplus(f + BN(Σ_m Linear(sigmoid(BN(q ⊙ K^m / √C)) ⊙ V^m))).
    The reference code also holds 74 080 parameters that nothing reads; they are left out here.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.lattice_key = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))
        self.lattice_value = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))
        self.angle = nn.Linear(channels, channels, bias=False)
        self.key_message = Message(channels)
        self.value_message = Message(channels)
        self.gate_norm = nn.BatchNorm1d(channels)
        self.concat = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels)

    def forward(
        self,
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"],
        lengths: Float[Tensor, "frames 3 channels"],
        frame: Int[Tensor, " edges"],
        angles: Float[Tensor, "cosines channels"],
        cosine: Int[Tensor, "edges 3"],
    ) -> Float[Tensor, "edges channels"]:
        """`row`, `frame`, `cosine` name the rows of `f`, `lengths` and `angles` that an edge reads."""
        channels = f.shape[1]
        query = self.query(f) / math.sqrt(channels)
        key_parts = self._project(self.key_message, self.key, self.lattice_key, f, lengths, angles)
        value_parts = self._project(self.value_message, self.value, self.lattice_value, f, lengths, angles)
        out = []
        for part in _slices(self, len(row)):
            where = (row[part], frame[part], cosine[part])
            key = self.key_message.out(silu(_gather(key_parts, *where)))
            gated = key.view(-1, 3, channels) * query.index_select(0, where[0])[:, None]
            gate = torch.sigmoid(self.gate_norm(gated.view(-1, channels)))
            message = gate * self.value_message.out(silu(_gather(value_parts, *where)))
            total = message.view(-1, 3, channels).sum(1)
            # the bias of `concat` counts once for each of the three lattice vectors
            update = linear(total, self.concat.weight, 3 * self.concat.bias)
            out.append(softplus(f.index_select(0, where[0]) + self.norm(update)))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _project(
        self,
        message: Message,
        project: nn.Linear,
        lattice_project: nn.ModuleList,
        f: Float[Tensor, "rows channels"],
        lengths: Float[Tensor, "frames 3 channels"],
        angles: Float[Tensor, "cosines channels"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A message's first Linear taken apart: rows for edges, for lattice vectors, for cosines."""
        to_edge, to_lattice, to_angle = message.parts()
        bias = message.mix.bias + to_edge @ project.bias
        lattice = torch.stack(
            [linear(p(lengths[:, m]), to_lattice) for m, p in enumerate(lattice_project)], 1
        )
        edges = linear(f, to_edge @ project.weight, bias)
        return edges, lattice, linear(angles, to_angle @ self.angle.weight)


def _gather(
    parts: tuple[Tensor, Tensor, Tensor],
    row: Int[Tensor, " edges"],
    frame: Int[Tensor, " edges"],
    cosine: Int[Tensor, "edges 3"],
) -> Float[Tensor, "edges3 channels"]:
    edges, lattice, angles = parts
    hidden = angles.index_select(0, cosine.reshape(-1)).view(len(row), 3, -1)
    hidden = hidden + lattice.index_select(0, frame) + edges.index_select(0, row)[:, None]
    return hidden.view(3 * len(row), -1)
