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

from facetry.nn.segment import segment_sum


class Message(nn.Module):
    """Linear(3 C → C), SiLU, Linear(C → C): what an edge makes of two atoms and itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * channels, channels)
        self.out = nn.Linear(channels, channels)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three C × C blocks of the first Linear, one for each concatenated input."""
        first, second, third = self.mix.weight.chunk(3, dim=1)
        return first, second, third


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
        scale = 1 / math.sqrt(x.shape[1])
        key = self._hidden(self.key_message, self.key, x, f, row, center, neighbor)
        key = self.key_message.out(silu(key))
        query = (self.query(x) * scale).index_select(0, center)
        gate = torch.sigmoid(self.gate_norm(query * key))
        value = self._hidden(self.value_message, self.value, x, f, row, center, neighbor)
        message = gate * self.value_message.out(silu(value))
        if weight is not None:
            message = message * weight.to(message.dtype)[:, None]
        total = segment_sum(message, center, len(x))
        return softplus(x + self.norm(self.concat(total)))

    def _hidden(
        self,
        message: Message,
        project: nn.Linear,
        x: Float[Tensor, "atoms channels"],
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"] | None,
        center: Int[Tensor, " edges"],
        neighbor: Int[Tensor, " edges"],
    ) -> Float[Tensor, "edges channels"]:
        to_center, to_neighbor, to_edge = message.parts()
        projected = project(x)
        bias = message.mix.bias + to_edge @ self.edge.bias
        edges = linear(f, to_edge @ self.edge.weight, bias)
        if row is not None:
            edges = edges.index_select(0, row)
        edges = edges + linear(projected, to_center).index_select(0, center)
        return edges + linear(projected, to_neighbor).index_select(0, neighbor)


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
        edges, channels = len(row), f.shape[1]
        scale = 1 / math.sqrt(channels)
        key = self._hidden(self.key_message, self.key, self.lattice_key, f, row, lengths, frame, angles, cosine)
        key = self.key_message.out(silu(key))
        query = (self.query(f) * scale).index_select(0, row)
        gated = (key.view(edges, 3, channels) * query[:, None]).view(3 * edges, channels)
        gate = torch.sigmoid(self.gate_norm(gated))
        value = self._hidden(
            self.value_message, self.value, self.lattice_value, f, row, lengths, frame, angles, cosine
        )
        message = gate * self.value_message.out(silu(value))
        total = message.view(edges, 3, channels).sum(1)
        # the bias of `concat` counts once for each of the three lattice vectors
        update = linear(total, self.concat.weight, 3 * self.concat.bias)
        return softplus(f.index_select(0, row) + self.norm(update))

    def _hidden(
        self,
        message: Message,
        project: nn.Linear,
        lattice_project: nn.ModuleList,
        f: Float[Tensor, "rows channels"],
        row: Int[Tensor, " edges"],
        lengths: Float[Tensor, "frames 3 channels"],
        frame: Int[Tensor, " edges"],
        angles: Float[Tensor, "cosines channels"],
        cosine: Int[Tensor, "edges 3"],
    ) -> Float[Tensor, "edges3 channels"]:
        to_edge, to_lattice, to_angle = message.parts()
        bias = message.mix.bias + to_edge @ project.bias
        edges = linear(f, to_edge @ project.weight, bias).index_select(0, row)
        lattice = torch.stack(
            [linear(p(lengths[:, m]), to_lattice) for m, p in enumerate(lattice_project)], 1
        ).index_select(0, frame)
        angle = linear(angles, to_angle @ self.angle.weight).index_select(0, cosine.reshape(-1))
        hidden = angle.view(len(row), 3, -1) + lattice + edges[:, None]
        return hidden.view(3 * len(row), -1)
