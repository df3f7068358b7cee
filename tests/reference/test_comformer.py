"""ComFormer against its plain formulas, e3nn, closed forms and the numbers of the paper."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from facetry.graph import LatticeKNearest
from facetry.models import MODELS, EComFormer, IComFormer
from facetry.nn.basis import GaussianBasis
from facetry.nn.convolution import EquivariantUpdate, spherical_harmonics
from tests import crystals as zoo
from tests.reference import plain_comformer as plain

CRYSTALS = [zoo.random_crystal(1, atoms=3), zoo.tellurium(), zoo.nacl(), zoo.random_crystal(7, atoms=2)]


def make(cls, dtype=torch.float64, **options):
    torch.manual_seed(5)
    model = cls(channels=16, k=6, **options).to(dtype)
    for module in model.modules():  # running statistics as after some training
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def one_frame(model, crystals):
    return model.training_batch(model.graph(crystals), torch.Generator().manual_seed(3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("cls", "formula", "options"),
    [
        (IComFormer, plain.icomformer, {"layers": 3}),
        (IComFormer, plain.icomformer, {"layers": 1, "atom_features": "learned"}),
        (EComFormer, plain.ecomformer, {"layers": 2, "scalars": 8}),
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(cls, formula, options, training):
    model = make(cls, **options).train(training)
    batch = one_frame(model, CRYSTALS)
    fast = model(batch)
    slow = formula(model, batch)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((slow * weight).sum(), list(model.parameters()), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("degree", [0, 1])
def test_lower_degrees_are_the_formula_without_the_rest(degree):
    """Tensors (degree 1) or the whole update (degree 0) taken out of the plain formula by hand."""
    model = make(EComFormer, layers=2, scalars=8, degree=degree).eval()
    batch = one_frame(model, CRYSTALS)
    if degree == 0:
        graph, weight = batch.graph, plain.edge_weights(batch)
        f = plain.embed_length(model, batch.edge_vectors().norm(dim=1))
        x = model.atoms(batch.atomic_numbers)
        for layer in model.layers:
            x = plain.node_layer(layer, x, f, graph.center, graph.neighbor, weight)
        expected = plain.readout(model, x, batch.crystal_index, len(batch))
    else:
        whole = make(EComFormer, layers=2, scalars=8).eval()
        whole.load_state_dict(model.state_dict() | _without_tensors(whole, model), strict=True)
        expected = plain.ecomformer(whole, batch)
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-12)


def _without_tensors(whole, model):
    """The weights of a degree-1 model in the shapes of a degree-2 one: zero where tensors enter, and the
    second product's norm over 24 inputs instead of 16 undone."""
    state, n = whole.state_dict(), model.update.scalars
    found = {}
    for part, kept in (("first", n * n + 8 * n), ("second", n * n + 8 * n)):
        for what in ("weight", "bias"):
            key = f"update.{part}.out.{what}"
            value = torch.zeros_like(state[key])
            value[:kept] = model.state_dict()[key]
            if part == "second":
                value *= ((n + 16) / (n + 8)) ** 0.5
            found[key] = value
    return found


@pytest.mark.parametrize("cls", [IComFormer, EComFormer])
def test_small_pieces_change_nothing(cls, monkeypatch):
    """Edges, and frames, evaluated in pieces of any size: one edge, a few, more than there are."""
    from facetry.models import comformer
    from facetry.nn import attention

    model = make(cls, layers=2).eval()
    batch = model.graph([*CRYSTALS, zoo.srtio3(), zoo.low_motif(zoo.fcc(6.8), "fcc")])
    with torch.no_grad():
        whole = model(batch), model.embed_atoms(batch)
        for edges, views in ((1, 1), (7, 100), (10**6, 10**7)):
            monkeypatch.setattr(attention, "_CHUNK", edges)
            monkeypatch.setattr(comformer, "_VIEW_EDGES", views)
            torch.testing.assert_close(model(batch), whole[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(model.embed_atoms(batch), whole[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [IComFormer, EComFormer])
def test_outputs_and_embedding_at_once(cls):
    model = make(cls, layers=2).eval()
    batch = model.graph(CRYSTALS)
    with torch.no_grad():
        outputs, pooled = model.forward_with_embedding(batch)
        assert torch.equal(outputs, model(batch))
        assert torch.equal(pooled, model.embed(batch))


def test_training_draws_frames_by_their_weight():
    """Weights 1/8 and 7/8: within four deviations of 2000 draws; the same for one seed."""
    from dataclasses import replace

    model = make(IComFormer, layers=2)
    batch = model.graph([zoo.po(), zoo.zno(), zoo.nacl()])
    weight = batch.frames.weight.clone()
    assert batch.frames.num_frames.tolist() == [1, 2, 6]
    weight[1:3] = torch.tensor([0.125, 0.875])
    batch = replace(batch, frames=replace(batch.frames, weight=weight))
    counts = torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        frames = model.training_batch(batch, generator).frames
        assert frames.crystal.tolist() == [0, 1, 2]
        counts += (batch.frames.integer[1:3] == frames.integer[1]).all((1, 2))
    assert counts.sum() == 2000
    assert abs(float(counts[0]) - 250) < 4 * (2000 * 0.125 * 0.875) ** 0.5
    first, again = (model.training_batch(batch, torch.Generator().manual_seed(4)).frames for _ in range(2))
    assert torch.equal(first.integer, again.integer)


def test_weighted_self_edges_enter_the_formula():
    """fcc: 12 vectors of equal length, each in one frame of two; k so small that they lie outside."""
    crystal = zoo.low_motif(zoo.fcc(8.0), "wide fcc")
    model = make(IComFormer, layers=2).eval()
    batch = one_frame(model, [crystal])
    weight = batch.graph.weight
    assert weight is not None
    assert float(weight.min()) == pytest.approx(0.5)
    torch.testing.assert_close(model(batch), plain.icomformer(model, batch), rtol=0, atol=1e-12)


def test_average_over_classes_is_the_average_over_all_frames():
    """Every one of the 24 frames evaluated by itself, with no merging of classes."""
    from dataclasses import replace

    from facetry.geometry.frames import tied_frames

    model = make(IComFormer, layers=2).eval()
    for crystal in (zoo.srtio3(), zoo.nacl(), zoo.orthorhombic_motif()):
        batch = model.graph([crystal])
        frames = tied_frames(batch.lattice)
        with torch.no_grad():
            all_frames = model(replace(batch, frames=frames))
            torch.testing.assert_close(model(batch), all_frames, rtol=0, atol=1e-12)
        assert len(frames.crystal) in (4, 24, 144)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # published 4 966 497 and 4 111 201; 74 080 of these are never read and not here
        ("icomformer", {}, 4_892_417),
        ("icomformer", {"layers": 3}, 4_037_121),
        ("ecomformer", {}, 12_459_137),
        ("ecomformer", {"scalars": 64}, 5_583_809),
        ("ecomformer", {"layers": 2}, 11_603_841),
        ("ecomformer", {"layers": 2, "scalars": 64}, 4_728_513),
    ],
)
def test_parameter_counts(name, options, count):
    assert sum(p.numel() for p in MODELS[name](**options).parameters()) == count


def test_gaussian_bases():
    """Centres, γ = 1/Δ, and the length 0.75 Å between two centres (specification §2.4)."""
    length, angle = GaussianBasis(-4.0, 0.0, 256), GaussianBasis(-1.0, 1.0, 256)
    assert length.gamma == pytest.approx(63.75, abs=1e-12)
    assert angle.gamma == pytest.approx(127.5, abs=1e-12)
    x = torch.tensor([-0.75 / 0.75], dtype=torch.float64)
    values = length(x)[0]
    below, above = length.centers[191], length.centers[192]
    assert float(below) <= -1 <= float(above)
    expected = torch.exp(-63.75 * (x - (-4 + 4 / 255 * torch.arange(256, dtype=torch.float64))) ** 2)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(length(x.float())[0].double(), expected, rtol=0, atol=1e-6)


def rotation_matrices(seed):
    matrix = torch.from_numpy(zoo.rotation(seed))
    return matrix


def test_harmonics_are_those_of_e3nn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from e3nn import o3
    direction = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1)
    theirs = o3.spherical_harmonics([1, 2], direction, normalize=True, normalization="component")
    ours = spherical_harmonics(direction)
    torch.testing.assert_close(ours[:, :3], theirs[:, :3], rtol=0, atol=1e-14)
    # another orthonormal basis of degree 2: all inner products agree
    torch.testing.assert_close(
        ours[:, 3:] @ ours[:, 3:].T, theirs[:, 3:] @ theirs[:, 3:].T, rtol=0, atol=1e-12
    )
    assert ours[:, :3].square().sum(1).sub(3).abs().max() < 1e-12
    assert ours[:, 3:].square().sum(1).sub(5).abs().max() < 1e-12


def test_tensor_products_are_those_of_e3nn():
    """Both products edge by edge as e3nn's FullyConnectedTensorProduct computes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from e3nn import o3
    torch.manual_seed(0)
    n, atoms, edges = 8, 5, 40
    update = EquivariantUpdate(16, n).double().eval()
    x = torch.randn(atoms, 16, dtype=torch.float64)
    f = torch.randn(edges, 16, dtype=torch.float64)
    center, neighbor = torch.randint(0, atoms, (edges,)).sort().values, torch.randint(0, atoms, (edges,))
    center[:atoms] = torch.arange(atoms)
    center = center.sort().values
    direction = torch.nn.functional.normalize(torch.randn(edges, 3, dtype=torch.float64), dim=1)
    theirs_y = o3.spherical_harmonics([0, 1, 2], direction, normalize=True, normalization="component")
    row = torch.arange(edges)
    scalars, irreps = o3.Irreps(f"{n}x0e"), o3.Irreps(f"{n}x0e+8x1o+8x2e")
    sh = o3.Irreps("1x0e+1x1o+1x2e")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = o3.FullyConnectedTensorProduct(scalars, sh, irreps, shared_weights=False).double()
        second = o3.FullyConnectedTensorProduct(irreps, sh, scalars, shared_weights=False).double()

    def weights(module):
        return module.out(torch.nn.functional.softplus(module.hidden(f)))

    h = update.project(x)
    message = first(h[neighbor], theirs_y, weights(update.first))
    one = torch.ones(edges, dtype=torch.float64)
    mean = plain.mean_over_edges(message, center, one, atoms)
    mean[:, :n] += h
    o = plain.mean_over_edges(second(mean[neighbor], theirs_y, weights(update.second)), center, one, atoms)
    softplus = torch.nn.functional.softplus
    expected = softplus(update.out(softplus(update.norm(o)))) + update.skip(x)
    # the same basis of degree 2 for both
    ours = update(x, f, row, theirs_y[:, 1:], center, neighbor, None)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_vectors_and_tensors_turn_with_the_crystal():
    """The features between the two products rotate with D¹(R) and D²(R)."""
    torch.manual_seed(2)
    update = EquivariantUpdate(16, 8).double().eval()
    direction = torch.nn.functional.normalize(torch.randn(30, 3, dtype=torch.float64), dim=1)
    x, f = torch.randn(4, 16, dtype=torch.float64), torch.randn(30, 16, dtype=torch.float64)
    center, neighbor = torch.arange(30) % 4, torch.randint(0, 4, (30,))
    center = center.sort().values
    turn = torch.from_numpy(zoo.rotation(4))
    # D² in the basis of the harmonics, from many directions at once
    probe = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=1)
    d2 = torch.linalg.lstsq(
        spherical_harmonics(probe)[:, 3:], spherical_harmonics(probe @ turn.T)[:, 3:]
    ).solution
    args = (torch.arange(30), center, neighbor)
    s, v, t = update.spread(x, f, args[0], spherical_harmonics(direction), args[1], args[2], None)
    s2, v2, t2 = update.spread(x, f, args[0], spherical_harmonics(direction @ turn.T), args[1], args[2], None)
    torch.testing.assert_close(s2, s, rtol=0, atol=1e-12)
    torch.testing.assert_close(v2, v @ turn.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(t2, t @ d2, rtol=0, atol=1e-12)
    assert float((v2 - v).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("crystal", "k", "clean", "duplicates"),
    [
        (zoo.po(), 12, 18, 36),
        (zoo.po(), 25, 26, 52),
        (zoo.cu(), 12, 12, 24),
        (zoo.cscl(), 16, 52, 88),
        (zoo.nacl(), 16, 36, 60),
        (zoo.nacl(), 25, 52, 76),
        (zoo.si(), 16, 32, 56),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_edge_counts_of_the_specification(crystal, k, clean, duplicates):
    assert len(LatticeKNearest(k=k)([crystal]).graph) == clean
    assert len(LatticeKNearest(k=k, reference_duplicates=True)([crystal]).graph) == duplicates


def test_noise_of_1e_7_leaves_the_edges_of_symmetric_crystals():
    rng = np.random.default_rng(0)
    for crystal in zoo.symmetric():
        noisy = type(crystal)(
            crystal.lattice,
            crystal.frac_coords + rng.normal(size=crystal.frac_coords.shape) * 1e-7 / 4,
            crystal.atomic_numbers,
        )
        found, expected = (
            LatticeKNearest(k=16)([c]).edge_vectors().norm(dim=1).sort().values for c in (noisy, crystal)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [IComFormer, EComFormer])
def test_a_wide_gap_keeps_the_edges_of_distorted_crystals(cls):
    """Atoms moved by 0.01 Å each: edges go with the gap of 1e-3 Å, with 0.05 Å all stay."""
    rest = zoo.srtio3()
    away = np.random.default_rng(1).normal(size=(5, 3)) * 0.01
    moved = rest.replace(frac_coords=rest.frac_coords + away / 3.905)
    counts = [
        [len(cls(channels=8, k=12, gap=gap).graph([c]).graph) for c in (rest, moved)] for gap in (1e-3, 0.05)
    ]
    assert counts[0][0] > counts[0][1]
    assert counts[0][0] == counts[1][0] == counts[1][1]
    with pytest.raises(ValueError, match=r"expected a gap from 0 to 0\.2 Å, came 0\.5"):
        cls(channels=8, gap=0.5)


def test_published_construction_depends_on_the_orientation():
    """Wurtzite, achiral, answers differently after inversion where one frame is picked by round-off."""
    ours = make(IComFormer, layers=2).eval()
    published = make(IComFormer, layers=2, construction="published").eval()

    def spread(model, crystals):
        with torch.no_grad():
            values = torch.cat([model(model.graph([c])) for c in crystals])
        return float(values.max() - values.min())

    turned = [zoo.rotated(zoo.zno(), zoo.rotation(i)) for i in range(12)]
    cells = [zoo.rebased(zoo.zno(), zoo.unimodular(i)) for i in range(12)]
    images = [*turned, *cells, zoo.mirrored(zoo.zno())]
    assert spread(ours, images) <= 1e-12
    assert spread(published, images) > 1e-9


def test_disconnected_graphs_get_more_neighbours(caplog):
    caplog.set_level("INFO", logger="facetry")
    from facetry.crystal import Crystal

    slabs = Crystal(np.diag([3.0, 3.0, 30.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [6, 7], name="two sheets")
    graph = LatticeKNearest(k=4)([slabs]).graph
    assert ((graph.center == 0) & (graph.neighbor == 1)).any()
    assert "two sheets" in caplog.text
    assert "instead of 4" in caplog.text
    from facetry.graph import GraphError

    far = Crystal(np.diag([3.0, 3.0, 900.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [6, 7], name="far.cif")
    with pytest.raises(GraphError, match=r"far\.cif: its graph falls into unconnected parts.*vacuum"):
        LatticeKNearest(k=4)([far])


def test_continuous_frames_pass_a_tie_without_a_jump():
    """Orthorhombic to monoclinic in steps of 1e-4: frames come and go with vanishing weights."""
    from facetry.crystal import Crystal

    base = zoo.orthorhombic_motif()
    values = {}
    for construction in ("continuous", "average"):
        model = make(IComFormer, layers=2, construction=construction).eval()
        with torch.no_grad():  # differences between frames are small at random weights
            for parameter in model.parameters():
                parameter.mul_(1.5)
        path = []
        for step in range(-30, 31):
            lattice = base.lattice.copy()
            lattice[2, 0] += 6.2 * 1e-4 * step
            path.append(Crystal(lattice, base.frac_coords, base.atomic_numbers))
        graphs = model.graph(path).graph.num_edges
        assert int(graphs.min()) == int(graphs.max())  # one edge set along the path: only frames change
        with torch.no_grad():
            values[construction] = model(model.graph(path))[:, 0].numpy()
    reference = values["continuous"]
    steps = np.abs(np.diff(reference))
    span = np.abs(values["average"]).max()
    assert steps.max() <= 1e-3 * span


@pytest.mark.parametrize(
    ("cls", "options"),
    [(IComFormer, {}), (EComFormer, {"scalars": 4}), (EComFormer, {"scalars": 4, "pseudoscalar": True})],
)
def test_gradcheck_of_a_small_copy(cls, options):
    from dataclasses import replace

    torch.manual_seed(1)
    model = cls(channels=16, layers=2, k=4, **options).double().eval()
    batch = one_frame(model, [zoo.random_crystal(3, atoms=2)])

    def energy(frac, lattice):
        return model(replace(batch, frac_coords=frac, lattice=lattice))

    inputs = (batch.frac_coords.clone().requires_grad_(), batch.lattice.clone().requires_grad_())
    assert torch.autograd.gradcheck(energy, inputs, eps=1e-6, atol=1e-7, rtol=1e-5)
