"""Crystalformer and CrystalFramer: attention over all periodic images, in frames that follow it.

Taniai, Igarashi, Suzuki, Chiba, Saito, Ushiku, Ono: Crystalformer: infinitely connected attention for
periodic structure encoding, ICLR 2024 (arXiv 2403.11686).
Ito, Taniai, Igarashi, Ushiku, Ono: Rethinking the role of frames for SE(3)-invariant crystal structure
modeling, ICLR 2025 (arXiv 2503.02209).

    elements ─► [ x + attention over images ─► x + feed-forward ] × blocks ─► mean over atoms ─► head
                        ▲            ▲
    distances ──────────┘            │
    directions ─► cosines with the axes of a frame, chosen by each head's attention   (CrystalFramer)

Departures from the published code: images within a sphere instead of a cell-shaped box, in the primitive
cell, so that no description of the crystal matters; the statistics of the tail length are measured by an
explicit `calibrate` (training does it with its first batch) and never in evaluation; tied frames are
averaged in evaluation and drawn from a seeded generator in training instead of being decided by noise; no
Gaussian is cut off; gradients reach positions and lattice, and those of weights are exact for every scale.
`construction="published"` takes the published boxes again, of images and waves, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from facetry.crystal import Crystal
from facetry.graph.batch import Batch
from facetry.graph.builders import Builder
from facetry.graph.spheres import Box, Sphere
from facetry.models.base import PooledModel, Symmetry
from facetry.nn.angular import AngularBasis
from facetry.nn.dynamic_frames import FRAMES, Axes, Frames, Part
from facetry.nn.lattice_attention import (
    BOX_MARGIN,
    LARGEST_WIDTH,
    NARROWEST_FOURIER,
    LatticeAttention,
    LatticeBlock,
    surroundings,
    t_fixup,
)
from facetry.nn.reciprocal import plane_waves, wave_cutoff
from facetry.nn.segment import segment_mean, segment_sum

Construction = Literal["sphere", "published"]
ELEMENTS = 98
ANGLES = {  # basis, and the scale of distances beside it (Ito 2025, Appendix)
    "default": (AngularBasis(size=64, width=4.0, scale=1.0), 1.0),
    "lightweight": (AngularBasis(size=16, width=1.0, scale=6.0), 1.5),
}


@dataclass(frozen=True)
class LayerLook:
    """What one layer looked at: attention on every edge of the batch's graph, and the frames.

    `heads` are those that sum in real space; heads in reciprocal space see atoms, not edges.

    Weights of one atom's edges sum to one, as do those of one atom's and head's tied frames. Rows of `axes`
    are e1, e2, e3 (Cartesian); one that is zero does not exist. Without frames the three are empty.
    """

    attention: Float[Tensor, "edges heads"]
    owner: Int[Tensor, " frames"]  # atom · heads + head
    axes: Float[Tensor, "frames 3 3"]
    weight: Float[Tensor, " frames"]


@dataclass(frozen=True)
class Look:
    """One forward pass: what it gave and what its layers looked at, first layer first."""

    output: Float[Tensor, "crystals outputs"]
    embedding: Float[Tensor, "crystals channels"]
    layers: list[LayerLook]


class _Watcher:
    """Collects what one layer shows, part by part."""

    def __init__(self, edges: int, attention: LatticeAttention) -> None:
        self.heads = attention.real_heads
        self.attention = attention.score.new_zeros((edges, self.heads))
        self.frames: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, part: Part, p: Tensor, axes: Axes | None) -> None:
        self.attention[part.entry[part.present]] = p.detach().transpose(1, 2)[part.present]
        if axes is not None:
            row = torch.div(axes.owner, self.heads, rounding_mode="floor")
            owner = part.atom[row] * self.heads + axes.owner % self.heads
            self.frames.append((owner, axes.vectors.detach(), axes.weight.detach()))

    def seen(self) -> LayerLook:
        like = self.attention
        none = (like.new_zeros(0).long(), like.new_zeros((0, 3, 3)), like.new_zeros(0))
        owner, axes, weight = (torch.cat(t) for t in zip(*(self.frames or [none]), strict=True))
        order = torch.argsort(owner, stable=True)
        return LayerLook(self.attention, owner[order], axes[order], weight[order])


class _LatticeTransformer(PooledModel):
    """What both share: embedding, blocks, readout, calibration."""

    accepts_disorder = True

    def __init__(
        self,
        outputs: int,
        blocks: int,
        channels: int,
        heads: int,
        reach: float,
        angles: AngularBasis | None = None,
        distance_scale: float = 1.0,
        frames: Frames | None = None,
        positions: bool = True,
        fourier_heads: Sequence[int] = (),
        construction: str = "sphere",
    ) -> None:
        super().__init__()
        for what, number in (("block", blocks), ("channel", channels), ("head", heads)):
            if number < 1:
                raise ValueError(f"{self.name}: expected at least one {what}, came {number}")
        if not reach > 0:
            raise ValueError(f"{self.name}: expected a reach above 0 (in longest tails), came {reach}")
        self.outputs, self.channels = outputs, channels
        if construction not in ("sphere", "published"):
            raise ValueError(
                f"{self.name}: expected construction of sphere, published, came {construction!r}"
            )
        self.frames = frames
        self._box = None if construction == "sphere" else reach  # of images, in tail lengths
        wanted = frames.sphere if frames is not None else {}
        self.graph: Builder = Sphere(reach * LARGEST_WIDTH, heaviest=ELEMENTS, **wanted)
        if construction == "published":
            cutoff = reach * LARGEST_WIDTH + BOX_MARGIN
            self.graph = Box(cutoff, wanted.get("lattice_frames", False), heaviest=ELEMENTS)
        self.elements = nn.Parameter(torch.empty(ELEMENTS, channels))
        self.blocks = nn.ModuleList(
            LatticeBlock(
                LatticeAttention(
                    channels,
                    heads,
                    distance_scale=distance_scale,
                    angles=angles,
                    frames=frames,
                    positions=positions,
                    fourier_heads=fourier,
                ),
                channels,
            )
            for fourier in fourier_heads or [0] * blocks
        )
        self._fourier = any(fourier_heads)
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, outputs)
        nn.init.normal_(self.elements, std=channels**-0.5 * (9 * blocks) ** -0.25)
        t_fixup(list(self.blocks))
        self._generator: torch.Generator | None = None

    @property
    def symmetry(self) -> Symmetry:
        """The published box belongs to the cell and to the images of the atoms that were given."""
        given = self._box is not None
        return Symmetry(lattice_basis=not given, supercell=not given)

    @property
    def calibrated(self) -> bool:
        """Whether the statistics of all tail lengths have been measured."""
        return bool(torch.stack([b.attention.deviation for b in self.blocks]).min() > 0)

    def calibrate(self, crystals: Sequence[Crystal]) -> None:
        """Measures the statistics of the tail lengths on some crystals, a training batch or so, in place of
        what was there; they stay fixed from then on and are saved with the weights."""
        with torch.no_grad():
            self._atoms(self.graph(crystals).to(self.device), None, measure=True)

    def training_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch as it is; the first one calibrates, and the generator draws tied frames in the next pass
        instead of their average: of a training step, or of a quick validation."""
        if not self.calibrated:
            with torch.no_grad():
                self._atoms(batch, None, measure=True)
        self._generator = generator
        return batch

    def embed_atoms(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        if not self.calibrated:
            raise ValueError(
                f"{self.name}: the tail lengths of this untrained model have no statistics yet; call"
                " model.calibrate(crystals) with some crystals of the training set, or train it"
            )
        generator, self._generator = self._generator, None
        return self._atoms(batch, generator)

    def _atoms(
        self, batch: Batch, generator: torch.Generator | None, measure: bool = False
    ) -> Float[Tensor, "atoms channels"]:
        around = surroundings(batch, self.dtype, self.frames, generator, self._box)
        if self._fourier:
            cutoff = wave_cutoff(NARROWEST_FOURIER) if self._box is None else None
            waves = plane_waves(batch, cutoff, self.dtype)
            around = replace(around, waves=waves)
        x = self._embedded(batch)
        for block in self.blocks:
            x = block(x, around, generator, measure)
        return x

    def _embedded(self, batch: Batch) -> Float[Tensor, "atoms channels"]:
        """A row of the element table for each atom; Σ share · row of its species where sites are mixed, so
        that a vacancy counts as zero."""
        composition = batch.composition
        element = batch.atomic_numbers if composition is None else composition.atomic_numbers
        wrong = sorted({int(z) for z in element[(element < 1) | (element > ELEMENTS)]})
        if wrong:
            raise ValueError(
                f"{self.name}: expected elements 1 (H) to {ELEMENTS} (Cf), came atomic numbers {wrong};"
                " leave these crystals out or use another model"
            )
        rows = self.elements.index_select(0, element - 1)
        if composition is None:
            return rows
        rows = rows * composition.share.to(rows.dtype)[:, None]
        return segment_sum(rows, composition.site, len(batch.frac_coords))

    def embed(self, batch: Batch) -> Float[Tensor, "crystals channels"]:
        atoms = self.embed_atoms(batch)
        if batch.composition is None:
            return segment_mean(atoms, batch.crystal_index, len(batch))
        # the mean over atoms, not over sites: half an atom counts half
        there = batch.composition.occupancy().to(atoms.dtype)[:, None]
        total, count = (segment_sum(t, batch.crystal_index, len(batch)) for t in (atoms * there, there))
        return total / count

    def outputs_of(self, pooled: Float[Tensor, "crystals channels"]) -> Float[Tensor, "crystals outputs"]:
        return self.out(torch.relu(self.hidden(pooled)))

    def look(self, batch: Batch) -> Look:
        """`forward_with_embedding`, with the attention and the frames of every layer."""
        layers = [block.attention for block in self.blocks]
        watchers = [_Watcher(len(batch.require_graph()), layer) for layer in layers]
        try:
            for layer, watcher in zip(layers, watchers, strict=True):
                layer.watcher = watcher
            output, embedding = self.forward_with_embedding(batch)
        finally:
            for layer in layers:
                layer.watcher = None
        return Look(output, embedding, [watcher.seen() for watcher in watchers])


class Crystalformer(_LatticeTransformer):
    """Attention whose Gaussian tails cover all periodic images (Taniai 2024).

    Defaults are the published network, 853 505 parameters; `blocks=8` has 1 677 825. `reach` is the radius
    of the sphere of images in units of the longest tail, 1.98 Å; beyond 5 nothing changes in the ninth digit.

    `reciprocal` lets half of the heads of each block ("heads") or all heads of every second block ("blocks")
    sum over images in reciprocal space, with longer tails, at least 1.56 Å: 837 121 parameters (`blocks=8`:
    1 645 057), because values carry no positions there. Waves fill a sphere, where the published code takes
    a box of indices, and the floor of the sums is an addend, so that nothing depends on the cell.
    `value_positions=False` is the paper's simplified model, values without positions: 820 737 (1 612 289).

    Invariant under rotation, reflection, translation, atom order, choice of cell and supercell. Must be
    calibrated before use: `calibrate`, or training.
    """

    name = "crystalformer"

    def __init__(
        self,
        outputs: int = 1,
        *,
        blocks: int = 4,
        channels: int = 128,
        heads: int = 8,
        reach: float = 3.5,
        reciprocal: Literal["none", "heads", "blocks"] = "none",
        value_positions: bool = True,
        construction: Construction = "sphere",
    ) -> None:
        fourier_heads: Sequence[int] = ()
        if reciprocal == "heads":
            if heads < 2:
                raise ValueError(f"{self.name}: reciprocal='heads' needs two heads or more, came {heads}")
            fourier_heads = [heads // 2] * blocks
        elif reciprocal == "blocks":
            if blocks < 2:
                raise ValueError(f"{self.name}: reciprocal='blocks' needs two blocks or more, came {blocks}")
            fourier_heads = [heads * (n % 2) for n in range(blocks)]
        elif reciprocal != "none":
            raise ValueError(f"{self.name}: expected reciprocal of none, heads, blocks, came {reciprocal!r}")
        super().__init__(
            outputs,
            blocks,
            channels,
            heads,
            reach,
            positions=value_positions,
            fourier_heads=fourier_heads,
            construction=construction,
        )


class CrystalFramer(_LatticeTransformer):
    """Crystalformer with directions, seen in a frame for each atom, head and layer (Ito 2025).

    Defaults are the published network, 951 809 parameters (8 blocks: 1 874 433); `angles="lightweight"` has
    878 081 (1 726 977). `frames` are the classes of `facetry.nn.dynamic_frames`.

    Invariant under rotation, translation, atom order, choice of cell and supercell; "pca" frames depend on
    the cell and on the images that are listed. "max", "continuous", "static" and "lattice" frames tell mirror
    images apart, except where every site has a two-fold axis across e3, as in trigonal Te: the bases see one
    axis at a time, and there e3 and -e3 look alike; "lattice" frames neither where right angles leave signs
    open. Not continuous where the choice of a frame changes, but with "continuous" frames. Must be calibrated
    before use: `calibrate`, or training.
    """

    name = "crystalframer"

    def __init__(
        self,
        outputs: int = 1,
        *,
        blocks: int = 4,
        channels: int = 128,
        heads: int = 8,
        reach: float = 3.5,
        frames: Literal["max", "continuous", "static", "weighted_pca", "pca", "lattice"] = "max",
        angles: Literal["default", "lightweight"] = "default",
        construction: Construction = "sphere",
    ) -> None:
        for what, given, known in (("frames", frames, FRAMES), ("angles", angles, ANGLES)):
            if given not in known:
                raise ValueError(f"crystalframer: expected {what} of {', '.join(known)}, came {given!r}")
        basis, distance_scale = ANGLES[angles]
        super().__init__(
            outputs,
            blocks,
            channels,
            heads,
            reach,
            basis,
            distance_scale,
            FRAMES[frames](),
            construction=construction,
        )

    @property
    def symmetry(self) -> Symmetry:
        assert self.frames is not None
        any_cell = self._box is None and not self.frames.sees_cell
        return Symmetry(lattice_basis=any_cell, supercell=any_cell, reflection=not self.frames.sees_hands)
