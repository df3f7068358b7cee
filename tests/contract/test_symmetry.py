"""What every property model promises of its output, measured on random weights in float64.

The untrained network answers with a spread of about 1e-2 over crystals; the tolerances are absolute.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from facetry.models import MODELS, of_job
from tests import crystals as zoo

SMALL = {
    "icomformer": {"channels": 32, "k": 12},
    "ecomformer": {"channels": 32, "k": 12, "scalars": 8},
    "crystalformer": {"channels": 32, "blocks": 2},
    "crystalframer": {"channels": 32, "blocks": 2, "heads": 4},
    "ecn": {"channels": 24, "layers": 2, "graph": "radius"},  # Voronoi bonds refuse molecules and layers
    "cgcnn": {"channels": 32, "hidden": 32},
    "megnet": {"channels": 16},
    "schnet": {"channels": 32, "layers": 3},
}
RANDOM = [zoo.random_crystal(seed) for seed in range(6)] + [zoo.tellurium(-1)]
SYMMETRIC = zoo.symmetric()


def make(name: str, dtype: torch.dtype = torch.float64, amplify: float = 1.5, **options):
    """Random weights, larger than usual, so that a broken symmetry shows."""
    torch.manual_seed(11)
    model = MODELS[name](**{**SMALL.get(name, {}), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(amplify)
    model = model.to(dtype).eval()
    if hasattr(model, "calibrate"):
        model.calibrate(RANDOM)
    return model


def predict(model, crystals) -> np.ndarray:
    with torch.no_grad():
        return model(model.graph(crystals)).double().numpy()[:, 0]


def change(model, before, after) -> float:
    return float(np.abs(predict(model, before) - predict(model, after)).max())


@pytest.fixture(params=sorted(of_job("predict")))
def model(request):
    return make(request.param)


def test_answers_differ_between_crystals(model):
    assert predict(model, RANDOM).std() > 1e-4


# what an operation does to the i-th crystal, by the name that `Symmetry` has for it
OPERATIONS = {
    "rotation": lambda c, i: zoo.rotated(c, zoo.rotation(i)),
    "translation": lambda c, i: zoo.shifted(c, i),
    "permutation": lambda c, i: zoo.permuted(c, i),
    "lattice_basis": lambda c, i: zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(17 * i)),
    "supercell": lambda c, i: c.supercell(np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 1]])),
    "reflection": lambda c, i: zoo.rotated(c, -zoo.rotation(i)),
}
CONSTRUCTIONS = [{"construction": c} for c in ("canonical", "continuous", "published")]
VARIANTS = {  # beside the defaults; a model without options of its own brings none
    "icomformer": [
        *CONSTRUCTIONS,
        {"edge_layer": False},
        {"edge_layer": False, "construction": "published"},
        {"layers": 1},
        {"gap": 0.05},
    ],
    "ecomformer": [
        *CONSTRUCTIONS,
        {"pseudoscalar": True},
        {"pseudoscalar": True, "degree": 1},
        {"degree": 0},
        {"degree": 1},
    ],
    "crystalformer": [
        {"blocks": 1},
        {"reciprocal": "heads"},
        {"reciprocal": "blocks"},
        {"value_positions": False},
    ],
    "crystalframer": [
        {"angles": "lightweight"},
        *[
            {"frames": f, "angles": "lightweight"}
            for f in ("continuous", "static", "weighted_pca", "pca", "lattice")
        ],
    ],
    "ecn": [{"group": "p1"}, {"group": "bravais"}, {"break_symmetry": False}, {"edge_fn": "per_colour"}],
    "schnet": [{"smooth": False}],
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in sorted(of_job("predict")) for options in ({}, *VARIANTS.get(name, []))],
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())) or "default",
)
def test_symmetry_is_what_is_declared(name, options):
    """Every variant, on low and high symmetry: what is declared holds, what is not declared fails."""
    model, crystals = make(name, **options), RANDOM + SYMMETRIC
    measured = {
        what: change(model, crystals, [operation(c, i) for i, c in enumerate(crystals)])
        for what, operation in OPERATIONS.items()
    }
    declared = asdict(model.symmetry)
    assert {what: value <= 1e-10 for what, value in measured.items()} == declared, measured


@pytest.mark.parametrize("group", ["random", "symmetric"])
def test_rotation(model, group):
    crystals = RANDOM if group == "random" else SYMMETRIC
    turned = [zoo.rotated(c, zoo.rotation(i)) for i, c in enumerate(crystals)]
    assert change(model, crystals, turned) <= (1e-12 if group == "random" else 1e-10)


@pytest.mark.parametrize("group", ["random", "symmetric"])
def test_origin_order_and_images(model, group):
    crystals = RANDOM if group == "random" else SYMMETRIC
    bound = 1e-12 if group == "random" else 1e-10
    assert change(model, crystals, [zoo.shifted(c, i) for i, c in enumerate(crystals)]) <= bound
    assert change(model, crystals, [zoo.permuted(c, i) for i, c in enumerate(crystals)]) <= bound
    assert change(model, crystals, [zoo.unwrapped(c, i) for i, c in enumerate(crystals)]) <= bound


@pytest.mark.parametrize("group", ["random", "symmetric"])
def test_choice_of_cell(model, group):
    crystals = RANDOM if group == "random" else SYMMETRIC
    bound = 1e-12 if group == "random" else 1e-10
    for seed in range(3):
        other = [zoo.rebased(c, zoo.unimodular(17 * i + seed)) for i, c in enumerate(crystals)]
        assert change(model, crystals, other) <= bound


@pytest.mark.parametrize(
    "matrix",
    [np.diag([2, 1, 1]), np.diag([2, 2, 2]), np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])],
    ids=["2x1x1", "2x2x2", "non-diagonal"],
)
def test_supercell(model, matrix):
    crystals = RANDOM[:4] + SYMMETRIC
    assert change(model, crystals, [c.supercell(matrix) for c in crystals]) <= 1e-10


def test_conventional_cell(model):
    assert change(model, [zoo.nacl()], [zoo.nacl_conventional()]) <= 1e-10


def test_all_at_once_in_float32():
    """Rotation, origin, order, cell and supercell together, in the precision of daily use."""
    for name in of_job("predict"):
        model = make(name, torch.float32, amplify=1.0)  # the tolerance is for the usual start
        crystals = RANDOM + SYMMETRIC
        other = [
            zoo.permuted(zoo.shifted(zoo.rotated(c, zoo.rotation(i)), i), i) for i, c in enumerate(crystals)
        ]
        assert change(model, crystals, other) <= 1e-5
        assert change(model, crystals, [c.supercell(np.diag([1, 2, 1])) for c in crystals]) <= 1e-5


@pytest.mark.parametrize("name", sorted(of_job("predict")))
def test_float32_row_by_row(name):
    """The float32 column of the specification's checklist, where it is stricter than all at once."""
    model, crystals = make(name, torch.float32, amplify=1.0), RANDOM + SYMMETRIC
    assert change(model, crystals, [zoo.permuted(c, i) for i, c in enumerate(crystals)]) <= 1e-6
    single = np.array([predict(model, [c])[0] for c in crystals])
    np.testing.assert_allclose(predict(model, crystals), single, rtol=0, atol=1e-6)
    other = [zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(17 * i)) for i, c in enumerate(crystals)]
    assert change(model, crystals, other) <= 1e-5
    achiral = crystals if model.symmetry.reflection else [zoo.zno(), zoo.nacl(), zoo.si(), zoo.zns_blende()]
    assert change(model, achiral, [zoo.mirrored(c) for c in achiral]) <= 1e-5


def test_mirror_image_of_an_achiral_crystal(model):
    crystals = [
        c for c in SYMMETRIC if not c.name.startswith(("Te", "cubic", "fcc", "bcc", "hexagonal", "orth"))
    ]
    assert change(model, crystals, [zoo.mirrored(c) for c in crystals]) <= 1e-10


def test_mirror_image_of_a_chiral_crystal(model):
    chiral = [*RANDOM[2:], zoo.tellurium(+1), zoo.orthorhombic_motif()]
    if model.name == "crystalframer":  # blind where a two-fold axis turns e3 around; see its docstring
        chiral = [c for c in chiral if not c.name.startswith("Te")]
    difference = [change(model, [c], [zoo.mirrored(c)]) for c in chiral if len(c) > 2]
    if model.symmetry.reflection:
        assert max(difference) <= 1e-12
    else:
        assert min(difference) >= 1e-8


def test_mirror_images_by_the_pseudoscalar_path():
    """Also tellurium, where the vectors of an atom are parallel and only tensors see the screw."""
    model = make("ecomformer", pseudoscalar=True)
    chiral = [*RANDOM[2:], zoo.tellurium(+1), zoo.orthorhombic_motif()]
    assert min(change(model, [c], [zoo.mirrored(c)]) for c in chiral if len(c) > 2) >= 1e-8
    achiral = [zoo.zno(), zoo.nacl(), zoo.si(), zoo.zns_blende()]
    assert change(model, achiral, [zoo.mirrored(c) for c in achiral]) <= 1e-10


def test_batch_against_single(model):
    crystals = RANDOM + SYMMETRIC
    together = predict(model, crystals)
    single = np.array([predict(model, [c])[0] for c in crystals])
    np.testing.assert_allclose(together, single, rtol=0, atol=1e-12)


def test_selecting_from_a_batch_is_building_it(model):
    crystals = RANDOM + SYMMETRIC
    rows = [5, 0, 12, 7]
    with torch.no_grad():
        batch = model.graph(crystals).compact().select(rows)
        np.testing.assert_allclose(
            model(batch)[:, 0].numpy(), predict(model, [crystals[i] for i in rows]), rtol=0, atol=1e-13
        )


def test_atom_vectors_follow_the_atoms(model):
    """Each input atom finds its vector, through primitive cell and sorting."""
    crystal = RANDOM[3]
    big = crystal.supercell(np.diag([1, 2, 1]))
    with torch.no_grad():
        small_batch, big_batch = model.graph([crystal]), model.graph([big])
        one = model.embed_atoms(small_batch)[small_batch.atom_map]
        two = model.embed_atoms(big_batch)[big_batch.atom_map]
    for z in np.unique(crystal.atomic_numbers):
        rows = torch.unique(torch.round(one[crystal.atomic_numbers == z], decimals=9), dim=0)
        more = torch.unique(torch.round(two[big.atomic_numbers == z], decimals=9), dim=0)
        torch.testing.assert_close(rows, more, rtol=0, atol=2e-9)


def test_runs_are_bit_equal(model):
    crystals = RANDOM + SYMMETRIC
    first = predict(model, crystals)
    assert (first == predict(model, crystals)).all()
    again = make(model.name)
    assert (first == predict(again, crystals)).all()


def test_gradient_by_finite_difference(model):
    """dE/dx and dE/dL on a fixed graph, against central differences."""
    from dataclasses import replace

    crystal = zoo.random_crystal(4, atoms=4)
    batch = model.graph([crystal])

    def energy(frac, lattice):
        return model(replace(batch, frac_coords=frac, lattice=lattice)).sum()

    frac = batch.frac_coords.clone().requires_grad_()
    lattice = batch.lattice.clone().requires_grad_()
    gradients = torch.autograd.grad(energy(frac, lattice), (frac, lattice))
    h = 1e-5
    for which, gradient in enumerate(gradients):
        values = [frac.detach(), lattice.detach()]
        rows = [(0, 0), (2, 1), (3, 2)] if which == 0 else [(0, 0, 0), (0, 1, 2), (0, 2, 1)]
        for entry in rows:
            step = torch.zeros_like(values[which])
            step[entry] = h
            up, down = list(values), list(values)
            up[which], down[which] = values[which] + step, values[which] - step
            with torch.no_grad():
                slope = (energy(*up) - energy(*down)) / (2 * h)
            assert float(gradient[entry]) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_net_force_vanishes_and_stress_is_symmetric(model, dtype, bound):
    from dataclasses import replace

    model = model.to(dtype)
    batch = model.graph([zoo.random_crystal(4, atoms=4), zoo.tellurium()])
    frac = batch.frac_coords.clone().requires_grad_()
    strain = torch.zeros((len(batch), 3, 3), dtype=torch.float64, requires_grad=True)
    lattice = batch.lattice + batch.lattice @ strain
    energy = model(replace(batch, frac_coords=frac, lattice=lattice)).sum()
    by_frac, by_strain = torch.autograd.grad(energy, (frac, strain))
    assert float(by_strain.abs().max()) > 1e-6
    net = torch.zeros((len(batch), 3), dtype=torch.float64).index_add(0, batch.crystal_index, by_frac)
    assert float(net.abs().max()) <= bound
    assert float((by_strain - by_strain.transpose(1, 2)).abs().max()) <= bound
