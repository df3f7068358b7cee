"""Tensors in, tensors out: lattices, reduced and primitive cells, and the frames of a crystal."""

from facetry.geometry.frames import continuous_frames, published_frame, tied_frames
from facetry.geometry.frameset import FrameSet
from facetry.geometry.lattice import (
    apply_strain,
    cart_to_frac,
    cell_parameters,
    determinant,
    frac_to_cart,
    inverse,
    lattice_from_parameters,
    metric,
    plane_spacings,
    reciprocal,
    volume,
)
from facetry.geometry.polar import polar
from facetry.geometry.primitive import PrimitiveCells, primitive_cell
from facetry.geometry.reduction import minkowski_reduce, niggli_reduce
from facetry.geometry.ties import Edges, canonical_frames, frame_vector_weights, tie_classes

__all__ = [
    "Edges",
    "FrameSet",
    "PrimitiveCells",
    "apply_strain",
    "canonical_frames",
    "cart_to_frac",
    "cell_parameters",
    "continuous_frames",
    "determinant",
    "frac_to_cart",
    "frame_vector_weights",
    "inverse",
    "lattice_from_parameters",
    "metric",
    "minkowski_reduce",
    "niggli_reduce",
    "plane_spacings",
    "polar",
    "primitive_cell",
    "published_frame",
    "reciprocal",
    "tie_classes",
    "tied_frames",
    "volume",
]
