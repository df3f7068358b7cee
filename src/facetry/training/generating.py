"""Training of energies to draw crystals from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facetry.graph.batch import Batch
from facetry.models.base import EnergyModel, evaluating
from facetry.training.batches import Source
from facetry.training.console import duration
from facetry.training.contrast import Buffer, Compositions, denoising_loss, negatives, noised
from facetry.training.loop import Fitting
from facetry.training.recipe import GenerateOptions
from facetry.training.run import Training
from facetry.training.state import Keeper, Progress, ResumePoint, Setup, section

_JUDGED = 512  # crystals of a split whose energies are compared with those of noise


class GenerateFitting(Fitting):
    """Contrastive divergence, after denoising where the recipe says so."""

    network: EnergyModel

    def __init__(self, network: EnergyModel, setup: Setup, generate: GenerateOptions):
        super().__init__(network, setup, generate.validate_every)
        self.generate = generate
        train, point = setup.train, setup.point
        self.compositions = Compositions.of(Batch.from_crystals(train.crystals))
        most = max(generate.most_atoms, int(self.compositions.num_atoms.max()))
        self.buffer = Buffer(len(train), most) if generate.buffer else None
        if self.buffer is not None and point is not None:
            self.buffer.restore(section(point.tensors, "buffer"))

    def more_state(self) -> dict[str, Tensor]:
        """The chains that go on."""
        return {} if self.buffer is None else {f"buffer/{k}": v for k, v in self.buffer.tensors().items()}

    def part_loss(self, mine: np.ndarray, chosen: np.ndarray, seed: int) -> tuple[Tensor, Tensor, int]:
        """Real against drawn, E_real - E_drawn + λ (E_real² + E_drawn²); or the slopes of wells."""
        source, options, step = self._sources[0], self.generate, self.progress.step
        rows = torch.from_numpy(mine).to(self.device)
        real = source.batch(mine, self.device)
        count = torch.tensor(len(mine), device=self.device)
        builder = self.network.graph
        wells_alone = options.objective == "denoise" or step < options.pretrain_steps
        wells: Tensor | float = 0.0
        if wells_alone or options.denoise_weight:
            wells = denoising_loss(
                self.network, builder, real, options, self.options.seed, rows + 1, step
            ).sum()
        if wells_alone:
            return wells, count, len(chosen)
        drawn = negatives(
            self.network,
            self.compositions.select(rows.cpu()).to(self.device),
            rows,
            options,
            self.options.seed,
            step,
            self.buffer,
            self.network.density,
        )
        drawn = builder.build(drawn, [""] * len(drawn))
        e_real, e_drawn = self.network(real), self.network(drawn)
        penalty = e_real.square() + e_drawn.square()
        loss = (e_real - e_drawn + options.regulariser * penalty).sum() + options.denoise_weight * wells
        return loss, count, len(chosen)

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Mean energy of the validation crystals, and how often noise of 0.3 Å raises it. Neither chooses
        weights."""
        val = self._sources[1]
        if val is None:
            return {}, None
        found = judged(self.network, val, self.generate, self.options.batch_size, self.device)
        return {f"val_{name}": value for name, value in found.items()}, None


@torch.no_grad()
def judged(
    model: EnergyModel, source: Source, options: GenerateOptions, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean energy of crystals, by how much noise of 0.3 Å raises it, and the share where it does."""
    few = options.model_copy(update={"noise_low": 0.3, "noise_high": 0.3})
    real, moved = [], []
    with evaluating(model):
        for rows in source.pieces(batch_size, device)[: -(-_JUDGED // batch_size)]:
            batch = source.batch(rows, device)
            noise = noised(batch, few, 0, torch.from_numpy(rows).to(device) + 1, 0)[0]
            real.append(model(batch))
            moved.append(model(model.graph.build(noise, [""] * len(noise))))
    e, raised = torch.cat(real), torch.cat(moved) - torch.cat(real)
    return {
        "energy": float(e.mean()),
        "noise_gap": float(raised.mean()),
        "noise_raised": float((raised > 0).double().mean()),
    }


class GenerateTraining(Training):
    """The steps of a run of an energy model."""

    model: EnergyModel

    def _fitting(self, keeper: Keeper | None, point: ResumePoint | None) -> Fitting:
        assert self.recipe.generate is not None
        return GenerateFitting(self.model, self._setup(keeper, point), self.recipe.generate)

    def _judge(self, progress: Progress, device: torch.device) -> tuple[dict, dict[str, dict[str, float]]]:
        assert self.recipe.generate is not None
        self.model.domain_reference = self.threshold = None
        scores = {
            name: judged(self.model, source, self.recipe.generate, self.options.batch_size, device)
            for name, source in self.sources.items()
            if name != "train"
        }
        return {"epoch": progress.history[-1]["epoch"]} | scores, scores

    def _score_rows(self, split: str, scores: dict[str, float]) -> Any:
        return scores

    def _epoch_line(self, fitting: Fitting) -> str:
        """`step 256/4096  loss 0.31  val energy -1.2  noise raises 97 %  8.1 s  left 6 min`."""
        row, progress = fitting.progress.history[-1], fitting.progress
        shown = [f"step {row['step']}/{fitting.total_steps}", f"loss {row['train_loss']:.4g}"]
        if "val_energy" in row:
            shown += [f"val energy {row['val_energy']:.4g}", f"noise raises {row['val_noise_raised']:.0%}"]
        recent = progress.history[-5:]
        left = (fitting.epochs - progress.epoch) * sum(r["seconds"] for r in recent) / len(recent)
        return "  ".join([*shown, f"{row['seconds']:.1f} s", f"left {duration(left)}"])

    def _summary(self, metrics: Mapping[str, Any]) -> str:
        part = "test" if "test" in metrics else "val"
        found = metrics.get(part)
        if not found:
            return "done"
        return f"{part} energy {found['energy']:.4g}, noise of 0.3 Å raises {found['noise_raised']:.0%}"
