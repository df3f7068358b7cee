"""README.md and docs/: every block that can run runs, and prints what the page shows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.docs.pages import PAGES, ROOT, Block, Runner, blocks, continued, copy_folder, difference

MOST_NOT_RUN = 3  # blocks of a page that are only read


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Runner]:
    """Runs a page once, the page it continues before it."""
    from facetry.data import info
    from facetry.data.vault import VaultError, locate

    def at_hand(name: str) -> bool:
        manifest = info(name)
        try:
            return all(locate(manifest, key) for key in manifest.files if manifest.is_default(key))
        except VaultError:
            return False

    runs: dict[Path, Runner] = {}

    def finish(page: Path) -> Runner:
        if page not in runs:
            folder = tmp_path_factory.mktemp(page.stem)
            before = continued(page)
            if before is not None:
                copy_folder(finish(before).folder, folder)
            with pytest.MonkeyPatch.context() as patch:
                runs[page] = Runner(page, folder, at_hand, patch)
                patch.chdir(folder)
                patch.setenv("FACETRY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
                patch.setenv("COLUMNS", "100")
                threads = torch.get_num_threads()
                try:
                    runs[page].run()
                finally:
                    torch.set_num_threads(threads)
        return runs[page]

    return finish


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_runs_and_prints_what_it_shows(page: Path, finished: Callable[[Path], Runner]) -> None:
    runner = finished(page)
    left = [f"line {b.line}" for b in blocks(page) if b.notes.get("not run") == ""]
    assert not left, f"{page.name}: blocks without a reason not to run: {left}"
    if runner.skipped:
        pytest.skip(f"{runner.ran} blocks ran; data not at hand: {', '.join(runner.skipped)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_few_blocks_are_only_read(page: Path) -> None:
    unread = [b for b in blocks(page) if "not run" in b.notes]
    assert len(unread) <= MOST_NOT_RUN


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), f"{page.name} links to {target}"
            if anchor:
                assert anchor in _anchors(there), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    """As GitHub names the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+\s+(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_every_page_is_reached_from_the_index() -> None:
    """README.md names docs/README.md, and from there every page of docs/ is some links away."""
    index = ROOT / "docs" / "README.md"
    assert index in _linked(ROOT / "README.md")
    reached, waiting = {index}, [index]
    while waiting:
        new = {p for p in _linked(waiting.pop()) if p.suffix == ".md"} - reached
        reached |= new
        waiting += new
    assert not [str(p.relative_to(ROOT)) for p in PAGES[1:] if p not in reached]


def test_the_index_has_a_line_for_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = [p for p in _linked(index) if p.suffix == ".md"]
    assert len(named) == len(set(named))
    missing = set(PAGES[1:]) - set(named) - {index}
    assert not missing, f"docs/README.md has no line for {sorted(p.name for p in missing)}"


def _linked(page: Path) -> list[Path]:
    """The files of this repository that a page links to, in order, each time they are named."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text)
    return [(page.parent / t).resolve() for t in targets if not re.match(r"[a-z]+:", t)]


def test_release_is_the_same_everywhere() -> None:
    from facetry import __version__

    change = re.search(
        r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    cited = re.search(
        r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert change is not None
    assert cited is not None
    assert change[1] == cited[1].strip("\"'") == __version__


@pytest.mark.parametrize(
    ("shown", "printed", "within", "fits"),
    [
        ("a 1.0\nb", "a  1.0 b\n", None, True),
        ("a 1.0", "a 1.1", None, False),
        ("a 1.0", "a 1.1", "20 %", True),
        ("a 1.0", "a 1.5", "20 %", False),
        ("a ... c", "a b\n7 c", None, True),
        ("mae 0.05 eV ... 3 rows", "mae 0.055 eV (95 %: 0.04)\n3 rows", "20 %", True),
        ("mae 0.05 eV", "rmse 0.05 eV", "20 %", False),
        ("x=-1e-3,", "x=-1.1e-03,", "20 %", True),
    ],
)
def test_comparison_of_prints(shown: str, printed: str, within: str | None, fits: bool) -> None:
    notes = {} if within is None else {"numbers within": within}
    assert (difference(Block("text", shown, 1, notes), printed) is None) == fits


def test_generated_tables_are_up_to_date() -> None:
    assert not _script("generate").stale(), "run `python docs/generate.py`"


def test_the_picture_is_up_to_date_and_names_what_there_is() -> None:
    way = _script("data_way")
    assert way.FILE.read_text(encoding="utf-8") == way.draw(), "run `python docs/data_way.py`"
    for title, folder, *_ in way.BOXES.values():
        for name in folder.split():
            assert name == "runs/NAME" or (ROOT / "src" / "facetry" / name).exists(), f"{title}: {name}"


def test_files_that_inside_names_exist() -> None:
    text = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)?\w+\.py|\w+/)`", text)
    missing = [n for n in named if not (ROOT / "src" / "facetry" / n).exists()]
    assert len(named) > 40
    assert not missing


def _script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_readme_are_those_of_the_receipts() -> None:
    tables = pytest.importorskip("benchmarks.tables", reason="needs the folder benchmarks/ of a clone")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run `python -m benchmarks.tables`"
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled_page(text) == text, "run `python -m benchmarks.tables`"


def test_our_numbers_of_published_rows_are_those_of_the_receipts() -> None:
    tables = pytest.importorskip("benchmarks.tables", reason="needs the folder benchmarks/ of a clone")
    assert tables.PUBLISHED.read_text(encoding="utf-8") == tables.published(), (
        "run `python -m benchmarks.tables`"
    )


def test_receipts_name_no_folder_of_a_machine() -> None:
    """A command in a receipt is one that anybody can give: paths in it are relative."""
    folder = ROOT / "benchmarks" / "accuracy"
    if not folder.is_dir():
        pytest.skip("needs the folder benchmarks/ of a clone")
    path = re.compile(r"(?<![\w.\-/])/(?:root|home|work|tmp|Users|mnt|data|scratch|opt|var)/\S*")
    found = {f.name: path.findall(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*"))}
    assert not {name: paths for name, paths in found.items() if paths}


def test_pages_and_reference_build_strictly(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="needs the packages of facetry[docs]")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the packages of facetry[docs]")
    command = [sys.executable, str(ROOT / "docs" / "site.py"), str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    reference = (tmp_path / "site" / "reference" / "models.html").read_text(encoding="utf-8")
    assert "Invariant ComFormer" in reference
