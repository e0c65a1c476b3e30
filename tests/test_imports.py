"""Who may import whom: the table of DESIGN §1, held by reading the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"store_schema", "stage1_detect", "stage2_models", "pipeline"}
FORBIDDEN = {
    "store_schema": (OURS - {"store_schema"}) | {"torch", "torchvision", "dask", "distributed"},
    "stage1_detect": {"stage2_models", "pipeline", "zarr"},
    "stage2_models": {"stage1_detect", "pipeline", "torchvision", "dask", "distributed", "zarr"},
    "pipeline": {"zarr", "dask", "distributed", "torchvision"},
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources
    wrong = {
        str(path.relative_to(ROOT)): imported_packages(path) & FORBIDDEN[package]
        for path in sources
        if imported_packages(path) & FORBIDDEN[package]
    }
    assert wrong == {}


def test_the_reader_of_imports_sees_nested_and_dotted_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    import torch.nn\n    from dask.distributed import Client\n")
    assert imported_packages(path) == {"torch", "dask"}
