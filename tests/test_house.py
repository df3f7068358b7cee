"""The house rules: imports point one way, what is public says what it is and which shapes it takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "facetry"
FILES = sorted(ROOT.rglob("*.py"))

# Each may import what stands before it. A file of the package itself counts as a part of its own.
ORDER = """
_version units elements card geometry crystal io kernels graph nn chemistry models data evaluation samplers
training tasks doctor cli facetry __main__
""".split()  # noqa: SIM905
LATER = {("crystal", "io")}  # Crystal.write and its like import when called
TENSORS = {"Tensor", "ndarray"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(module: str) -> str:
    """`facetry.io.cif` -> io; `facetry` -> facetry; `facetry.__version__` is what `_version` says."""
    name = [*module.split("."), "facetry"][1]
    return "_version" if name == "__version__" else name


def imports(node: ast.AST, called: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules of facetry that are imported below a node, and whether only when something is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "facetry":
            names = [a.name for a in child.names]
            yield from (
                (child.module if child.module != "facetry" else f"facetry.{name}", called) for name in names
            )
        elif isinstance(child, ast.Import):
            yield from ((a.name, called) for a in child.names if a.name.split(".")[0] == "facetry")
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, called or later)


def test_every_part_has_its_place():
    parts = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES} - {"__init__"}
    assert parts | {"facetry"} == set(ORDER)


def test_imports_point_one_way():
    wrong = []
    for path in FILES:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "facetry")
        for module, called in imports(tree(path)):
            other = part_of(module)
            if other == own or (called and (own, other) in LATER):
                continue
            if other not in ORDER or ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_file_tells_two_stories():
    """Longer ones did."""
    everything = [*FILES, *(ROOT.parents[1] / "tests").rglob("*.py")]
    long = {p.name: n for p in everything if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert long == {}


def public(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and their public methods."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{inside}{child.name}"
            yield name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{name}.")


INHERITED = {
    "forward", "embed", "embed_atoms", "outputs_of", "symmetry", "continuous", "build", "candidates",
    "nothing",
}  # fmt: skip
LIGHTNING = {"train_dataloader", "transfer_batch_to_device", "configure_optimizers", "training_step"}


def is_inherited(name: str) -> bool:
    """What such a method does is said where the class above, or Lightning, asks for it."""
    method = name.split(".")[-1]
    return "." in name and (method in INHERITED | LIGHTNING or method.startswith("on_train_"))


def test_public_names_say_what_they_are():
    silent = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        for name, node in public(tree(path))
        if ast.get_docstring(node) is None and not is_inherited(name)
    ]
    assert silent == []


def annotations(node: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    yield from ((a.arg, ast.unparse(a.annotation) if a.annotation else "") for a in arguments)
    yield "return", ast.unparse(node.returns) if node.returns else ""


def test_public_functions_are_annotated():
    bare = []
    for path in FILES:
        for name, node in public(tree(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            bare += [
                f"{path.relative_to(ROOT)}: {name}({argument})"
                for argument, kind in annotations(node)
                if not kind and argument not in ("self", "cls", "return")
            ]
    assert bare == []


def shapeless(kind: str) -> bool:
    """Whether an annotation is an array without its shape; collections of arrays may hold any."""
    return any(part.strip().removeprefix("np.").removeprefix("torch.") in TENSORS for part in kind.split("|"))


def test_arrays_of_public_functions_have_shapes():
    unknown = [
        f"{path.relative_to(ROOT)}: {name}({argument}: {kind})"
        for path in FILES
        if path.relative_to(ROOT).parts[0] != "training"  # its arrays are rows of a set, chosen any way
        for name, node in public(tree(path))
        if isinstance(node, ast.FunctionDef)
        for argument, kind in annotations(node)
        if shapeless(kind)
    ]
    assert unknown == []
