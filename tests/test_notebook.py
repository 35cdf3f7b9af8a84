"""The notebook runs from start to end, and its saved outputs are what it prints."""

import ast

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")


def printed(cell) -> str:
    streams = [out for out in cell.get("outputs", []) if out.output_type == "stream"]
    assert all(out.name == "stdout" for out in streams)
    return "".join(out.text for out in streams)


def test_notebook():
    saved = nbformat.read(ROOT / "clean_image_generation.ipynb", as_version=4)
    run = nbformat.read(ROOT / "clean_image_generation.ipynb", as_version=4)
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        run, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    code = [index for index, cell in enumerate(saved.cells) if cell.cell_type == "code"]
    for index in code:
        assert printed(run.cells[index]) == printed(saved.cells[index])
    for book in (saved, run):
        kinds = [
            {kind for out in book.cells[index].outputs for kind in out.get("data", {})}
            - {"text/plain"}
            for index in code
        ]
        plot, picture = {"image/svg+xml"}, {"image/png"}
        assert kinds == [set(), picture, plot, plot, picture, plot, picture, picture]
    table = printed(run.cells[code[5]]).splitlines()[1:]
    counts, *_, psnr, _ = zip(*(line.split() for line in table), strict=True)
    psnr = [float(value) for value in psnr]
    assert counts[psnr.index(max(psnr))] == "40"  # from then on the camera moves
    assert max(psnr) > 10 + max(psnr[0], psnr[-1])
    rainy, derained = printed(run.cells[code[-1]]).splitlines()[-2:]
    assert "own/real_world.txt" in printed(run.cells[code[-1]])
    assert float(derained.split()[1]) > 2 + float(rainy.split()[1])


def test_notebook_holds_no_algorithm_of_its_own():
    saved = nbformat.read(ROOT / "clean_image_generation.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in saved.cells if cell.cell_type == "code")
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert defined == {"show"}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not called & {"sort", "bincount", "median", "unique", "quantile", "cumsum"}
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {"clean_image", "percentile_votes", "mode_percentile"} <= {
        alias.name for node in imported if node.module == "rain.clean_image" for alias in node.names
    }
