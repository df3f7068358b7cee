"""What a trained model says of itself: the content of `model.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Target(BaseModel):
    """One predicted quantity; `mean`, `std` and `quantile` are in `unit`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    unit: str = ""
    task: Literal["regression", "binary", "multiclass"] = "regression"
    classes: list[str] | None = None
    mean: float = 0.0
    std: float = 1.0
    quantile: float | None = Field(
        default=None, description="half width of the 90 % split-conformal interval, in `unit`"
    )

    @property
    def columns(self) -> int:
        """How many outputs of the network this target takes: one logit a class, else one."""
        return len(self.classes or []) if self.task == "multiclass" else 1


class ModelCard(BaseModel):
    """Class, options and graph rebuild the network; the rest is what its predictions mean."""

    model_config = ConfigDict(extra="forbid")

    model: str
    options: dict[str, Any]
    graph: dict[str, Any]
    targets: list[Target]
    relax: dict[str, Any] = Field(default={}, description="of models that relax: what they learned to undo")
    generate: dict[str, Any] = Field(default={}, description="of energies: the chains they were trained with")
    elements: list[int] = []
    domain_threshold: float | None = None
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    version: str = ""
    created: str = ""
