"""One paper, one file; a new model is one file here and one line in MODELS."""

from __future__ import annotations

from facetry.card import ModelCard, Target
from facetry.models.base import PropertyModel, Symmetry
from facetry.models.comformer import EComFormer, IComFormer
from facetry.models.crystalframer import Crystalformer, CrystalFramer

MODELS: dict[str, type[PropertyModel]] = {
    "icomformer": IComFormer,
    "ecomformer": EComFormer,
    "crystalformer": Crystalformer,
    "crystalframer": CrystalFramer,
}

__all__ = [
    "MODELS",
    "CrystalFramer",
    "Crystalformer",
    "EComFormer",
    "IComFormer",
    "ModelCard",
    "PropertyModel",
    "Symmetry",
    "Target",
]
