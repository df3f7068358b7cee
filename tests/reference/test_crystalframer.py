"""Crystalformer and CrystalFramer against plain formulas, closed forms and the numbers of the papers.

Where every property of the two is tested; bounds float64 / float32, "rows" is `test_lattice_rows.py`:

    rotation, translation, lattice shifts, order, cells,
    hands, supercells without reduction; 1e-13 / 1e-6      rows: descriptions_of_the_same, cells_bent_to_five
    mirror images of chiral crystals                       test_frames.py
    symmetric crystals, turned and mirrored; 1e-12 / 1e-5  test_frames.py, contract/
    frames are orthonormal, right-handed, equivariant      test_frames.py
    convergence with the sphere; 1e-9 untrained,           wider_spheres_change_nothing
      1e-4 of the spread trained                           rows: five_tails_are_enough_when_trained
    pseudo-finite form; 1e-13 / 1e-6                       rows: pseudo_finite_attention
    ψ of every image = bases summed first; 1e-13 / 1e-6    outputs_and_gradients, rows: the_plain_formula
    tail length and bases; 1e-14 / 1e-6                    tail_length, bases, rows: in_both_precisions
    no angular part of the atom itself; exact              rows: the_atom_itself_has_no_angles
    parameter counts, initial statistics; exact, 3 %       parameter_counts, initial_*, rows: statistics_of_*
    gradients of all parameters; relative 1e-6             gradients_of_all_parameters
    forces and stress; relative 1e-6 / 1e-4, net 1e-12     tasks/test_gradients.py
    batches in any order; 1e-13 / 1e-6                     rows: batches_in_any_order
    no randomness in evaluation; exact                     rows: evaluation_draws_nothing
    uncalibrated models refuse, statistics are kept        uncalibrated_*, rows: calibration_is_kept
    no angular basis, or scale zero: the baseline; exact   test_frames.py, rows: the_baseline_within
    rates, mean weights, frozen rate; 1e-12 / 1e-6         training/test_schedule, training/test_crystalframer
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph import Box, Sphere
from facetry.models import MODELS, Crystalformer, CrystalFramer
from facetry.nn.angular import AngularBasis, Gaussians, _Sums
from facetry.nn.dynamic_frames import FRAMES, Frames
from facetry.nn.lattice_attention import LARGEST_WIDTH, distance_basis, tail
from tests import crystals as zoo
from tests.reference import plain_crystalframer as plain

CRYSTALS = [zoo.random_crystal(1, atoms=3), zoo.tellurium(), zoo.nacl(), zoo.random_crystal(7, atoms=2)]
_CELL = 3.2 * np.array([[1, 0, 0], [-0.5, 3**0.5 / 2, 0], [0, 0, (8 / 3) ** 0.5]])
HCP = Crystal(_CELL, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], [12, 12], name="hcp, ideal")
WURTZITE = Crystal(
    _CELL * 1.2,
    [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]],
    [30, 30, 16, 16],
    name="wurtzite, ideal",
)
SMALL = {"channels": 16, "heads": 2, "blocks": 2}


def make(cls, dtype=torch.float64, **options):
    torch.manual_seed(5)
    model = cls(**{**SMALL, **options}).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases away from zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.calibrate(CRYSTALS)
    return model


def outputs(model, crystals) -> np.ndarray:
    with torch.no_grad():
        return model(model.graph(crystals)).double().numpy()[:, 0]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Crystalformer, {}),
        (Crystalformer, {"value_positions": False}),
        (Crystalformer, {"reciprocal": "heads"}),
        (Crystalformer, {"reciprocal": "blocks"}),
        (Crystalformer, {"reciprocal": "heads", "value_positions": False}),
        (CrystalFramer, {}),
        (CrystalFramer, {"angles": "lightweight"}),
        (Crystalformer, {"construction": "published"}),
        (Crystalformer, {"construction": "published", "reciprocal": "heads"}),
        (CrystalFramer, {"construction": "published", "angles": "lightweight"}),
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(cls, options):
    """Aggregating before projecting, pairs, padding, chunks and tied frames change nothing; the lightweight
    scales enter the gradients too."""
    model = make(cls, reach=2.5, **options)
    fast = model(model.graph(CRYSTALS))
    slow = torch.stack([plain.forward(model, c) for c in CRYSTALS])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((slow * weight).sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_what_a_model_looks_at_is_what_the_plain_formula_weighs(cls):
    """Attention on every image, and all tied frames, of each layer, atom and head."""
    model = make(cls, reach=2.0)
    crystals = [zoo.random_crystal(1, atoms=3), zoo.nacl(), zoo.srtio3()]
    builder = replace(model.graph, primitive=False)
    batch = builder(crystals)
    with torch.no_grad():
        look = model.look(batch)
        torch.testing.assert_close(look.output, model(batch), rtol=0, atol=0)
    assert all(block.attention.watcher is None for block in model.blocks)
    vectors, center = batch.edge_vectors(), batch.graph.center
    first = 0
    for crystal in crystals:
        seen = {}
        plain.forward(model, crystal, seen)
        for (layer, atom, head), (_, r, p, frames) in seen.items():
            ours = look.layers[layer]
            mine = center == first + atom
            assert float(ours.attention[mine, head].sum()) == pytest.approx(1, abs=1e-12)
            nearest = torch.cdist(vectors[mine], r.detach()).argmin(1)
            assert len(nearest.unique()) == len(r) == len(nearest)
            torch.testing.assert_close(ours.attention[mine, head], p[nearest].detach(), rtol=0, atol=1e-13)
            chosen = ours.owner == (first + atom) * len(model.blocks[0].attention.score) + head
            assert int(chosen.sum()) == len(frames)
            for axes, weight in frames:
                apart = (ours.axes[chosen] - axes).abs().amax((1, 2))
                assert float(apart.min()) < 1e-9
                assert float(ours.weight[chosen][apart.argmin()]) == pytest.approx(weight)
        first += len(crystal)


def test_a_crystal_with_gaps_keeps_its_frames():
    """A chain with wide gaps: the sphere grows until its neighbours span a plane."""
    chain = Crystal(np.diag([9.0, 9.5, 2.4]), [[0, 0, 0], [0.1, 0.03, 0.4]], [6, 16], name="chain")
    model = make(CrystalFramer, reach=2.5)
    torch.testing.assert_close(
        model(model.graph([chain]))[0], plain.forward(model, chain), rtol=0, atol=1e-13
    )


def test_large_cells_keep_a_small_sphere():
    """The sphere grows for gaps only: a large cell without them has as many neighbours as a small one."""
    crystal = zoo.srtio3()
    big = crystal.supercell(np.diag([3, 3, 3]))
    builder = CrystalFramer(**SMALL).graph
    small, large = (len(replace(builder, primitive=False)([c]).graph) for c in (crystal, big))
    assert large == 27 * small


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Crystalformer, {}), (Crystalformer, {"reciprocal": "heads"}), (CrystalFramer, {})],
)
def test_the_published_box_knows_the_cell_and_the_sphere_does_not(cls, options):
    """Checklist rows 2, 4, 5 and 6: other cells and images of atoms change the output, if not by much."""
    crystals = [zoo.random_crystal(1, atoms=3), zoo.tellurium(), zoo.nacl()]
    other = [zoo.rebased(c, zoo.unimodular(i, 1)) for i, c in enumerate(crystals)]
    moved = [
        Crystal(c.lattice, c.frac_coords + np.eye(len(c), 3), c.atomic_numbers, name=c.name) for c in crystals
    ]
    for construction in ("sphere", "published"):
        model = make(cls, construction=construction, **options)
        before = outputs(model, crystals)
        for changed in (other, moved):
            difference = np.abs(before - outputs(model, changed)).max()
            if construction == "sphere":
                assert difference <= 1e-13
            else:
                assert 1e-12 < difference < 1e-3
        doubled = [c.supercell(np.diag([1, 2, 1])) for c in crystals]
        assert (np.abs(before - outputs(model, doubled)).max() <= 1e-12) == model.symmetry.supercell
        assert model.symmetry.lattice_basis == (construction == "sphere")
        turned = [zoo.permuted(zoo.rotated(c, zoo.rotation(i)), i) for i, c in enumerate(crystals)]
        turned = [zoo.shifted(c, i) for i, c in enumerate(turned)]
        assert np.abs(before - outputs(model, turned)).max() <= 1e-12


def test_lattice_frames_in_the_published_box():
    """The shortest translations do not depend on the basis that the box is made of."""
    crystal = zoo.random_crystal(3, atoms=2)
    other = zoo.rebased(crystal, zoo.unimodular(3, 2))
    sphere, box = Sphere(5.0, lattice_frames=True), Box(5.0, lattice_frames=True)
    expected = sphere([crystal]).frame_vectors()
    for c in (crystal, other):
        vectors = box([c]).frame_vectors()
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-12)
    assert np.isfinite(
        outputs(make(CrystalFramer, construction="published", frames="lattice"), [other])
    ).all()


def test_the_published_box():
    """At least 125 images of each pair; sizes and doubles that it refuses name the crystal."""
    import facetry

    batch = Box()([zoo.nacl(), zoo.srtio3()])
    assert batch.graph.num_edges.tolist() == [4 * 7**3, 25 * 5**3]
    twice = Crystal(np.eye(3) * 4, [[0, 0, 0], [0, 0, 1]], [6, 6], name="carbon twice")
    large = Crystal(np.eye(3) * 30, np.random.default_rng(0).random((200, 3)), [6] * 200, name="big")
    model = make(Crystalformer, construction="published")
    results = facetry.predict(model, [zoo.nacl(), twice, large])
    assert [r.status for r in results] == ["ok", "failed", "failed"]
    assert "sites 1 and 2 are 0.0000 Å apart" in results[1].message
    assert "construction='sphere'" in results[2].message


def test_isolated_atoms_attend_to_themselves():
    """Nothing within reach: finite for both, by rule."""
    atom = Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="one atom in a large box")
    for cls in (Crystalformer, CrystalFramer):
        model = make(cls)
        batch = model.graph([atom])
        assert (len(batch.graph) == 1) == (cls is Crystalformer)
        assert np.isfinite(outputs(model, [atom])).all()


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("crystalformer", {}, 853_505),
        ("crystalformer", {"blocks": 8}, 1_677_825),
        ("crystalformer", {"reciprocal": "heads"}, 837_121),
        ("crystalformer", {"reciprocal": "blocks", "blocks": 8}, 1_645_057),
        ("crystalformer", {"value_positions": False}, 820_737),
        ("crystalformer", {"value_positions": False, "blocks": 8}, 1_612_289),
        ("crystalframer", {}, 951_809),
        ("crystalframer", {"blocks": 8}, 1_874_433),
        ("crystalframer", {"angles": "lightweight"}, 878_081),
        ("crystalframer", {"angles": "lightweight", "blocks": 8}, 1_726_977),
    ],
)
def test_parameter_counts(name, options, count):
    assert sum(p.numel() for p in MODELS[name](**options).parameters()) == count


@pytest.mark.parametrize(("angles", "bound"), [("default", 0.02210), ("lightweight", 0.05103)])
def test_initial_weights(angles, bound):
    """Standard deviations within 3 %, bounds as in the specification §1.7."""
    torch.manual_seed(0)
    model = CrystalFramer(angles=angles).requires_grad_(False)
    assert float(model.elements.std()) == pytest.approx(0.03608, rel=0.03)
    xavier = math.sqrt(6 / 256)
    for block in model.blocks:
        a = block.attention
        for layer, limit in (
            (a.query, xavier),
            (a.key, xavier),
            (a.value, 0.47376 * xavier),
            (a.out, 0.47376 * xavier),
            (block.wide, 0.47376 * math.sqrt(6 / 640)),
            (block.narrow, 0.47376 * math.sqrt(6 / 640)),
        ):
            assert float(layer.weight.abs().max()) == pytest.approx(limit, rel=1e-3)
            assert float(layer.weight.abs().max()) <= limit * 1.0001
            assert float(layer.weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.03)
            assert not layer.bias.any()
        assert float(a.distance.abs().max()) == pytest.approx(0.02210, rel=1e-3)
        assert float(a.angular.abs().max()) == pytest.approx(bound, rel=1e-3)
    scores = torch.cat([b.attention.score.flatten() for b in model.blocks])
    assert float(scores.detach().std()) == pytest.approx(0.25, rel=0.08)  # 512 numbers
    deep = Crystalformer(blocks=8).requires_grad_(False).blocks[0].wide.weight
    assert float(deep.abs().max()) == pytest.approx(0.39838 * math.sqrt(6 / 640), rel=1e-3)


def test_tail_length():
    x = torch.linspace(-300, 50, 7001, dtype=torch.float64)
    sigma = tail(x).rsqrt()
    assert float(tail(torch.zeros(1, dtype=torch.float64)).rsqrt()) == pytest.approx(1.4, abs=1e-14)
    assert float(sigma.max()) <= 1.979899 + 1e-6
    assert pytest.approx(1.979899, abs=1e-6) == LARGEST_WIDTH
    assert bool((sigma.diff() <= 0).all())
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(tail(zero) * 1.4**2, zero)
    assert float(slope) == pytest.approx(0.1, abs=1e-14)
    step = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    assert float(tail(step).diff()) * 1.4**2 / 2e-6 == pytest.approx(0.1, rel=1e-6)


def test_bases():
    r = torch.tensor([0.21875, 0.4375, 14.0], dtype=torch.float64)
    values = distance_basis(r)
    assert values.shape == (3, 64)
    for row, peak in enumerate((0, 1, 63)):
        assert float(values[row, peak]) == pytest.approx(1, abs=1e-14)
    assert float(values[0, 1]) == pytest.approx(math.exp(-0.5), abs=1e-14)
    wide, light = AngularBasis(64, 4.0, 1.0), AngularBasis(16, 1.0, 6.0)
    assert wide.deviation == pytest.approx(8 / 63, abs=1e-15)
    assert light.deviation == pytest.approx(2 / 15, abs=1e-15)
    ends = light(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert float(ends[0, 0]) == pytest.approx(1, abs=1e-15)
    assert float(ends[1, 15]) == pytest.approx(1, abs=1e-15)
    assert float(ends[1, 14]) == pytest.approx(math.exp(-0.5), abs=1e-14)


@pytest.mark.parametrize(("size", "width"), [(64, 4.0), (16, 1.0), (15, 2.0), (7, 1.0)])
def test_gaussians_are_products(size, width):
    basis = AngularBasis(size, width, 1.0)
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 3e-6)):
        cosine = torch.linspace(-1, 1, 301, dtype=dtype)
        gaussians = Gaussians(basis, cosine)
        product = gaussians(cosine).T * gaussians.constant
        torch.testing.assert_close(product, basis(cosine), rtol=0, atol=bound)


@pytest.mark.parametrize("cls", [Crystalformer, CrystalFramer])
def test_wider_spheres_change_nothing(cls):
    crystals = [zoo.random_crystal(s) for s in (2, 4)] + [zoo.srtio3()]
    values = {}
    for reach in (5.0, 8.5):
        torch.manual_seed(3)
        model = cls(**SMALL, reach=reach).double().eval()
        model.calibrate(crystals)
        values[reach] = outputs(model, crystals)
    assert np.abs(values[5.0] - values[8.5]).max() <= 1e-9


def test_supercells_need_no_primitive_cell():
    """Sums over images are converged sums: the reduction saves time and is not what makes them invariant."""
    for cls in (Crystalformer, CrystalFramer):
        model = make(cls)
        model.graph = replace(model.graph, primitive=False)
        small = outputs(model, [zoo.nacl(), CRYSTALS[0]])
        large = outputs(model, [zoo.nacl_conventional(), CRYSTALS[0].supercell(np.diag([2, 1, 1]))])
        assert np.abs(small - large).max() <= 1e-13


@pytest.mark.parametrize(("size", "width"), [(8, 1.0), (6, 2.0)])
def test_first_and_second_derivatives_of_sums(size, width):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand((2, 2, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    cosine = torch.rand((3, 5), generator=generator, dtype=torch.float64) * 2 - 1
    row = torch.tensor([0, 1, 1])

    def sums(p, cosine):
        return _Sums.apply(p, row, cosine, AngularBasis(size, width, 1.0), 2)

    for slope in (True, False):
        given = (p, cosine.requires_grad_(slope))
        assert torch.autograd.gradcheck(sums, given)
        assert torch.autograd.gradgradcheck(sums, given)


def test_forces_can_be_trained_on():
    """The slope of squared forces along a change of weights is that of central differences."""
    model = make(CrystalFramer, channels=4, heads=1, blocks=1, reach=1.5)
    batch = model.graph([CRYSTALS[0]])
    batch.frac_coords.requires_grad_()
    weights = [model.blocks[0].attention.angular, model.blocks[0].attention.query.weight]
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]

    def squared():
        (force,) = torch.autograd.grad(model(batch).sum(), batch.frac_coords, create_graph=True)
        return force.square().sum()

    slopes = torch.autograd.grad(squared(), weights)
    exact = sum(float((s * a).sum()) for s, a in zip(slopes, along, strict=True))
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            for weight, a in zip(weights, along, strict=True):
                weight.add_(a, alpha=shift)
        values.append(float(squared().detach()))
    assert exact == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


class Held(Frames):
    """The frames of another kind as they were at first: selections and axes without their own slopes."""

    def __init__(self, kind: str):
        self.kind, self.first = FRAMES[kind](), []

    def __call__(self, part, logits, p, generator):
        if not self.first:
            self.first.append(self.kind(part, logits, p, generator))
        return self.first[0]


@pytest.mark.parametrize("frames", ["max", "static", "continuous", "weighted_pca"])
def test_gradients_of_all_parameters(frames):
    """Every entry of the Jacobian, lightweight scales included; no frame is tied."""
    model = make(CrystalFramer, channels=2, heads=1, blocks=1, reach=1.2, frames=frames, angles="lightweight")
    if frames == "weighted_pca":  # its axes follow the attention, and no gradient goes that way
        for block in model.blocks:
            block.attention.frames = Held(frames)
    crystal = zoo.random_crystal(3, atoms=5)
    batch = model.graph([crystal])
    used = torch.unique(batch.atomic_numbers - 1)
    parameters = dict(model.named_parameters())
    table = parameters["elements"].detach()
    parameters["elements"] = table[used]
    names = list(parameters)

    def energy(*values):
        own = dict(zip(names, values, strict=True))
        own["elements"] = table.index_copy(0, used, own["elements"])
        return torch.func.functional_call(model, own, (batch,))

    values = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(energy, values, eps=1e-5, rtol=1e-6, atol=1e-11)
    gradients = dict(zip(names, torch.autograd.grad(energy(*values).sum(), values), strict=True))
    # the same number added to all logits of an atom changes nothing
    assert float(gradients.pop("blocks.0.attention.key.bias").abs().max()) < 1e-15
    assert min(float(g.abs().max()) for g in gradients.values()) > 1e-6


def test_an_uncalibrated_model_refuses(tmp_path):
    import facetry

    model = Crystalformer(**SMALL)
    with pytest.raises(ValueError, match=r"call model\.calibrate\(crystals\)"):
        model(model.graph(CRYSTALS))
    (result,) = facetry.predict(model, [zoo.nacl()])
    assert result.status == "failed"
    assert "calibrate" in result.message
    model.calibrate(CRYSTALS)
    again = Crystalformer(**SMALL)
    again.load_state_dict(model.state_dict())
    assert again.calibrated
    assert (outputs(again.eval(), CRYSTALS) == outputs(model.eval(), CRYSTALS)).all()


def test_the_first_training_batch_calibrates_and_no_other():
    model = CrystalFramer(**SMALL).train()
    generator = torch.Generator().manual_seed(0)
    model.training_batch(model.graph(CRYSTALS[:2]), generator)
    first = [b.attention.deviation.clone() for b in model.blocks]
    model.training_batch(model.graph(CRYSTALS[2:]), generator)
    assert all(a == b.attention.deviation for a, b in zip(first, model.blocks, strict=True))
    explicit = CrystalFramer(**SMALL)
    explicit.load_state_dict(model.state_dict())
    explicit.calibrate(CRYSTALS[:2])
    assert all(a == b.attention.deviation for a, b in zip(first, explicit.blocks, strict=True))


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (Crystalformer, {"channels": 10, "heads": 4}, "divisible"),
        (Crystalformer, {"blocks": 0}, "at least one block"),
        (Crystalformer, {"reach": 0.0}, "reach above 0"),
        (Crystalformer, {"construction": "box"}, "of sphere, published, came 'box'"),
        (Crystalformer, {"reciprocal": "half"}, "of none, heads, blocks, came 'half'"),
        (Crystalformer, {"reciprocal": "heads", "channels": 16, "heads": 1}, "two heads"),
        (Crystalformer, {"reciprocal": "blocks", "blocks": 1}, "two blocks"),
        (CrystalFramer, {"frames": "none"}, "weighted_pca"),
        (CrystalFramer, {"angles": "heavy"}, "lightweight"),
    ],
)
def test_wrong_options(cls, options, text):
    with pytest.raises(ValueError, match=text):
        inspect.unwrap(cls.__init__)(cls.__new__(cls), **options)  # past the type checks of the test run


def test_elements_beyond_the_table():
    import facetry

    heavy = Crystal(np.eye(3) * 4, [[0, 0, 0]], [101], name="Md")
    model = make(Crystalformer)
    results = facetry.predict(model, [zoo.nacl(), heavy])
    assert [r.status for r in results] == ["ok", "failed"]
    assert "expected elements up to Cf (98), came Md" in results[1].message
