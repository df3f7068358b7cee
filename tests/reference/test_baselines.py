"""CGCNN, MEGNet and SchNet against plain formulas, closed forms and the numbers of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph import KNearest, Radius
from facetry.models import CGCNN, MODELS, MEGNet, SchNet
from facetry.nn.basis import GaussianBasis, shifted_softplus
from facetry.nn.readout import Set2Set
from facetry.nn.segment import linear_of_parts, segment_softmax
from tests import crystals as zoo
from tests.reference import plain_baselines as plain

CRYSTALS = [zoo.nacl(), zoo.tellurium(), zoo.random_crystal(1), zoo.random_crystal(4), zoo.po()]
NAMES = ["cgcnn", "megnet", "schnet"]


def make(name, dtype=torch.float64, **options):
    torch.manual_seed(5)
    model = MODELS[name](**options).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases away from zero
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.add_(0.1 * torch.randn_like(module.running_mean))
                module.running_var.mul_(torch.rand_like(module.running_var) + 0.5)
    return model


def outputs(model, crystals) -> np.ndarray:
    with torch.no_grad():
        return model(model.graph(crystals)).double().numpy()[:, 0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("cgcnn", {}), ("megnet", {}), ("schnet", {}), ("schnet", {"smooth": False})],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(name, options):
    """Projecting before gathering, distinct lengths, sums by segment and batching change nothing."""
    model = make(name, **options)
    fast = model(model.graph(CRYSTALS))
    slow = torch.stack([getattr(plain, name)(model, c, **options) for c in CRYSTALS])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((slow * weight).sum(), list(model.parameters()), allow_unused=True)
    for (parameter, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda m, n=parameter: f"{n}: {m}")


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("cgcnn", {}, 80_833),
        ("megnet", {}, 189_521),
        ("megnet", {"elements": 118}, 189_521 + 16 * 29),
        ("schnet", {}, 117_953),
    ],
)
def test_parameter_counts(name, options, count):
    assert sum(p.numel() for p in MODELS[name](**options).parameters()) == count


@pytest.mark.parametrize("name", NAMES)
def test_invariance(name):
    """E(3), order of atoms, basis and supercell, in both precisions, with the published sizes."""
    crystals = [zoo.random_crystal(seed) for seed in (0, 2, 5)] + [zoo.zno(), zoo.srtio3(), zoo.mg()]
    changed = {
        1e-9: [
            [
                zoo.permuted(zoo.shifted(zoo.rotated(c, -zoo.rotation(i)), i), i)
                for i, c in enumerate(crystals)
            ],
            [zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(i)) for i, c in enumerate(crystals)],
        ],
        1e-8: [
            [c.supercell(np.diag([2, 1, 1])) for c in crystals],
            [c.supercell(np.diag([2, 2, 2])) for c in crystals],
        ],
    }
    for dtype, factor in ((torch.float64, 1.0), (torch.float32, 1e5)):
        model = make(name, dtype)
        before = outputs(model, crystals)
        for bound, others in changed.items():
            for other in others:
                assert np.abs(outputs(model, other) - before).max() <= min(bound * factor, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_supercell_by_itself(name):
    """The networks are invariant to supercells, not only the search for primitive cells: Set2Set does not
    see how often its rows repeat."""
    from dataclasses import replace

    model, crystals = make(name), [zoo.random_crystal(2), zoo.zno(), zoo.nacl()]
    whole = replace(model.graph, primitive=False)
    with torch.no_grad():
        one, two = (model(whole(c)) for c in (crystals, [c.supercell(np.diag([1, 2, 2])) for c in crystals]))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-8)


def test_gaussians():
    """One spacing from the centre: 1/e with the width of CGCNN, e^(-1/2) in SchNet, e^(-Δ) without a width;
    MEGNet's fall to 1/e in 0.5 Å, in matgl in √2 Å."""
    x = torch.tensor([0.2, 0.4], dtype=torch.float64)
    by_width = CGCNN().basis(x)
    assert by_width.shape == (2, 41)
    assert float(by_width[0, 0]) == pytest.approx(math.exp(-1), abs=1e-12)
    assert float(by_width[1, 0]) == pytest.approx(math.exp(-4), abs=1e-12)
    assert float(CGCNN().basis.centers[-1]) == pytest.approx(8.0, abs=1e-12)
    schnet = SchNet().basis
    assert schnet.centers.tolist() == pytest.approx([5 / 24 * i for i in range(25)], abs=1e-12)
    assert float(schnet(x.new_tensor([5 / 24]))[0, 0]) == pytest.approx(math.exp(-0.5), abs=1e-12)
    no_width = GaussianBasis(0.0, 8.0, 41)
    assert float(no_width(x)[0, 0]) == pytest.approx(math.exp(-0.2), abs=1e-12)
    paper, matgl = MEGNet().basis, MEGNet(width=2**0.5).basis
    half = x.new_tensor([0.5])
    assert paper(half).shape == (1, 100)
    assert float(paper.centers[-1]) == 5.0
    assert float(paper(half)[0, 0]) == pytest.approx(math.exp(-1), abs=1e-12)
    assert float(matgl(half)[0, 0]) == pytest.approx(math.exp(-0.5 * 0.25), abs=1e-12)
    with pytest.raises(ValueError, match="width above 0"):
        GaussianBasis(0.0, 1.0, 4, width=0.0)


def test_equal_distances_are_kept():
    """NaCl has shells of 6, 12, 8: twelve neighbours become 18, of which none is chosen by chance; farther
    than the cutoff nobody counts."""
    for cells in (zoo.nacl(), zoo.nacl_conventional()):
        graph = CGCNN().graph([cells]).require_graph()
        assert torch.bincount(graph.center).tolist() == [18, 18]
    near = KNearest(12, cutoff=3.0)([zoo.nacl()]).require_graph()
    assert torch.bincount(near.center).tolist() == [6, 6]
    # a shell at the cutoff itself belongs to it, whatever rounding makes of its distance
    cubic = Crystal(np.eye(3) * 4.0, [[0, 0, 0]], [29], name="cubic, 4 Å")
    for seed in range(5):
        turned = zoo.rotated(cubic, zoo.rotation(seed))
        assert len(KNearest(12, cutoff=4.0)([turned]).require_graph()) == 6
        assert len(MEGNet().graph([turned]).require_graph()) == 6


def test_no_padding():
    """An atom with few neighbours sums over those it has; what else is in the batch does not matter."""
    sparse = Crystal(np.diag([14.0, 15.0, 7.0]), [[0, 0, 0], [0, 0, 0.3]], [8, 1], name="OH in a box")
    model = make("cgcnn")
    graph = model.graph([sparse]).require_graph()
    assert int(torch.bincount(graph.center).max()) < 12
    alone = outputs(model, [sparse])[0]
    assert abs(alone - float(plain.cgcnn(model, sparse).detach())) < 1e-12
    for others in ([zoo.nacl()], [zoo.po(), zoo.srtio3(), zoo.layered()]):
        assert abs(outputs(model, [*others, sparse])[-1] - alone) <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_atoms_without_neighbours(name):
    """By rule such an atom receives nothing; alone in its crystal, in a batch or beside others, never NaN."""
    alone = Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="Ar in a box")
    gap = Crystal(np.diag([3.0, 3.1, 30.0]), [[0, 0, 0], [0.5, 0.5, 0.45]], [29, 2], name="slab and an atom")
    model = make(name)
    assert len(model.graph([alone]).require_graph()) == 0
    together = outputs(model, [zoo.nacl(), alone, gap])
    assert np.isfinite(together).all()
    for crystal, value in zip([alone, gap], together[1:], strict=True):
        assert abs(outputs(model, [crystal])[0] - value) <= 1e-12
    batch = model.graph([alone])
    loss = model(batch).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def pair(distance: float) -> Crystal:
    """Two atoms that far apart in a wide cell."""
    return Crystal(np.eye(3) * 30, [[0, 0, 0], [distance / 30, 0, 0]], [6, 8])


def ratio(values: np.ndarray) -> float:
    steps = np.abs(np.diff(values))
    return float(steps.max() / np.median(steps[steps > 1e-12]))


def test_schnet_is_continuous():
    """Through the cutoff in a crystal where distances cross it all the time: cells are stretched slowly."""
    base = zoo.random_crystal(4)
    stretched = [
        Crystal(base.lattice * s, base.frac_coords, base.atomic_numbers) for s in np.linspace(1.0, 1.03, 200)
    ]
    crossings = {len(Radius(5.0)([c]).require_graph()) for c in (stretched[0], stretched[-1])}
    assert len(crossings) == 2
    smooth, hard = make("schnet"), make("schnet", smooth=False)
    assert ratio(outputs(smooth, stretched)) < 3
    assert ratio(outputs(hard, stretched)) > 10  # control
    # to the last neighbour: nothing jumps when it leaves
    for model, bound in ((smooth, (0, 1e-5)), (hard, (1e-2, np.inf))):
        inside, outside, farther = outputs(model, [pair(4.999), pair(5.001), pair(6.0)])
        assert abs(outside - farther) < 1e-12
        assert bound[0] <= abs(inside - outside) < bound[1]


def test_elements():
    """MEGNet's 89 rows: those beyond Pu and Po to Ra share; SchNet refuses what has no row."""
    rows = MEGNet().element_row[1:].tolist()
    assert sorted(set(rows)) == list(range(89))
    assert rows[:83] == list(range(83))
    assert rows[88:94] == list(range(83, 89))
    assert [rows[z - 1] for z in (84, 85, 86, 87, 88)] == [rows[z - 1] for z in (52, 53, 54, 55, 56)]
    assert [rows[z - 1] for z in (95, 103, 104, 118)] == [rows[z - 1] for z in (63, 71, 72, 54)]
    assert MEGNet(elements=118).element_row[1:].tolist() == list(range(118))
    rutherfordium = Crystal(np.eye(3) * 3, [[0, 0, 0]], [104], name="Rf")
    model = make("schnet")
    with pytest.raises(ValueError, match=r"104.*1 to 99"):
        model(model.graph([rutherfordium]))
    assert np.isfinite(outputs(make("megnet"), [rutherfordium])).all()


def test_set2set():
    """Order and repetition do not matter, a missing crystal is a summary of nothing, gradients exist."""
    torch.manual_seed(0)
    pool = Set2Set(6, 3).double()
    rows = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    crystal = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    out = pool(rows, crystal, 3)
    assert out.shape == (3, 12)
    torch.testing.assert_close(out[0], plain.set2set(pool, rows[:3]), rtol=0, atol=1e-13)
    torch.testing.assert_close(out[2], plain.set2set(pool, rows[3:]), rtol=0, atol=1e-13)
    assert out[1, 6:].abs().max() == 0
    order = torch.randperm(7)
    torch.testing.assert_close(pool(rows[order], crystal[order], 3), out, rtol=0, atol=1e-13)
    twice = pool(torch.cat([rows, rows]), torch.cat([crystal, crystal]), 3)
    torch.testing.assert_close(twice, out, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda r: pool(r, crystal, 3), (rows,))


def test_small_layers():
    torch.manual_seed(0)
    values, index = torch.randn(9, dtype=torch.float64) * 300, torch.tensor([0, 0, 3, 3, 3, 1, 1, 1, 1])
    share = segment_softmax(values, index, 4)
    for k in (0, 1, 3):
        torch.testing.assert_close(share[index == k], torch.softmax(values[index == k], 0))
    layer = torch.nn.Linear(5, 4).double()
    a, b = torch.randn(3, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    rows = torch.tensor([2, 0, 1, 1, 2, 0])
    torch.testing.assert_close(
        linear_of_parts(layer, [(a, rows), (b, None)]), layer(torch.cat([a[rows], b], 1))
    )
    assert float(shifted_softplus(torch.zeros(()))) == pytest.approx(0, abs=1e-7)
    tiny = torch.tensor([0.01], dtype=torch.bfloat16)
    assert float(shifted_softplus(tiny)) == pytest.approx(0.005, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cgcnn", {"layers": 0}, "layers of at least 1"),
        ("cgcnn", {"cutoff": 0.1}, "cutoff above 0.2"),
        ("megnet", {"passes": 0}, "passes of at least 1"),
        ("megnet", {"cutoff": 0}, "cutoff above 0"),
        ("megnet", {"elements": 95}, "elements of 89 or 118"),
        ("schnet", {"cutoff": -1.0}, "cutoff above 0"),
        ("schnet", {"layers": 0}, "layers of at least 1"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](**options)


@pytest.mark.parametrize("name", NAMES)
def test_overfit(name, data_folder):
    """64 crystals of Perov-5 are learned to less than a twentieth of their spread within 300 epochs."""
    from facetry import dataset

    part = dataset("perov5", "heat_all", limit={"train": 64}).train
    y = torch.from_numpy(part.targets[:, 0])
    labels = ((y - y.mean()) / y.std()).float()[:, None]
    torch.manual_seed(0)
    model = MODELS[name]().train()
    batch = model.graph(part.crystals)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        loss = (model(batch) - labels).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        if float(loss.detach()) < 2e-3:  # root mean square: the mean error is below that
            return
    raise AssertionError(f"mean square error {float(loss.detach()):.2g} after 300 epochs")
