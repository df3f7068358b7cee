"""One paper, one file; a new model is one file here and one line in MODELS."""

from __future__ import annotations

from typing import Literal

from facetry.card import ModelCard, Target
from facetry.models.base import EnergyModel, LatticeModel, Model, PropertyModel, Relaxation, Symmetry
from facetry.models.cgcnn import CGCNN
from facetry.models.comformer import EComFormer, IComFormer
from facetry.models.continuousp import ContinuouSP
from facetry.models.continuousp_angular import AngularContinuouSP
from facetry.models.crystalframer import Crystalformer, CrystalFramer
from facetry.models.ecn import ECN, EquivariantECN
from facetry.models.empnn import EMPNN, FeedForward
from facetry.models.megnet import MEGNet
from facetry.models.schnet import SchNet

MODELS: dict[str, type[Model]] = {
    "icomformer": IComFormer,
    "ecomformer": EComFormer,
    "crystalformer": Crystalformer,
    "crystalframer": CrystalFramer,
    "cgcnn": CGCNN,
    "ecn": ECN,
    "megnet": MEGNet,
    "schnet": SchNet,
    "empnn": EMPNN,
    "lattice_ff": FeedForward,
    "continuousp": ContinuouSP,
    "continuousp_angular": AngularContinuouSP,
}


def of_job(job: Literal["predict", "relax", "generate"]) -> dict[str, type[Model]]:
    """The models of one job, by name."""
    return {name: model for name, model in MODELS.items() if model.job == job}


__all__ = [
    "CGCNN",
    "ECN",
    "EMPNN",
    "MODELS",
    "AngularContinuouSP",
    "ContinuouSP",
    "CrystalFramer",
    "Crystalformer",
    "EComFormer",
    "EnergyModel",
    "EquivariantECN",
    "FeedForward",
    "IComFormer",
    "LatticeModel",
    "MEGNet",
    "Model",
    "ModelCard",
    "PropertyModel",
    "Relaxation",
    "SchNet",
    "Symmetry",
    "Target",
    "of_job",
]
