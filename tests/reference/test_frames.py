"""Every kind of frame: against plain formulas, under the symmetries, at ties and on paths through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from facetry.crystal import Crystal
from facetry.graph import Sphere
from facetry.models import Crystalformer, CrystalFramer
from facetry.nn.dynamic_frames import FRAMES, entmax, strongest_axes
from facetry.nn.lattice_attention import surroundings
from tests import crystals as zoo
from tests.reference import plain_crystalframer as plain
from tests.reference.test_crystalframer import CRYSTALS, HCP, WURTZITE, make, outputs

KINDS = tuple(FRAMES)
TIED = [WURTZITE, HCP, zoo.cu(), zoo.fe(), zoo.si(), zoo.nacl(), zoo.srtio3()]
ACHIRAL = [WURTZITE, zoo.nacl(), zoo.si()]
CHIRAL = [zoo.random_crystal(3, atoms=5), zoo.orthorhombic_motif()]


def change(model, before, after) -> float:
    return float(np.abs(outputs(model, before) - outputs(model, after)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_plain_formula(kind):
    """Outputs and gradients of all parameters are those of the loop over atoms, images and frames."""
    crystals = [CRYSTALS[0], zoo.tellurium(), zoo.fe()]
    model = make(CrystalFramer, reach=2.0, frames=kind, blocks=1)
    fast = model(model.graph(crystals))
    slow = torch.stack([plain.forward(model, c) for c in crystals])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    ours = torch.autograd.grad(fast.sum(), list(model.parameters()))
    theirs = torch.autograd.grad(slow.sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_tied_crystals_under_rotation_and_reflection(kind, dtype, bound):
    model = make(CrystalFramer, dtype, frames=kind)
    turned = [zoo.rotated(c, zoo.rotation(i + s)) for s in (0, 20) for i, c in enumerate(TIED)]
    assert change(model, TIED * 2, turned) <= bound
    assert change(model, ACHIRAL, [zoo.mirrored(c) for c in ACHIRAL]) <= bound
    across = np.diag([1.0, 1.0, -1.0])
    assert change(model, ACHIRAL, [zoo.rotated(c, across) for c in ACHIRAL]) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions_of_a_crystal(kind):
    """Origin, order, images, cell and supercell: nothing changes, except for frames that see the cell."""
    crystals = [*CRYSTALS[:2], *TIED]
    model = make(CrystalFramer, frames=kind)
    for operation in (zoo.shifted, zoo.permuted):
        assert change(model, crystals, [operation(c, i) for i, c in enumerate(crystals)]) <= 1e-12
    for operation, declared in (
        (lambda c, i: zoo.rebased(zoo.unwrapped(c, i), zoo.unimodular(i)), model.symmetry.lattice_basis),
        (lambda c, i: c.supercell(np.diag([1, 2, 1])), model.symmetry.supercell),
    ):
        other = [operation(c, i) for i, c in enumerate(crystals)]
        assert (change(model, crystals, other) <= 1e-12) == declared == (kind != "pca")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "least", "most"), [(torch.float64, 1e-6, 1e-12), (torch.float32, 1e-5, 1e-5)]
)
def test_mirror_image_of_a_chiral_crystal(kind, dtype, least, most):
    model = make(CrystalFramer, dtype, frames=kind)
    chiral = CHIRAL[:1] if kind == "lattice" else CHIRAL  # right angles: signs are averaged, both hands alike
    seen = np.abs(outputs(model, chiral) - outputs(model, [zoo.mirrored(c) for c in chiral]))
    if model.symmetry.reflection:
        assert seen.max() <= most
    else:
        assert seen.min() >= least
    assert model.symmetry.reflection == (kind in ("weighted_pca", "pca"))


def test_the_baseline_sees_no_mirror_image():
    model = make(Crystalformer)
    assert change(model, CHIRAL, [zoo.mirrored(c) for c in CHIRAL]) <= 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_no_angular_weights_is_the_baseline(kind):
    framer, former = make(CrystalFramer, frames=kind), make(Crystalformer)
    weights = {k: v for k, v in framer.state_dict().items() if "angular" not in k}
    former.load_state_dict(weights)
    former.graph = framer.graph
    with torch.no_grad():
        for block in framer.blocks:
            block.attention.angular.zero_()
    assert (outputs(framer, CRYSTALS) == outputs(former, CRYSTALS)).all()


def choose(kind, crystals, dtype=torch.float64, generator=None, heads=3):
    """Frames of the first layer for made-up logits that depend on elements and distances."""
    frames = FRAMES[kind]()
    batch = Sphere(6.0, **frames.sphere)(crystals)
    (part,) = surroundings(batch, dtype, frames, generator).parts
    z = batch.atomic_numbers[batch.graph.neighbor[part.entry]]
    steep = torch.arange(1, heads + 1).double()[:, None]
    logits = torch.sin(z[:, None, :] * steep) - part.squared[:, None, :] / 4 / steep
    logits = logits.masked_fill(~part.present[:, None, :], -torch.inf).to(dtype)
    axes = frames(part, logits, torch.softmax(logits, 2), generator)
    owner = part.atom[axes.owner // heads] * heads + axes.owner % heads
    owner, order = owner.sort(stable=True)
    return replace(axes, owner=owner, vectors=axes.vectors[order], weight=axes.weight[order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_frames_are_right_handed_and_turn_with_the_crystal(kind, dtype, bound):
    """Drawn frames, as principal axes are in pairs of opposite sign otherwise; their sign is no one's."""
    crystal, turn = zoo.random_crystal(3, atoms=5), zoo.rotation(2)
    one, two = (
        choose(kind, [c], dtype, torch.Generator().manual_seed(0)).vectors
        for c in (crystal, zoo.rotated(crystal, turn))
    )
    product, eye = one @ one.transpose(1, 2), torch.eye(3).double()
    if kind == "lattice":  # unit vectors, e2 and e3 on the side of e1
        assert (torch.linalg.det(one) > 0).all()
        assert (product[:, 0] >= -1e-12).all()
        product = product.diagonal(dim1=1, dim2=2).diag_embed()
    else:
        torch.testing.assert_close(torch.linalg.det(one), torch.ones(len(one)).double(), rtol=0, atol=bound)
    torch.testing.assert_close(product, eye.expand_as(product), rtol=0, atol=bound)
    again = two @ torch.tensor(turn)
    if kind in ("weighted_pca", "pca"):
        again = again * (again * one).sum(2, keepdim=True).sign()
    torch.testing.assert_close(again, one, rtol=0, atol=max(bound, 1e-12) if "pca" in kind else bound)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_an_owner_weigh_one(kind):
    axes = choose(kind, [WURTZITE, zoo.cu(), zoo.srtio3(), *CRYSTALS])
    total = torch.zeros(int(axes.owner.max()) + 1).double().index_add(0, axes.owner, axes.weight)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-13)


def test_tied_frames_are_counted():
    """Six directions times four at right angles, or twelve times two, or four times three; lattice frames:
    144 in fcc."""
    for crystal, count in ((zoo.nacl(), 24), (zoo.cu(), 24), (zoo.po(), 24), (zoo.si(), 12)):
        (part,) = surroundings(Sphere(7.0)([crystal]), torch.float64).parts
        axes = strongest_axes(part, -part.squared[:, None, :], None)
        assert torch.bincount(axes.owner).tolist() == [count] * len(part.atom)
        assert torch.equal(
            torch.bincount(choose("continuous", [crystal]).owner).unique(), torch.tensor([count])
        )
    for crystal, count in ((zoo.po(), 24), (zoo.cu(), 144)):
        assert torch.bincount(choose("lattice", [crystal]).owner).tolist() == [count] * 3


def test_static_frames_follow_the_nearest_images():
    """Not the farthest for e2, as in the published code; ties at both steps."""
    crystal = zoo.random_crystal(3, atoms=5)
    around = plain.images(crystal, 6.0, False)
    axes = choose("static", [crystal], heads=1)
    for i, (_, r) in enumerate(around):
        nearest = r[1] / r[1].norm()
        torch.testing.assert_close(axes.vectors[i, 0], nearest, rtol=0, atol=1e-12)
        unit = r[1:] / r[1:].norm(dim=1, keepdim=True)
        score = torch.exp(-r[1:].square().sum(1)) * (1 - (unit @ nearest).abs())
        u = unit[score.argmax()]
        e2 = u - (u @ nearest) * nearest
        torch.testing.assert_close(axes.vectors[i, 1], e2 / e2.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_training_draws_tied_frames_and_evaluation_averages_them(kind):
    """The mean over draws is the average of one layer; evaluation does not depend on any random state."""
    model = make(CrystalFramer, frames=kind, blocks=1, reach=1.8)
    batch = model.graph([HCP, WURTZITE, zoo.random_crystal(2)])
    count = 4 if kind == "continuous" else 150
    with torch.no_grad():
        average = model.embed(batch)
        torch.manual_seed(1)
        assert (model.embed(batch) == average).all()
        attention, x = model.blocks[0].attention, model.elements[batch.atomic_numbers - 1]

        def layer(generator=None):
            return attention(x, surroundings(batch, torch.float64, attention.frames, generator), generator)

        exact, again = layer(), layer(torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack([layer(generator) for _ in range(count)])
    assert (draws[0] == again).all()
    spread = draws.std(0)
    assert (float(spread.max()) > 1e-5) == (kind != "continuous")
    assert float(((draws.mean(0) - exact).abs() - 5 * spread / count**0.5).max()) <= 1e-12
    model.train()
    values = []
    for seed in (0, 0, 1):
        model.training_batch(batch, torch.Generator().manual_seed(seed))
        values.append(model(batch).detach())
    assert (values[0] == values[1]).all()
    assert (values[0] != values[2]).any() == (kind != "continuous")
    model.eval()  # a quick validation draws too, and only once
    model.training_batch(batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(batch) == values[0]).all()
        assert (model.embed(batch) == average).all()


def test_all_layers_and_atoms_share_the_lattice_frame_that_is_drawn():
    model = make(CrystalFramer, frames="lattice").train()
    model.training_batch(batch := model.graph([WURTZITE, zoo.srtio3()]), torch.Generator().manual_seed(0))
    layers = model.look(batch).layers
    assert torch.equal(layers[0].axes, layers[1].axes)
    crystal = batch.crystal_index[layers[0].owner // 2]
    for c in range(2):
        assert len(torch.unique(layers[0].axes[crystal == c], dim=0)) == 1


# ------------------------------------------------------------------ where axes do not exist


@pytest.mark.parametrize("kind", KINDS)
def test_axes_that_do_not_exist_add_nothing(kind):
    """One atom, atoms in a row, an atom alone in a box: finite, with finite gradients."""
    crystals = [
        zoo.po(),
        zoo.fe(),
        zoo.cscl(),
        Crystal(np.diag([9.0, 9.5, 2.4]), [[0, 0, 0], [0, 0, 0.5]], [6, 16], name="straight chain"),
        Crystal(np.diag([3.0, 3.1, 25.0]), [[0, 0, 0]], [6], name="slab"),
        Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="one atom in a large box"),
    ]
    model = make(CrystalFramer, frames=kind)
    batch = model.graph(crystals)
    frac, lattice = batch.frac_coords.requires_grad_(), batch.lattice.requires_grad_()
    batch = replace(batch, frac_coords=frac, lattice=lattice)
    value = model(batch)
    gradients = torch.autograd.grad(value.sum(), [frac, lattice, *model.parameters()])
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(g).all() for g in gradients)


def test_principal_axes_of_few_atoms():
    """One atom has no axes, two have the one between them, and it is the last."""
    one, two = choose("pca", [zoo.po()]), choose("pca", [zoo.cscl()])
    assert not one.vectors.any()
    assert not two.vectors[:, :2].any()
    line = torch.ones(3).double() / 3**0.5
    torch.testing.assert_close((two.vectors[:, 2] @ line).abs(), torch.ones(12).double(), rtol=0, atol=1e-14)


def test_a_graph_without_lattice_frames_is_refused():
    model = make(CrystalFramer, frames="lattice")
    with pytest.raises(ValueError, match="no lattice frames"):
        model(make(CrystalFramer).graph(CRYSTALS))
    with pytest.raises(ValueError, match="primitive=False"):
        Sphere(as_listed=True)


# ------------------------------------------------------------------ continuity


def path(steps: int, length: float = 0.02) -> list[Crystal]:
    """A sulphur atom of ideal wurtzite moves in a general direction through its tied place, ±`length` Å.

    The cell is primitive all the way: there is no smaller one that a finder could fall into.
    """
    along = np.array([0.6, 0.7, 0.3]) @ np.linalg.inv(WURTZITE.lattice) * length / 0.94**0.5
    place = np.array(WURTZITE.frac_coords)
    moved = [place + np.eye(4)[[2]].T * along * s for s in np.linspace(-1, 1, steps + 1)]
    return [Crystal(WURTZITE.lattice, f, WURTZITE.atomic_numbers, name="path") for f in moved]


def strained(steps: int) -> list[Crystal]:
    """The lattice of ideal wurtzite sheared through its tied shape."""
    shear = np.array([[0.6, 0.7, 0.3], [0, -0.5, 0.4], [0, 0, 0.2]]) * 0.004
    cells = [WURTZITE.lattice @ (np.eye(3) + s * shear) for s in np.linspace(-1, 1, steps + 1)]
    return [Crystal(c, WURTZITE.frac_coords, WURTZITE.atomic_numbers, name="strain") for c in cells]


def increments(model, crystals) -> tuple[float, float]:
    """The largest first and second difference of what one layer gives, which has no kinks of its own."""
    batch = model.graph(crystals)
    x = model.elements[batch.atomic_numbers - 1]
    with torch.no_grad():
        y = model.blocks[0].attention(x, surroundings(batch, torch.float64)).unflatten(0, (len(crystals), -1))
    return float(y.diff(dim=0).abs().max()), float(y.diff(n=2, dim=0).abs().max())


@pytest.mark.parametrize("way", [path, strained])
def test_continuous_frames_go_through_ties_smoothly(way):
    """Half the step: half the largest increment, a quarter of the largest second difference (so slopes do not
    jump either); max frames jump by the same amount however small the step."""
    smooth, jumping = make(CrystalFramer, frames="continuous", reach=4.0), make(CrystalFramer, reach=4.0)
    coarse, fine = (increments(smooth, way(n)) for n in (30, 60))
    assert fine[0] == pytest.approx(coarse[0] / 2, rel=0.1)
    assert fine[1] == pytest.approx(coarse[1] / 4, rel=0.2)
    jumps = [increments(jumping, way(n))[0] for n in (30, 60)]
    assert jumps[1] == pytest.approx(jumps[0], rel=0.1)
    assert jumps[1] > 20 * fine[0]


def test_outputs_on_a_path():
    """The whole network: increments in proportion to the step."""
    model = make(CrystalFramer, frames="continuous", reach=4.0)
    coarse, fine = (np.abs(np.diff(outputs(model, path(n)))).max() for n in (20, 40))
    assert fine == pytest.approx(coarse / 2, rel=0.1)


def test_slopes_of_weights_do_not_jump_at_ties():
    """Two images cross while a third is a little behind: dividing by the sum leaves a kink, entmax none."""

    def slope(x: float) -> torch.Tensor:
        logits = torch.tensor([x, -x, -0.03, -0.2], dtype=torch.float64, requires_grad=True)
        _, slot, weight = entmax(logits[None])
        assert slot.tolist() == [0, 1, 2]
        assert float(weight.detach().sum()) == pytest.approx(1, abs=1e-14)
        return torch.stack([torch.autograd.grad(w, logits, retain_graph=True)[0] for w in weight])

    assert float((slope(1e-9) - slope(-1e-9)).abs().max()) < 1e-5
    divided = []
    for x in (1e-9, -1e-9):
        logits = torch.tensor([x, -x, -0.03], dtype=torch.float64, requires_grad=True)
        weight = ((torch.exp(logits - logits.max()) - 0.9) / 0.1).square()
        divided.append(torch.autograd.grad((weight / weight.sum())[2], logits)[0])
    assert float((divided[0] - divided[1]).abs().max()) > 1


def test_entmax_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0):
        logits = torch.randn((50, 30), generator=generator, dtype=torch.float64) * scale
        owner, slot, weight = entmax(logits)
        full = torch.zeros_like(logits)
        full[owner, slot] = weight
        expected = torch.stack([plain.entmax(row) for row in logits])
        torch.testing.assert_close(full, expected, rtol=0, atol=1e-12)


def test_continuous_frames_are_max_frames_where_one_leads():
    crystals = [zoo.random_crystal(s, atoms=4) for s in range(6)]
    one, two = choose("max", crystals), choose("continuous", crystals)
    alone = (torch.bincount(one.owner) == 1) & (torch.bincount(two.owner) == 1)
    assert float(alone.double().mean()) > 0.3
    same = (one.vectors[alone[one.owner]] - two.vectors[alone[two.owner]]).abs().amax((1, 2)) < 1e-12
    assert float(same.double().mean()) > 0.9  # elsewhere max frames' lead is less than what rounds |cos| off


# ------------------------------------------------------------------ gradients of positions and lattice


@pytest.mark.parametrize("kind", ["max", "continuous", "static", "pca", "lattice"])
def test_gradients_of_positions_and_lattice(kind):
    """Against central differences; net force zero, stress symmetric. A crystal near ties for continuous."""
    crystals = [path(40)[17] if kind == "continuous" else zoo.random_crystal(4, atoms=4)]
    model = make(CrystalFramer, frames=kind)
    batch = model.graph(crystals)
    frac = batch.frac_coords.clone().requires_grad_()
    strain = torch.zeros((1, 3, 3), dtype=torch.float64, requires_grad=True)

    def energy(frac, strain):
        return model(replace(batch, frac_coords=frac, lattice=batch.lattice + batch.lattice @ strain)).sum()

    gradients = torch.autograd.grad(energy(frac, strain), (frac, strain))
    assert float(gradients[0].sum(0).abs().max()) <= 1e-12
    assert float((gradients[1] - gradients[1].transpose(1, 2)).abs().max()) <= 1e-12
    generator = torch.Generator().manual_seed(1)
    for which in range(2):
        values = [frac.detach(), strain.detach()]
        along = torch.randn(values[which].shape, generator=generator, dtype=torch.float64)
        h = 1e-6
        with torch.no_grad():
            up, down = (
                energy(*[v + s * along if n == which else v for n, v in enumerate(values)]) for s in (h, -h)
            )
        slope = float((gradients[which] * along).sum())
        assert slope == pytest.approx(float(up - down) / (2 * h), rel=1e-6, abs=1e-9)
