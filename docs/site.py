"""Builds these pages, with a reference of the package, as a site: `python docs/site.py [FOLDER]`.

The pages are put together as they lie in the repository, so that their links hold, and built strictly: a
broken link or a name that is not there ends the build. FOLDER is `build/site` where none is given.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "facetry"
PARTS = {  # of the reference, in the order in which data flows
    "io": "Reading and writing structures",
    "data": "Data sets, tables, splits",
    "geometry": "Lattices, frames, symmetry",
    "graph": "Who neighbours whom",
    "nn": "Layers",
    "models": "Models, one paper a file",
    "training": "Recipes, training, checkpoints",
    "samplers": "Chains on any energy",
    "tasks": "The verbs",
    "evaluation": "Scores, certificates, reports",
    "chemistry": "Formulas, volumes, oxidation states",
}
CONFIGURATION = """
site_name: facetry
site_description: Learn from crystals
docs_dir: pages
site_dir: site
use_directory_urls: false
theme:
  variant: classic
  language: en
  font: false
  features: [navigation.indexes, navigation.tabs, content.code.copy]
  palette:
    - {media: "(prefers-color-scheme: light)", scheme: default}
    - {media: "(prefers-color-scheme: dark)", scheme: slate}
plugins:
  - search
  - mkdocstrings:
      handlers:
        python:
          paths: [SOURCE]
          options:
            docstring_style: google
            docstring_options: {warn_missing_types: false}
            heading_level: 2
            members_order: source
            merge_init_into_class: true
            separate_signature: true
            show_root_heading: true
            show_root_full_path: true
            show_signature_annotations: true
            show_source: false
            filters: ["!^_"]
markdown_extensions:
  - attr_list
  - md_in_html
  - tables
  - toc: {permalink: true}
  - pymdownx.highlight
  - pymdownx.superfences
nav:
"""


def modules(part: str) -> list[str]:
    """Modules of a part that have something public, by name."""
    found = []
    for path in sorted((SOURCE / part).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = (ast.FunctionDef, ast.ClassDef)
        if any(isinstance(node, named) and not node.name.startswith("_") for node in tree.body):
            found.append(f"facetry.{part}" + ("" if path.stem == "__init__" else f".{path.stem}"))
    return found


def verbs() -> list[str]:
    """Where the functions and classes at the top of the package are defined."""
    import facetry

    return [f"{getattr(facetry, name).__module__}.{name}" for name in facetry.__all__ if name[0] != "_"]


def commands() -> str:
    """What each command of the shell says of itself."""
    from facetry.cli import app, run

    names = [command.name for command in app.registered_commands]
    names += [
        f"dataset {command.name}" for command in app.registered_groups[0].typer_instance.registered_commands
    ]
    texts = ["# Commands"]
    for name in sorted(filter(None, names)):
        with redirect_stdout(io.StringIO()) as said:
            run([*name.split(), "--help"])
        texts.append(f"## facetry {name}\n\n```text\n{said.getvalue().strip()}\n```")
    return "\n\n".join(texts)


def reference(folder: Path) -> None:
    """Pages for the commands, for the package itself and for each part."""
    folder.mkdir(parents=True)
    (folder / "commands.md").write_text(commands() + "\n", encoding="utf-8")
    pages = {"facetry": ("facetry", verbs())}
    pages |= {part: (f"facetry.{part}: {title}", modules(part)) for part, title in PARTS.items()}
    for name, (title, members) in pages.items():
        blocks = "\n\n".join(f"::: {member}" for member in members)
        (folder / f"{name}.md").write_text(f"# {title}\n\n{blocks}\n", encoding="utf-8")


def gather(pages: Path) -> None:
    """Pages and what they link to, in the folders of the repository."""
    wanted = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCE.rglob("*.md")]
    for page in list(wanted):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if "://" not in link and target.is_file():
                wanted.append(target)
    for path in dict.fromkeys(wanted):
        copy = pages / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (pages / "README.md").rename(pages / "index.md")


def navigation() -> str:
    """The pages in the order of docs/README.md, then the reference, in YAML."""
    lines = ["  - index.md"]
    for line in (ROOT / "docs" / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            lines.append(f"  - {line[3:]}:")
        elif link := re.match(r"\| \[([^\]]+)\]\(([^)]+)\)", line):
            lines.append(f'    - "{link[1]}": docs/{link[2]}')
    lines.append("  - Reference:")
    return "\n".join(
        lines + [f"    - {name}: reference/{name}.md" for name in ("commands", "facetry", *PARTS)]
    )


def build(folder: Path) -> None:
    """Raises SystemExit where a page or a docstring does not build without a warning."""
    with TemporaryDirectory() as work:
        _build(Path(work), folder)


def _build(work: Path, folder: Path) -> None:
    gather(work / "pages")
    reference(work / "pages" / "reference")
    for page in (work / "pages").rglob("*.md"):  # the first page of a site is its index
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"\]\(((?:\.\./)+)README\.md", r"](\1index.md", text), encoding="utf-8")
    settings = CONFIGURATION.replace("SOURCE", os.fspath(ROOT / "src")).lstrip() + navigation() + "\n"
    (work / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "-f",
        str(work / "mkdocs.yml"),
    ]
    result = subprocess.run(command, cwd=work, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    print(result.stdout, end="", flush=True)
    if result.returncode or "griffe:" in result.stdout:
        raise SystemExit("the site has faults, see above")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "site", folder)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    build(place)
    print(f"{place / 'index.html'}")
