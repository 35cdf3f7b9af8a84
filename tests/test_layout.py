"""The house: which folder may import which, held to by reading every import."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# From the ground up. A room may import what lies on floors below it, and its own files. The network
# and the media stand side by side, as do dataset, rain and report: none imports its neighbour.
FLOORS = [
    ["settings"],
    ["system"],
    ["irnn_cuda", "cal_ssim"],
    ["media", "model"],
    ["dataset", "rain", "report"],
    ["engine"],
    ["actions"],
    ["main", "hubconf", "benchmarks"],
]
ROOMS = [room for floor in FLOORS for room in floor]
DATA = {"training", "testing", "model", "demo", "results", "logdir"}  # folders that runs fill


def files(room: str) -> list[Path]:
    path = ROOT / room
    return (
        sorted(path.rglob("*.py")) if path.is_dir() and room != "model" else [ROOT / f"{room}.py"]
    )


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path}: imports from above its folder by dots"
            names |= {node.module.split(".")[0]} if not node.level else set()
    return names & set(ROOMS)


def allowed(room: str) -> set[str]:
    height = next(i for i, floor in enumerate(FLOORS) if room in floor)
    return {room} | {below for floor in FLOORS[:height] for below in floor}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    for path in files(room):
        wrong = imports(path) - allowed(room)
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_every_room_is_on_a_floor():
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    found = {path.stem for path in ROOT.glob("*.py")} | folders
    assert found == set(ROOMS)


def test_a_folder_of_code_says_what_lives_there_and_holds_no_code():
    for path in ROOT.glob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        if path.parent.name != "irnn_cuda":  # whose operator is imported from the folder itself
            assert len(tree.body) == 1, path
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert not folders & DATA
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders - {"tests"})


def test_no_file_has_more_than_500_lines():
    paths = [path for room in ROOMS for path in files(room)] + sorted(ROOT.glob("tests/*.py"))
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_the_readme_has_at_most_170_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def test_no_function_has_more_than_60_lines():
    long = set()
    for path in (path for room in ROOMS for path in files(room)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.end_lineno - node.lineno >= 60:
                long.add(f"{path.relative_to(ROOT)}: {node.name}")
    assert long == set()


def identifiers(tree: ast.AST) -> set[str]:
    """Every name that a module gives or uses."""
    names = set()
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname"):
            name = getattr(node, field, None)
            names |= {name} if isinstance(name, str) else set()
    return names


def test_no_test_waits_for_a_program_without_a_limit():
    """Or one that hangs would end all tests. finish() of conftest.py has a limit of its own."""
    for path in sorted((ROOT / "tests").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.run":
                names = [keyword.arg for keyword in node.keywords]
                assert "timeout" in names, f"{path}:{node.lineno}"


def test_functions_are_named_by_verbs_and_values_by_nouns():
    """Of what this project's names once were full of, participles that say nothing."""
    words = re.compile("told|tell|made", re.IGNORECASE)
    for path in (path for room in ROOMS if room != "benchmarks" for path in files(room)):
        found = {name for name in identifiers(ast.parse(path.read_text())) if words.search(name)}
        assert not found, f"{path.relative_to(ROOT)}: {', '.join(sorted(found))}"
