"""Who may import whom, and how long a file may be: the house, checked on the source."""

import ast
import graphlib
import re
import symtable
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "simclr_fast"
FOUNDATION = {"_extension", "backends", "distributed", "triton_launch"}  # plumbing that any op may use


def imports(path: Path) -> set[str]:
    """Dotted names of every module imported anywhere in the file, absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path) -> set[str]:
    """What the file imports of the package, without the package's name."""
    return {name.removeprefix("simclr_fast.") for name in imports(path) if name.startswith("simclr_fast.")}


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_layers(path: Path) -> None:
    assert not top_level(path) & {"tests", "proof", "benchmarks"}
    relative = path.relative_to(PACKAGE)
    inner = internal(path)
    if relative.parts[0] == "ops" and len(relative.parts) == 3:
        op = f"ops.{relative.parts[1]}"
        others = {name for name in inner if not name.startswith(op) and name.split(".")[0] not in FOUNDATION}
        assert not others, "an op imports its own siblings only"
        if path.name.startswith("reference"):
            assert top_level(path) <= {"torch", "torchvision", "math", "itertools", "simclr_fast"}, "plain PyTorch only"
            assert all(name.startswith(op) for name in inner)
        if path.name.startswith("triton_"):
            assert not {name.split(".")[0] for name in inner} & {"losses", "augmentation", "_extension"}
    if relative.parts[0] in ("models", "models.py", "backbones", "data", "data.py", "optim", "optim.py", "lars.py"):
        assert not {name for name in inner if name.split(".")[0] == "ops"}
    if relative.parts[0] == "evaluation":
        assert "torch.ops" not in path.read_text(), "evaluation goes through the public functions"


@pytest.mark.parametrize("path", python_files(PACKAGE / "training"), ids=lambda path: path.name)
def test_training_imports_no_command_of_the_evaluation(path: Path) -> None:
    of_evaluation = {name.split(".")[1] for name in internal(path) if name.startswith("evaluation.")}
    assert of_evaluation <= {"in_training"}, "in_training holds what the loop calls"


@pytest.mark.parametrize("path", python_files(PACKAGE / "evaluation"), ids=lambda path: path.name)
def test_evaluation_imports_no_training(path: Path) -> None:
    assert not {name for name in internal(path) if name.split(".")[0] == "training"}


def test_no_module_imports_a_command_of_the_evaluation() -> None:
    """The main program finds a command by its name; what two commands or the training loop share is no command's."""
    first_words = '"""The command `'
    commands = {file for file in python_files(PACKAGE / "evaluation") if file.read_text().startswith(first_words)}
    assert len(commands) >= 7
    for path in python_files(PACKAGE):
        assert not commands & set(imported_files(path)), path


def room(module: Path) -> str:
    """The folder of a module below the package; a module directly in the package, or in ops, is a room of its own."""
    folder = module.relative_to(PACKAGE).parent.as_posix()
    return module.relative_to(PACKAGE).as_posix() if folder in (".", "ops") else folder


def file_of(name: str) -> Path | None:
    """The file of a module or package of ours by its dotted name; None for any other name."""
    parts = name.split(".")
    target = PACKAGE.parent.joinpath(*parts)
    files = (target.with_suffix(".py"), target / "__init__.py")
    return next((file for file in files if parts[0] == PACKAGE.name and file.is_file()), None)


def imported_files(path: Path) -> Iterator[Path | None]:
    """The file behind each import; a name taken from a package is a module of it, or what its __init__ defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (file_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name != "_C"]  # compiled: imports nothing of ours
            yield from (file_of(f"{node.module}.{name}") or file_of(node.module) for name in names)


@cache
def defined_in(path: Path) -> set[str]:
    """The names that the file's top level defines."""
    symbols = symtable.symtable(path.read_text(), str(path), "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def names_of_modules(tree: ast.Module) -> dict[str, str]:
    """By the name that the file calls it, the dotted name of every module of ours that it imports as a whole."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: module for name, module in found.items() if file_of(module) is not None}


def names_taken(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module of ours, name) for every name that the file imports from it or reads as its attribute."""
    modules = names_of_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and file_of(node.module) is not None:
            yield from ((node.module, alias.name) for alias in node.names if alias.name != "_C")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


@pytest.mark.parametrize("folder", ["simclr_fast", "benchmarks", "tools", "tests", "proof"])
def test_every_name_that_is_taken_from_the_package_exists(folder: str) -> None:
    """One that is missing inside a command would fail only when someone runs that command."""
    checked = 0
    for path in (*python_files(ROOT / folder), ROOT / "train.py"):
        for module, name in names_taken(ast.parse(path.read_text())):
            known = name in defined_in(file_of(module)) or file_of(f"{module}.{name}") is not None
            assert known, f"{path}: {module} has no {name}"
            checked += 1
    assert checked > 10


def arrows() -> dict[str, set[str]]:
    """By room, the other rooms that its modules import from, anywhere in their text."""
    found: dict[str, set[str]] = {}
    for path in python_files(PACKAGE):
        found.setdefault(room(path), set()).update(room(file) for file in imported_files(path) if file is not None)
    return {name: rooms - {name} for name, rooms in found.items()}


def test_rooms_import_each_other_in_no_circle() -> None:
    graph = arrows()
    assert {"training", "evaluation", "ops/ntxent"} <= graph.keys()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_no_product_file_is_longer_than_one_job_needs() -> None:
    folders = ("simclr_fast", "csrc", "benchmarks", "tools")
    files = [
        ROOT / "train.py",
        ROOT / "setup.py",
        *(file for folder in folders for file in (ROOT / folder).rglob("*.*")),
    ]
    sources = [file for file in files if file.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 100
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in sources}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_train_uses_public_functions() -> None:
    if (ROOT / "train.py").exists():
        assert "torch.ops" not in (ROOT / "train.py").read_text()


def included(path: Path) -> list[str]:
    return re.findall(r'#include [<"](.+)[>"]', path.read_text())


def test_cpp_layers() -> None:
    sources = sorted((ROOT / "csrc").rglob("*.*"))
    assert len(sources) > 5
    for path in sources:
        folder = path.parent.name
        for name in included(path):
            if not path.name.endswith(("_binding.cpp", "binding.h", "module.cpp")):
                assert not name.startswith(("torch/", "ATen/", "c10/", "pybind11/")), f"{path}: kernels are torch-free"
            assert not (folder == "cpu" and "cuda/" in name), f"{path}: cpu/ does not include cuda/"
            assert not (folder == "cuda" and "cpu/" in name), f"{path}: cuda/ does not include cpu/"
