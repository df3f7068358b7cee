"""Explain: what is drawn is what the model computed, shapes are seen, pages are safe and whole."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import facetry
from facetry.card import ModelCard, Target
from facetry.cli import run
from facetry.crystal import Crystal
from facetry.models import MODELS, Crystalformer, CrystalFramer
from facetry.tasks.explain import NoExplanation, explain
from facetry.training import save_model
from tests import crystals as zoo
from tests.reference import plain_crystalframer as plain

SMALL = {"channels": 16, "heads": 2, "blocks": 2}
CALIBRATION = [zoo.nacl(), zoo.srtio3(), zoo.zno(), zoo.random_crystal(1, atoms=3)]


def make(cls=CrystalFramer, dtype=torch.float64, **options):
    torch.manual_seed(3)
    model = cls(**{**SMALL, **options}).to(dtype).eval()
    model.calibrate(CALIBRATION)
    return model


def page_data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


# ------------------------------------------------------------------ numbers


def test_weights_and_prediction_are_those_of_the_model():
    model, crystal = make(reach=2.5), zoo.random_crystal(1, atoms=3)
    found = explain(model, crystal)
    seen = {}
    output = plain.forward(model, crystal, seen).detach()
    assert found.predictions[0].value == pytest.approx(float(output), abs=1e-12)
    assert [a.site for a in found.atoms] == [0, 1, 2]
    for (layer, site, head), (j, r, p, frames) in seen.items():
        atom = found.atoms[site]
        assert atom.attention[layer, head].sum() == pytest.approx(1, abs=1e-12)
        place = np.linalg.norm(atom.vectors[:, None] - r.detach().numpy()[None], axis=2).argmin(1)
        np.testing.assert_allclose(atom.attention[layer, head], p.detach().numpy()[place], atol=1e-13)
        np.testing.assert_array_equal(atom.neighbor, j.numpy()[place])
        np.testing.assert_allclose(atom.axes[layer][head][0], frames[0][0].numpy(), atol=1e-9)


@pytest.mark.parametrize("crystal", [zoo.nacl_conventional(), zoo.unwrapped(zoo.zno(), 2)])
def test_sites_and_images_are_those_of_the_given_cell(crystal):
    found = explain(make(), crystal)
    for atom in found.atoms:
        frac = crystal.frac_coords[atom.neighbor] + atom.image - crystal.frac_coords[atom.site]
        np.testing.assert_allclose(frac @ crystal.lattice, atom.vectors, atol=1e-9)
        assert (atom.atomic_numbers == crystal.atomic_numbers[atom.neighbor]).all()
        assert atom.neighbor[0] == atom.site
        assert not atom.image[0].any()
    copies = sorted(site for a in found.atoms for site in [a.site, *a.copies])
    assert copies == list(range(len(crystal)))


def test_copies_are_explained_when_asked_for():
    (atom,) = explain(make(), zoo.nacl_conventional(), atom=3).atoms
    assert atom.site == 3
    assert atom.copies == [0, 1, 2]


@pytest.mark.parametrize(
    ("crystal", "site", "shape", "directions", "frames"),
    [
        (zoo.nacl(), 0, "octahedron", 6, 24),
        (zoo.nacl(), 1, "octahedron", 6, 24),
        (zoo.zns_blende(), 0, "tetrahedron", 4, 12),
        (zoo.cscl(), 0, "cube", 8, None),
        (zoo.srtio3(), 0, "cuboctahedron", 12, 24),
        (zoo.srtio3(), 1, "octahedron", 6, 24),
        (zoo.zno(), 0, "tetrahedron", None, None),
        (zoo.zno(), 2, "tetrahedron", None, None),
        (zoo.layered(), 0, "trigonal prism", 6, None),
    ],
)
def test_max_frames_see_the_polyhedron(crystal, site, shape, directions, frames):
    (atom,) = explain(make(), crystal, atom=site).atoms
    for layer, head in np.ndindex(2, 2):
        focus = atom.focus(layer, head)
        assert focus.pointed
        assert focus.shape == shape
        axes = atom.axes[layer][head]
        np.testing.assert_allclose(
            axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (len(axes), 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(axes), 1)
        assert atom.frame_weight[layer][head].sum() == pytest.approx(1)
        assert frames in (None, len(axes))
        assert directions in (None, len(np.unique(axes[:, 0].round(6), axis=0)))


@pytest.mark.parametrize("crystal", [zoo.random_crystal(4, atoms=3), zoo.nacl()])
def test_rotation_turns_frames_and_leaves_weights(crystal):
    turn, model = zoo.rotation(5), make()
    one, two = (
        explain(model, crystal, atom=1).atoms[0],
        explain(model, zoo.rotated(crystal, turn), atom=1).atoms[0],
    )
    place = np.linalg.norm((one.vectors @ turn.T)[:, None] - two.vectors[None], axis=2).argmin(1)
    np.testing.assert_allclose(one.attention, two.attention[:, :, place], atol=1e-12)
    for layer, head in np.ndindex(2, 2):
        turned = one.axes[layer][head] @ turn.T
        apart = np.abs(turned[:, None] - two.axes[layer][head][None]).max((2, 3))
        assert apart.min(1).max() < 1e-9
        assert sorted(apart.argmin(1)) == list(range(len(turned)))


def test_atoms_of_one_kind_are_shown_once():
    found = explain(make(dtype=torch.float32), zoo.srtio3())
    assert [a.site for a in found.distinct] == [0, 1, 2]
    assert found.alike[2] == [3, 4]
    text = str(found)
    assert "atom 2 (O); alike: 3, 4" in text
    assert re.search(r"layer 2 head \d: \d+ % self, .*6 O at 1\.95 Å \(octahedron, 24 tied frames\)", text)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Crystalformer, {}), (CrystalFramer, {"frames": "static"}), (CrystalFramer, {"frames": "weighted_pca"})],
)
def test_every_kind_of_frames_and_none(cls, options, tmp_path):
    found = explain(make(cls, **options), zoo.zno())
    names = [p.name for p in found.write(tmp_path)]
    framed = cls is CrystalFramer
    assert (
        names
        == ["ZnO-c-5.207.png", "ZnO-c-5.207.html", "ZnO-c-5.207.csv"] + ["ZnO-c-5.207-frames.csv"] * framed
    )
    assert "tetrahedron" in str(found)
    assert page_data(found.html())["framed"] == framed


@pytest.mark.parametrize(("reciprocal", "layers", "heads"), [("heads", [1, 2], 1), ("blocks", [1], 2)])
def test_heads_in_reciprocal_space_are_left_out(reciprocal, layers, heads, tmp_path):
    model = make(Crystalformer, reciprocal=reciprocal)
    found = explain(model, zoo.nacl(), atom=0)
    assert found.atoms[0].attention.shape[:2] == (len(layers), heads)
    assert found.atoms[0].layer_numbers == layers
    np.testing.assert_allclose(found.atoms[0].attention.sum(2), 1)
    assert {row["layer"] for row in found.weight_rows()} == set(layers)
    assert page_data(found.html())["layerNumbers"] == layers
    if reciprocal == "blocks":
        with pytest.raises(ValueError, match="layer 2: this model has layers 1 to 1 that attend to images"):
            explain(model, zoo.nacl(), layer=2)


def test_an_atom_that_sees_nobody(tmp_path):
    found = explain(make(Crystalformer), Crystal(np.eye(3) * 20, [[0, 0, 0]], [18], name="far"))
    assert "100 % self" in str(found)
    assert len(found.write(tmp_path)) == 3


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def perovskite():
    return explain(make(), zoo.srtio3())


def test_picture(perovskite):
    from PIL import Image

    image = Image.open(io.BytesIO(perovskite.png()))
    image.load()
    assert image.format == "PNG"
    assert 800 < image.width < 2500
    assert 800 < image.height < 4000
    assert len(image.convert("RGB").getcolors(1 << 20)) > 500


def test_pictures_of_one_layer_and_head(perovskite):
    found = explain(make(), zoo.srtio3(), atom=1, layer=2, head=1)
    assert found.png()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len([line for line in str(found).splitlines() if "layer" in line]) == 1
    assert "layer 2 head 1" in str(found)
    data = page_data(found.html())
    assert (data["layer"], data["head"]) == (1, 0)


def test_page_holds_every_layer_and_head(perovskite):
    page = perovskite.html()
    data = page_data(page)
    assert len(page) < 800_000
    assert len(data["atoms"]) == 5
    for atom, view in zip(data["atoms"], perovskite.atoms, strict=True):
        weights = np.array(atom["weights"]) * 1e-5
        assert weights.shape[:2] == (2, 2)
        places = [int(np.linalg.norm(view.vectors - np.array(p), axis=1).argmin()) for p in atom["positions"]]
        np.testing.assert_allclose(weights, view.attention[:, :, places], atol=1e-5)
        left = np.setdiff1d(np.arange(len(view.distance)), places)
        assert view.attention[:, :, left].max(initial=0) < data["least"]
        np.testing.assert_allclose(np.array(atom["shares"]).sum(2), 1, atol=1e-4)
        for layer, head in np.ndindex(2, 2):
            frames = np.array(atom["sets"][atom["set"][layer][head]])
            np.testing.assert_allclose(frames.reshape(-1, 3, 3), view.axes[layer][head], atol=1e-4)
    octahedron = data["atoms"][1]["hulls"][str(data["atoms"][1]["focus"][0][0][0])]
    assert (len(octahedron["faces"]), len(octahedron["edges"])) == (8, 12)


class Page(HTMLParser):
    """Elements, and whatever would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.fetched, self.policy = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        values = dict(attributes)
        self.fetched += [values[a] for a in ("src", "href", "srcset", "data", "action") if values.get(a)]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]


def test_page_needs_no_network(perovskite):
    page = Page(perovskite.html())
    assert not page.fetched
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy
    text = perovskite.html().split("<style>")[1].split("</style>")[0]
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize(
    "name",
    [
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "<!--<script>",
        "a & b 'c'",
        "../../etc",
        "@DATA@",
    ],
)
def test_hostile_names_stay_text(name, perovskite, tmp_path):
    crystal = zoo.srtio3().replace(name=name)
    found = explain(make(), crystal, atom=1)
    page = Page(found.html())
    assert page.elements == Page(explain(make(), zoo.srtio3(), atom=1).html()).elements
    assert not page.fetched
    for path in found.write(tmp_path):
        assert path.parent == tmp_path
        assert re.fullmatch(r"[A-Za-z0-9][\w.+-]*", path.name)


def test_strings_in_the_data_end_no_script():
    from facetry.evaluation.attention_page import inert_json

    text = "</script><!--<script>&\u2028"
    assert not set("<>&") & set(inert_json({text: [text]}))
    assert json.loads(inert_json({text: [text]})) == {text: [text]}


def test_tables(perovskite, tmp_path):
    perovskite.write(tmp_path)
    with (tmp_path / "SrTiO3.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    sums, selves = {}, 0
    for row in rows:
        key = row["atom"], row["layer"], row["head"]
        sums[key] = sums.get(key, 0) + float(row["weight"])
        if row["shell"] == "0":
            selves += 1
            assert (row["neighbor"], float(row["distance"])) == (row["atom"], 0)
    assert len(sums) == selves == 5 * 2 * 2
    np.testing.assert_allclose(list(sums.values()), 1, atol=1e-6)
    assert {row["layer"] for row in rows} == {row["head"] for row in rows} == {"1", "2"}
    with (tmp_path / "SrTiO3-frames.csv").open(encoding="utf-8", newline="") as stream:
        frames = [
            row
            for row in csv.DictReader(stream)
            if (row["atom"], row["layer"], row["head"]) == ("1", "1", "1")
        ]
    assert len(frames) == 24
    for row in frames:
        axes = np.array([[float(row[f"e{k}_{c}"]) for c in "xyz"] for k in (1, 2, 3)])
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-8)
        assert (row["element"], round(float(row["distance"]), 3)) == ("O", 1.952)
        assert float(row["weight"]) == pytest.approx(1 / 24)


# ------------------------------------------------------------------ mistakes


def test_mistakes_say_what_to_do(tmp_path):
    model, crystal = make(), zoo.nacl()
    with pytest.raises(
        ValueError, match=r"icomformer has no attention over images.*crystalformer, crystalframer"
    ):
        explain(MODELS["icomformer"](layers=1, channels=8, k=4), crystal)
    with pytest.raises(ValueError, match="NaCl: atom 7: its atoms are 0 to 1"):
        explain(model, crystal, atom=7)
    with pytest.raises(ValueError, match="layer 9: this model has layers 1 to 2"):
        explain(model, crystal, layer=9)
    with pytest.raises(NoExplanation, match="calibrate"):
        explain(CrystalFramer(**SMALL), crystal)
    with pytest.raises(NoExplanation, match=r"elements up to Cf \(98\)"):
        explain(model, Crystal(np.eye(3) * 4, [[0, 0, 0]], [102], name="No"))
    with pytest.raises(ValueError, match=r"expected one structure, came several \(NaCl, Po"):
        explain(model, [crystal, zoo.po(), zoo.cu()])
    assert explain(model, [crystal, zoo.po()], entry=1).crystal.name == "Po"
    assert explain(model, [crystal, zoo.po()], entry="Po").crystal.name == "Po"
    with pytest.raises(ValueError, match="entry 5: there is none among 2 structures"):
        explain(model, [crystal, zoo.po()], entry=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that can be explained, one that cannot, and structures."""
    place = tmp_path_factory.mktemp("explain")
    for name, model in (
        ("lattice", make(dtype=torch.float32)),
        ("comformer", MODELS["icomformer"](layers=1, channels=8, k=4)),
    ):
        target = Target(name="heat", unit="eV", mean=0.0, std=1.0, quantile=0.2)
        model.card = ModelCard(
            model=model.name,
            options=model.options,
            graph=model.graph.describe(),
            targets=[target],
            elements=[8, 22, 38],
            data={"name": "none"},
        )
        save_model(model, place / name)
    zoo.srtio3().write(place / "SrTiO3.cif")
    (place / "bad.cif").write_text("data_x\n_cell_length_a 4\n", encoding="utf-8")
    text = zoo.nacl().to_text("extxyz") + zoo.po().to_text("extxyz")
    (place / "two.extxyz").write_text(text, encoding="utf-8")
    Crystal(np.eye(3) * 4, [[0, 0, 0]], [102], name="No").write(place / "No.cif")
    return place


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["comformer", "SrTiO3.cif"], 2, "has no attention over images"),
        (["lattice", "missing.cif"], 2, "missing.cif"),
        (["nowhere", "SrTiO3.cif"], 2, "nowhere"),
        (["lattice", "SrTiO3.cif", "--atom", "5"], 2, "its atoms are 0 to 4"),
        (["lattice", "SrTiO3.cif", "--atom", "Ti"], 2, "expected a number or 'all'"),
        (["lattice", "SrTiO3.cif", "--layer", "0"], 2, "layers 1 to 2"),
        (["lattice", "SrTiO3.cif", "--head", "3"], 2, "heads 1 to 2"),
        (["lattice", "two.extxyz"], 2, "expected one structure, came several"),
        (["lattice", "SrTiO3.cif", "-o", "bad.cif"], 2, "expected a folder"),
        (["lattice", "bad.cif"], 3, "bad.cif: the cell is incomplete"),
        (["lattice", "No.cif"], 3, "expected elements up to Cf (98)"),
    ],
)
def test_exit_codes(words, code, says, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = sorted(folders.rglob("*"))
    assert run(["explain", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1
    assert sorted(folders.rglob("*")) == before


def test_command(folders, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["explain", str(folders / "lattice"), str(folders / "SrTiO3.cif"), "--atom", "1"]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("SrTiO3 (SrTiO3): heat ")
    assert "octahedron, 24 tied frames" in out
    assert err == "explain-SrTiO3/: SrTiO3.png, SrTiO3.html, SrTiO3.csv, SrTiO3-frames.csv\n"
    assert run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert all(file.startswith("explain-SrTiO3-2/") for file in answer["files"])
    (atom,) = answer["atoms"]
    assert (atom["atom"], atom["element"]) == (1, "Ti")
    assert len(atom["views"]) == 4
    for view in atom["views"]:
        assert sum(view["weights"]) == pytest.approx(1, abs=1e-4)
        assert (view["shape"], len(view["frames"])) == ("octahedron", 24)
    assert run([*words, "-o", "explain-SrTiO3"]) == 0
    assert "replaced SrTiO3.png, SrTiO3.html" in capsys.readouterr().err
    assert run(["explain", str(folders / "lattice"), str(folders / "two.extxyz"), "--entry", "0"]) == 0


def test_the_verb_is_there():
    assert facetry.explain is explain
