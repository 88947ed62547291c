"""Every CUDA kernel compiles for every architecture without spills or stack, as the committed table says."""

import json
import re

import pytest

from proof.generated.aot import (
    HOPPER,
    ROOT,
    SOURCES,
    TABLE,
    archs_of,
    assemble,
    compile_all,
    in_order,
    kernels_in,
    render,
    shipped,
)
from proof.generated.ptx import cuda_home, toolkit

needs_nvcc = pytest.mark.skipif(cuda_home() is None, reason="needs a CUDA toolkit (CUDA_HOME)")
MAX_REGISTERS = 255


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads(TABLE.read_text())


def check_rows(rows: list[dict]) -> None:
    for row in rows:
        where = f"{row['kernel']} for {row['arch']}"
        assert row["stack_bytes"] == row["local_bytes"] == 0, where
        assert 0 < row["registers"] <= MAX_REGISTERS, where
        assert not {"LDL", "STL"} & row["sass"].keys(), where
        if re.match(r"ntxent_(fwd|bwd)_kernel", row["kernel"]):
            assert {"HMMA", "LDSM", "LDGSTS", "MUFU"} <= row["sass"].keys(), where
        if row["kernel"].startswith("ntxent_resident_kernel"):
            assert {"HMMA", "MUFU", "BAR"} <= row["sass"].keys(), where
        if "_sm90_kernel" in row["kernel"]:
            assert {"HGMMA", "LDGSTS", "MUFU"} <= row["sass"].keys(), where
            assert "HMMA" not in row["sass"], where


def compare(made: list[dict], table: dict) -> None:
    """Exactly, where the same toolkit made both; else only what must always hold."""
    check_rows(made)
    if toolkit() != table["nvcc"]:
        pytest.skip(f"the table was made with nvcc {table['nvcc']}; regenerate it with python -m proof.generated.aot")
    committed = {(row["kernel"], row["arch"]): row for row in table["kernels"]}
    for row in made:
        assert committed.get((row["kernel"], row["arch"])) == row, "regenerate with python -m proof.generated.aot"


def test_committed_table_is_complete_and_clean(table: dict) -> None:
    check_rows(table["kernels"])
    names = {row["kernel"].split("<")[0] for row in table["kernels"]}
    in_sources = {
        name for source in (ROOT / "csrc/cuda").glob("*.cu*")
        for name in re.findall(r"__global__[^;{]*?\b(\w+_kernel)\s*\(", source.read_text())
    }  # fmt: skip
    assert names == in_sources
    for kernel in {row["kernel"] for row in table["kernels"]}:
        assert [row["arch"] for row in table["kernels"] if row["kernel"] == kernel] == list(archs_of(kernel))
    assert TABLE.with_suffix(".md").read_text() == render(table)


@needs_nvcc
def test_one_file_compiles_as_the_table_says(table: dict) -> None:
    compare(compile_all([ROOT / "csrc/cuda/ntxent_normalize.cu"], (HOPPER,)), table)


@pytest.mark.proof
@needs_nvcc
def test_every_kernel_compiles_as_the_table_says(table: dict) -> None:
    """The code that ships, where the package was built for these architectures; to hear ptxas, some is assembled."""
    extension = shipped()
    made = in_order(kernels_in(extension)) if extension else compile_all()
    for source in SOURCES if extension else ():
        if "_sm90" in source.name:
            assemble(source)
    compare(made, table)
    assert len(made) == len(table["kernels"])
