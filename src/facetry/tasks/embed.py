"""Embed: crystals in, the vectors that a model makes of them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from facetry.graph.batch import Batch
from facetry.models.base import evaluating
from facetry.tasks.inference import Item, Limits, Outcome, run
from facetry.tasks.inputs import items_of
from facetry.tasks.predict import as_model

if TYPE_CHECKING:
    from facetry.models.base import PropertyModel


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of crystals in the order given; `numpy.asarray` gives the matrix.

    `vectors` has one row per crystal, NaN where `status` is not "ok" (`messages` says why). `atoms` has one
    matrix per crystal with a row per site, empty where there is none; None unless it was asked for.
    """

    vectors: Float[np.ndarray, "crystals channels"]
    atoms: list[np.ndarray] | None
    sources: list[str]
    names: list[str]
    status: list[str]
    messages: list[str]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.vectors[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.vectors, dtype=dtype, copy=True if copy is None else copy)


def embed(
    model: PropertyModel | str | PathLike[str],
    crystals: Any,
    atoms: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
) -> Embeddings:
    """One vector per crystal (what the last layer before the output reads), and per atom with `atoms`.

    Takes what `facetry.predict` takes, and treats bad inputs in the same way. Vectors of the same model are
    comparable with each other, not with those of another model.
    """
    network = as_model(model)
    outcomes = list(embeddings(network, items_of(crystals), atoms, batch_size, device))
    ok = [o.values for o in outcomes if o.status == "ok"]
    channels = len(ok[0]["embedding"]) if ok else 0
    none = np.full(channels, np.nan)
    rows = [o.values["embedding"] if o.status == "ok" else none for o in outcomes]
    per_atom = None
    if atoms:
        width = ok[0]["atom_embeddings"].shape[1] if ok else 0
        per_atom = [o.values.get("atom_embeddings", np.zeros((0, width))) for o in outcomes]
    return Embeddings(
        vectors=np.array(rows, dtype=np.float64).reshape(len(outcomes), channels),
        atoms=per_atom,
        sources=[o.item.source for o in outcomes],
        names=[o.item.name for o in outcomes],
        status=[str(o.status) for o in outcomes],
        messages=[o.message for o in outcomes],
    )


def embeddings(
    model: PropertyModel,
    items: Iterable[Item],
    atoms: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
) -> Iterator[Outcome]:
    """`embed` over a stream: outcomes with the values `embedding` and, with `atoms`, `atom_embeddings`."""
    with evaluating(model, device) as place:
        limits = Limits.for_device(place, batch_size)
        with closing(run(model, items, _vectors(model, atoms), limits, place)) as outcomes:
            yield from outcomes


def _vectors(model: PropertyModel, atoms: bool) -> Callable[[Batch], dict[str, Tensor]]:
    def compute(batch: Batch) -> dict[str, Tensor]:
        values = {"embedding": model.embed(batch)}
        if atoms:
            values["atom_embeddings"] = model.embed_atoms(batch)
        return values

    return compute


class EmbeddingWriter:
    """A Parquet file of embeddings that grows by row groups and gets its name when it is complete.

    Columns: source, name, formula, atoms, status, message, vector (list of float32, null where there is
    none), and with `per_atom` atom_vectors (a list of such lists, one per site).
    """

    def __init__(self, path: str | PathLike[str], per_atom: bool) -> None:
        import pyarrow as pa

        from facetry.tasks.table_writer import check_suffix

        self.path = check_suffix(path, (".parquet",))
        self._part = self.path.with_name(f".{self.path.name}.part")
        vector = pa.list_(pa.float32())
        fields = {name: pa.string() for name in ("source", "name", "formula", "status", "message")}
        fields |= {"atoms": pa.int64(), "vector": vector}
        if per_atom:
            fields["atom_vectors"] = pa.list_(vector)
        self._schema = pa.schema(list(fields.items()))
        self._writer: Any = None

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self.write([])
                self._writer.close()
                self._part.replace(self.path)
            elif self._writer is not None:
                self._writer.close()
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, outcomes: list[Outcome]) -> None:
        """Append one row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._part, self._schema, compression="zstd")
        if not outcomes:
            return
        crystals = [o.item.crystal for o in outcomes]
        columns: dict[str, Any] = {
            "source": [o.item.source for o in outcomes],
            "name": [o.item.name for o in outcomes],
            "formula": ["" if c is None else c.formula for c in crystals],
            "status": [o.status for o in outcomes],
            "message": [o.message for o in outcomes],
            "atoms": [None if c is None else len(c) for c in crystals],
            "vector": _lists([o.values.get("embedding") for o in outcomes]),
        }
        if "atom_vectors" in self._schema.names:
            matrices = [o.values.get("atom_embeddings") for o in outcomes]
            rows = _lists([row for matrix in matrices if matrix is not None for row in matrix])
            columns["atom_vectors"] = _nest(rows, matrices)
        self._writer.write_table(pa.table(columns, schema=self._schema))


def _lists(rows: list[np.ndarray | None]) -> Any:
    """A column of float32 lists from arrays, without a loop over numbers; None stays null."""
    import pyarrow as pa

    flat = np.concatenate([np.zeros(0), *(row for row in rows if row is not None)])
    return _nest(pa.array(flat, pa.float32()), rows)


def _nest(values: Any, rows: list[np.ndarray | None]) -> Any:
    """Consecutive values as one list per row, as long as the row; null where the row is None."""
    import pyarrow as pa

    ends = np.cumsum([0] + [0 if row is None else len(row) for row in rows])
    missing = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, mask=missing)
