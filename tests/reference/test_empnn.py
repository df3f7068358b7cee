"""EMPNN against its plain formulas, and its symmetry in every configuration and option.

Where every property is tested; bounds float64 / float32, "fields" is
`nn/test_lattice_fields.py`, "training" is `training/test_relaxing.py`:

    ∂r, ∂θ, ∂A against autograd; symmetric; twice; 1e-12    fields: gradient_fields_against_autograd
    norm of ∂θ, traces, powers of a scale; 1e-12            fields: norms_traces_and_scaling
    straight lines and no area, there and back; 1e-5        fields: straight_lines_are_finite_there_and_back
      the same in whole networks                            hard_cells_stay_cells, slopes_reach_lattice_*
    all 15 sets of fields and every option; 1e-12           against_plain_formulas
      and their slopes; 1e-9 relative                       slopes_against_plain_formulas
    rotation, both hands, limits on and off; 1e-10 / 1e-4   rotation_and_reflection / all_at_once_in_float32
    translation, order of atoms, other images; 1e-10        translation_and_order
    words in SL3(Z), positions too; 1e-10                   other_bases
    supercells deform as cells do; 1e-10                    supercell
    batches; 1e-12                                          batch_against_single
    whole shells of neighbours                              graph_against_a_box_of_images
    element-wise limit breaks O(3); > 1e-3                  fields: the_element_wise_limit_*
    noise: mean and spread of log det; 3 standard errors    training: volumes_under_noise
    identity gains nothing, an oracle all; 1e-6             training: identity_gains_nothing_and_an_oracle_all
    losses: turns, common bases, formulas; 1e-9             fields: losses, riemann_*, metric_and_parameter_*
      finite slopes                                         training: losses_have_finite_slopes
    parameter counts; exact                                 parameter_count
    learns noisy cells by heart                             learns_noisy_cells_by_heart, benchmarks/overfit.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from facetry.crystal import Crystal
from facetry.geometry.lattice import cell_parameters
from facetry.models import EMPNN, FeedForward
from facetry.nn.lattice_fields import FIELDS
from facetry.nn.lattice_losses import Normalisation, riemann
from tests import crystals as zoo
from tests.reference.plain_empnn import nearest, relax

SMALL = {"channels": 16, "layers": 1, "blocks": 2}
OPTIONS = {
    "plain": {},
    "repeated": {"repeated": True, "blocks": 3},
    "clamped": {"weight_clamp": 0.01, "limit": 0},
    "limit": {"limit": 0.05},
    "exact": {"exponential": "exact"},
    "positions": {"positions": True},
    "positions exact": {"positions": True, "exponential": "exact", "fields": "ket_bra_5"},
    "positions clamped": {"positions": True, "weight_clamp": 0.1, "repeated": True},
    "min_sin": {"min_sin": 1e-3},
    "edges only": {"fields": "gradient_1", "layers": 0},
}
EVERY = [*({"fields": f} for f in FIELDS), *(o for o in OPTIONS.values() if o)]
LABELS = [*FIELDS, *(name for name, o in OPTIONS.items() if o)]
CRYSTALS = [
    zoo.random_crystal(0),
    zoo.random_crystal(4, atoms=2),
    zoo.po(),
    zoo.cu(),
    zoo.nacl(),
    zoo.tellurium(-1),
    zoo.zno(),
    zoo.rhombohedral(50),
]


def make(dtype=torch.float64, cls=EMPNN, amplify=True, **options):
    torch.manual_seed(5)
    model = cls(**{**SMALL, **options}) if cls is EMPNN else cls(channels=16, layers=1, **options)
    if amplify and cls is EMPNN:
        with torch.no_grad():  # what acts starts small; a broken symmetry shows where it does not
            for block in model.blocks:
                for head, factor in ((block.edges, 10), (block.pairs, 10), (block.moves, 50)):
                    if head is not None:
                        head.last.weight.mul_(factor)
    return model.to(dtype).eval()


def answer(model, crystals):
    """Lattices and fractional coordinates, crystal by crystal."""
    with torch.no_grad():
        batch = model.graph(crystals)
        relaxed = model(batch)
        atoms = np.split(relaxed.frac_coords[-1].numpy(), np.cumsum(batch.num_atoms.numpy())[:-1])
        return relaxed.lattices[-1].numpy(), atoms


def assert_near(one, two, bound=1e-10):
    np.testing.assert_allclose(one[0], two[0], rtol=0, atol=bound)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


@pytest.fixture(params=EVERY, ids=LABELS)
def model(request):
    return make(**request.param)


# ------------------------------------------------------------------ plain formulas


@pytest.mark.parametrize("options", EVERY, ids=LABELS)
def test_against_plain_formulas(options):
    model = make(**{**options, "k": 4})
    for crystal in (zoo.random_crystal(4, atoms=2), zoo.rhombohedral(80), zoo.po()):
        with torch.no_grad():
            relaxed = model(model.graph([crystal]))
            lattices, positions = relax(model, crystal)
        for found, expected in zip(relaxed.lattices, lattices, strict=True):
            torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)
        for found, expected in zip(relaxed.frac_coords, positions, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"fields": "gradient_5", "positions": True}, {"fields": "ket_bra_5"}])
def test_slopes_against_plain_formulas(options):
    """The head's own backward pass: every parameter's slope, and those of lattice and positions."""
    model = make(**{**options, "k": 4})
    crystal = zoo.random_crystal(4, atoms=2)
    names, parameters = zip(*model.named_parameters(), strict=True)
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.autograd.grad(
        (model(model.graph([crystal])).lattices[-1][0] * weights).sum(), parameters, allow_unused=True
    )
    lattices, _ = relax(model, crystal)
    expected = torch.autograd.grad((lattices[-1] * weights).sum(), parameters, allow_unused=True)
    seen = 0
    for name, one, two in zip(names, found, expected, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, msg=name)
            seen += float(one.abs().max()) > 0
    assert seen > 20


def test_products_of_bfloat16_only_in_training():
    """Under autocast the answer of a model in use is the same bit for bit; in training it and its slopes are
    what eight bits allow, and cells stay in float64."""
    model = make(torch.float32, fields="gradient_5", positions=True)
    batch = model.graph(CRYSTALS)

    def slopes(half):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = model(batch).lattices[-1]
            found.square().mean().backward()
        return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, exact_slopes = slopes(False)
    assert torch.equal(slopes(True)[0], exact)
    model.train()
    rounded, rounded_slopes = slopes(True)
    assert rounded.dtype == torch.float64
    assert 1e-6 < float((rounded - exact).norm() / exact.norm()) < 3e-3
    assert float((rounded_slopes - exact_slopes).norm() / exact_slopes.norm()) < 0.02


def test_graph_against_a_box_of_images():
    for crystal in CRYSTALS:
        graph = EMPNN(k=8, **SMALL).graph([crystal]).graph
        found = {
            (int(i), int(j), *image)
            for i, j, image in zip(graph.center, graph.neighbor, graph.image.tolist(), strict=True)
        }
        assert found == {(i, j, *image) for i, j, image in nearest(crystal, 8)}


@pytest.mark.parametrize(
    ("cls", "options", "count"),
    [
        (EMPNN, {}, 3_117_848),
        (EMPNN, {"fields": "gradient_sym_1"}, 12_800 + 10 * 161_124 + 4 * 157_029),
        (EMPNN, {"fields": "ket_bra_2"}, 12_800 + 10 * 161_124 + 4 * (216_423 - 2 * 257)),
        (EMPNN, {"layers": 8, "blocks": 8, "repeated": True}, 12_800 + 9 * 161_124 + 157_029 + 216_423),
        (FeedForward, {}, 12_800 + 6 * 161_124 + 4 * 128 * 129 + 6 * 129),
    ],
)
def test_parameter_count(cls, options, count):
    assert sum(p.numel() for p in cls(**options).parameters()) == count


# ------------------------------------------------------------------ symmetry


def test_rotation_and_reflection(model):
    before = answer(model, CRYSTALS)
    assert max(np.abs(a - c.lattice).max() for a, c in zip(before[0], CRYSTALS, strict=True)) > 1e-3
    for sign in (1, -1):
        turns = [sign * zoo.rotation(i) for i in range(len(CRYSTALS))]
        after = answer(model, [zoo.rotated(c, q) for c, q in zip(CRYSTALS, turns, strict=True)])
        expected = np.stack([a @ q.T for a, q in zip(before[0], turns, strict=True)])
        assert_near(after, (expected, before[1]))


def test_translation_and_order(model):
    before = answer(model, CRYSTALS)
    lattices, atoms = answer(model, [zoo.shifted(c, i) for i, c in enumerate(CRYSTALS)])
    shifts = [zoo.shifted(c, i).frac_coords - c.frac_coords for i, c in enumerate(CRYSTALS)]
    assert_near((lattices, [x - s for x, s in zip(atoms, shifts, strict=True)]), before)
    orders = [np.random.default_rng(i).permutation(len(c)) for i, c in enumerate(CRYSTALS)]
    after = answer(model, [zoo.permuted(c, i) for i, c in enumerate(CRYSTALS)])
    assert_near(after, (before[0], [x[o] for x, o in zip(before[1], orders, strict=True)]))
    steps = [zoo.unwrapped(c, i).frac_coords - c.frac_coords for i, c in enumerate(CRYSTALS)]
    lattices, atoms = answer(model, [zoo.unwrapped(c, i) for i, c in enumerate(CRYSTALS)])
    assert_near((lattices, [x - s for x, s in zip(atoms, steps, strict=True)]), before)


def word(seed, length=6, bound=3):
    """A random product of elementary matrices, determinant 1, entries up to ± bound."""
    rng = np.random.default_rng(seed)
    m = np.eye(3, dtype=int)
    for _ in range(length):
        step = np.eye(3, dtype=int)
        i, j = rng.choice(3, 2, replace=False)
        step[i, j] = rng.choice([-1, 1])
        if np.abs(step @ m).max() <= bound:
            m = step @ m
    return m


def test_other_bases(model):
    """SL3(Z), and one of determinant -1; positions go with the basis."""
    before = answer(model, CRYSTALS)
    for seed in range(3):
        words = [word(20 * seed + i) for i in range(len(CRYSTALS))]
        words[0] = np.diag([1, 1, -1]) @ words[0]
        after = answer(model, [zoo.rebased(c, m) for c, m in zip(CRYSTALS, words, strict=True)])
        expected = np.stack([m @ a for a, m in zip(before[0], words, strict=True)])
        atoms = [x @ np.linalg.inv(m) for x, m in zip(before[1], words, strict=True)]
        assert_near(after, (expected, atoms))


@pytest.mark.parametrize("matrix", [np.diag([2, 1, 1]), np.array([[1, 1, 0], [-1, 1, 0], [0, 1, 2]])])
def test_supercell(model, matrix):
    """It deforms as the cell does."""
    before = answer(model, CRYSTALS)
    bigger = [c.supercell(matrix) for c in CRYSTALS]
    after = answer(model, bigger)
    np.testing.assert_allclose(after[0], matrix @ before[0], rtol=0, atol=1e-10)
    inverse = np.linalg.inv(matrix)
    for c, big, x, moved in zip(CRYSTALS, bigger, before[1], after[1], strict=True):
        step = (x - c.frac_coords) @ inverse
        found = moved - big.frac_coords
        place = (big.frac_coords[:, None] - (c.frac_coords @ inverse)[None]) @ matrix
        copy_of = np.abs(place - place.round()).max(2).argmin(1)
        np.testing.assert_allclose(found, step[copy_of], rtol=0, atol=1e-10)


def test_batch_against_single(model):
    together = answer(model, CRYSTALS)
    for i in (0, 3, 5):
        lattice, atoms = answer(model, [CRYSTALS[i]])
        assert_near((together[0][[i]], [together[1][i]]), (lattice, atoms), 1e-12)
    with torch.no_grad():
        chosen = model.graph(CRYSTALS).compact().select([5, 0, 2])
        lattices = model(chosen).lattices[-1].numpy()
    np.testing.assert_allclose(lattices, together[0][[5, 0, 2]], rtol=0, atol=1e-12)


def test_all_at_once_in_float32():
    for fields in ("ket_bra_4", "ket_bra_5", "gradient_4", "gradient_sym_5"):
        model = make(torch.float32, fields=fields)
        turns = [(-1) ** i * zoo.rotation(i) for i in range(len(CRYSTALS))]
        words = [word(i) for i in range(len(CRYSTALS))]
        other = [
            zoo.permuted(zoo.shifted(zoo.rebased(zoo.rotated(c, q), m), i), i)
            for i, (c, q, m) in enumerate(zip(CRYSTALS, turns, words, strict=True))
        ]
        before, after = answer(model, CRYSTALS)[0], answer(model, other)[0]
        expected = np.stack([m @ a @ q.T for a, q, m in zip(before, turns, words, strict=True)])
        assert np.abs(after - expected).max() <= 1e-4 * np.abs(expected).max()


def test_feed_forward_turns_with_the_crystal():
    model = make(cls=FeedForward)
    before = answer(model, CRYSTALS)
    for sign in (1, -1):
        turn = sign * zoo.rotation(4)
        after = answer(model, [zoo.permuted(zoo.shifted(zoo.rotated(c, turn), 1), 2) for c in CRYSTALS])
        np.testing.assert_allclose(after[0], before[0] @ turn.T, rtol=0, atol=1e-10)
    declared = model.symmetry
    assert not declared.lattice_basis
    assert not declared.supercell
    other = answer(model, [zoo.rebased(c, word(i)) for i, c in enumerate(CRYSTALS)])
    expected = np.stack([word(i) @ a for i, a in enumerate(before[0])])
    assert np.abs(other[0] - expected).max() > 0.1


def test_feed_forward_returns_the_parameters_it_predicts():
    model = make(cls=FeedForward)
    targets = cell_parameters(torch.from_numpy(np.stack([c.lattice for c in CRYSTALS])))
    model.set_targets(targets)
    scale = Normalisation.of(targets)
    torch.testing.assert_close(model.mean, scale.mean)
    torch.testing.assert_close(model.std, scale.std)
    relaxed = model(model.graph(CRYSTALS))
    torch.testing.assert_close(
        cell_parameters(relaxed.lattices[-1]), relaxed.parameters, rtol=1e-10, atol=1e-9
    )
    assert len(relaxed.lattices) == len(relaxed.frac_coords) == 2
    model.mean.copy_(torch.tensor([4.0, 4, 4, 150, 150, 150]))  # no cell has these angles
    relaxed = model(model.graph(CRYSTALS))
    relaxed.lattices[-1].square().sum().backward()
    assert bool((torch.linalg.det(relaxed.lattices[-1]).abs() > 0.1).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


# ------------------------------------------------------------------ hard input


def hard():
    """One atom, a needle, a plate, a sharp cell, and a cube of 1 Å."""
    sharp = zoo._cell(4.0, 4.2, 4.4, 25, 27, 30)
    return [
        zoo.po(),
        Crystal(np.diag([2.5, 2.5, 60.0]), [[0, 0, 0], [0.5, 0.5, 0.02]], [14, 8], name="needle"),
        Crystal(np.diag([40.0, 40.0, 2.4]), [[0, 0, 0], [0.1, 0.0, 0.5]], [6, 1], name="plate"),
        Crystal(sharp, [[0, 0, 0], [0.4, 0.5, 0.6]], [11, 17], name="sharp"),
        zoo.random_crystal(3).replace(lattice=np.eye(3)),
        zoo.rotated(zoo.random_crystal(2), -np.eye(3)),  # left-handed
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hard_cells_stay_cells(model, dtype):
    """Finite there and back, no cell turned inside out."""
    model = make(dtype, **model.options).train()
    batch = model.graph(hard())
    relaxed = model(batch)
    first, last = relaxed.lattices[0], relaxed.lattices[-1]
    assert bool((torch.linalg.det(first).sign() == torch.linalg.det(last).sign()).all())
    last.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


def test_slopes_reach_lattice_and_positions():
    """Against central differences on a fixed graph, with straight lines in it."""
    model = make(positions=True)
    for crystal in (zoo.nacl(), zoo.random_crystal(4, atoms=3)):
        batch = model.graph([crystal])
        weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def value(lattice, frac, batch=batch, weights=weights):
            return (model(replace(batch, lattice=lattice, frac_coords=frac)).lattices[-1][0] * weights).sum()

        inputs = [batch.lattice.clone().requires_grad_(), batch.frac_coords.clone().requires_grad_()]
        slopes = torch.autograd.grad(value(*inputs), inputs)
        assert all(bool(torch.isfinite(s).all()) for s in slopes)
        if len(crystal) == 2:
            continue  # the sine has a corner on a straight line
        for which, entry in ((0, (0, 0, 1)), (0, (0, 2, 2)), (1, (1, 0)), (1, (2, 2))):
            ends = []
            for h in (1e-5, -1e-5):
                moved = [t.detach().clone() for t in inputs]
                moved[which][entry] += h
                with torch.no_grad():
                    ends.append(value(*moved))
            assert float(slopes[which][entry]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_wrong_options_are_refused():
    for options, words in (
        ({"k": 1}, "k of at least 2"),
        ({"blocks": 0}, "blocks and channels of at least 1"),
        ({"min_sin": 1.0}, "min_sin from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            EMPNN(**options)
    model = make()
    fermium = model.graph([Crystal(np.eye(3) * 4, [[0, 0, 0]], [100])])
    with pytest.raises(ValueError, match="atomic numbers"):
        model(fermium)
    with pytest.raises(ValueError, match="k of at least 1"):
        FeedForward(k=0)


def test_learns_noisy_cells_by_heart():
    """A small network and few steps, for time; benchmarks/overfit.py has the published one on 16 cells of
    MP-20 and 2 000 steps."""
    rng = np.random.default_rng(0)
    crystals = [zoo.random_crystal(seed, atoms=2) for seed in range(6)]
    noisy = [c.replace(lattice=c.lattice @ expm(rng.normal(0, 0.1, (3, 3)))) for c in crystals]
    target = torch.from_numpy(np.stack([c.lattice for c in crystals]))
    model = make(torch.float32, amplify=False, channels=48, k=5).train()
    batch = model.graph(noisy)
    steps = 120
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    raw = float(riemann(batch.lattice, target))
    for _ in range(steps):
        loss = riemann(model(batch).lattices[-1], target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.1 * raw
