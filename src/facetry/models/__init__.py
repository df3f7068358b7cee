"""One paper, one file; a new model is one file here and one line in MODELS."""

from __future__ import annotations

from facetry.card import ModelCard, Target
from facetry.models.base import PropertyModel, Symmetry
from facetry.models.cgcnn import CGCNN
from facetry.models.comformer import EComFormer, IComFormer
from facetry.models.crystalframer import Crystalformer, CrystalFramer
from facetry.models.ecn import ECN, EquivariantECN
from facetry.models.megnet import MEGNet
from facetry.models.schnet import SchNet

MODELS: dict[str, type[PropertyModel]] = {
    "icomformer": IComFormer,
    "ecomformer": EComFormer,
    "crystalformer": Crystalformer,
    "crystalframer": CrystalFramer,
    "cgcnn": CGCNN,
    "ecn": ECN,
    "megnet": MEGNet,
    "schnet": SchNet,
}

__all__ = [
    "CGCNN",
    "ECN",
    "MODELS",
    "CrystalFramer",
    "Crystalformer",
    "EComFormer",
    "EquivariantECN",
    "IComFormer",
    "MEGNet",
    "ModelCard",
    "PropertyModel",
    "SchNet",
    "Symmetry",
    "Target",
]
