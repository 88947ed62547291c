"""The Triton NT-Xent kernels compiled ahead of time: no spills, tensor cores in use, the committed table is true."""

import itertools
import json
import re
from typing import Any

import pytest
import triton

from proof.generated import triton_code, triton_tables
from proof.generated.triton_code import (
    ROOT,
    TABLES,
    check_digests,
    compare_with_committed,
    compile_launch,
    made_of,
    specialise,
    written_in,
)
from proof.generated.triton_tables import (
    EVERY_KERNEL,
    aot_keys,
    aot_launches,
    aot_markdown,
    aot_sample,
    aot_table,
    committed,
    launches,
)
from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch

# What a program may use: 99 KiB on sm_86, sm_89 and sm_120, which the entries for sm_80 serve too.
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TENSOR_CORE_OP = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}


def check(
    table: dict[str, Any],
    expected: dict[str, Any] | None = None,
    tile_kernels: tuple[str, ...] = triton_tables.TILE_KERNELS,
) -> None:
    """Asserts what holds of every row, and that it is the row of a committed table: NT-Xent's unless one is given."""
    for name, row in table["kernels"].items():
        arch = name.rsplit(", ", 1)[1]
        assert row["stack"] == row["local"] == 0, name
        assert "STL" not in row, name
        assert "LDL" not in row, name
        assert row["registers"] <= 255, name
        assert row["shared"] <= SHARED_LIMIT[arch], name
        if name.split(", ")[0] in tile_kernels:
            assert TENSOR_CORE_OP[arch] in row, name
    expected = expected or committed("aot")
    for name, row in table["kernels"].items():
        compare_with_committed(row, expected["kernels"][name], expected)


def test_tile_kernels_at_128() -> None:
    assert not triton.knobs.runtime.interpret, "compilation needs a process without TRITON_INTERPRET"
    check(aot_table(EVERY_KERNEL))


def test_tables_are_of_the_pinned_release() -> None:
    """With which the tests above compare them in full."""
    (pinned,) = re.findall(r"^triton==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for name in ("aot_triton", "aot_triton_similarity", "counts_triton", "aot_triton_augment", "counts_triton_augment"):
        assert json.loads((TABLES / f"{name}.json").read_text())["triton"] == pinned, name


@pytest.mark.parametrize("operand", triton_tables.OPERANDS)
@pytest.mark.parametrize("arch", triton_tables.ARCHS)
def test_no_column_past_the_last(arch: int, operand: str) -> None:
    """Where the backward's programs promise that all their columns are inside, they add up to D."""
    for dim in (*range(8, 1100, 24), 384, 512, 640, 768, 1024):
        for variant in triton_tables.VARIANTS:
            for launch in launches((arch, operand, dim, variant), columns=64):
                if launch.kernel.__name__ == "ntxent_bwd_kernel" and launch.constants["EVEN_D"]:
                    owned = launch.constants["SLICES"] * launch.constants["BLOCK_D"]
                    assert launch.grid[2] * owned == dim


@pytest.mark.proof
@pytest.mark.parametrize("arch", triton_tables.ARCHS)
def test_gradient_in_full_float32_is_added_by_ordinary_additions(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by tensor cores, which truncate: one for every number of it, in both loops, beside those of one product."""
    tiles = triton_tiles.backward_tiles(Target(arch, 132), "ieee", 128, False)
    monkeypatch.setattr(triton_tiles, "backward_tiles", lambda *_: tiles)
    additions = {}
    for operand in ("tf32", "ieee"):
        found = launches((arch, operand, 128, "constant max"))
        (launch,) = [launch for launch in found if launch.kernel.__name__ == "ntxent_bwd_kernel"]
        ptx = compile_launch(launch, arch).asm["ptx"]
        additions[operand] = sum(2 if pair else 1 for pair in re.findall(r"\badd(?:\.rn)?\.f32(x2)?\s", ptx))
    of_a_thread = tiles.block_m * 128 // (32 * tiles.num_warps)
    assert additions["ieee"] - additions["tf32"] == 2 * of_a_thread


def test_rendered_table() -> None:
    assert (TABLES / "aot_triton.md").read_text() == aot_markdown(committed("aot"))


def test_every_row_is_of_the_code_as_it_is() -> None:
    check(committed("aot"))
    check_digests(aot_launches, aot_keys(), committed("aot"))


@pytest.mark.proof
def test_every_two_settings_compile_as_the_table_says() -> None:
    """The others' rows are made of the same code, see above."""
    sample = aot_sample()
    for first, second in itertools.combinations(range(len(sample[0])), 2):
        assert {(key[first], key[second]) for key in sample} == {(key[first], key[second]) for key in aot_keys()}
    check(aot_table(sample))


def test_a_digest_changes_with_the_code_and_its_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    (launch,) = [launch for launch in launches(EVERY_KERNEL[0]) if launch.kernel.__name__ == "ntxent_fwd_kernel"]
    texts = written_in(launch.kernel)
    module = "simclr_fast.ops.ntxent.triton_sums"  # whose functions the kernel calls
    function, constant = f"{module}.read_temperature", f"{module}.LOG2_E"
    assert "tl.load" in texts[function]
    assert texts[constant].startswith("constexpr[1.4426")
    assert not any("0x" in text for text in (*texts.values(), *map(repr, specialise(launch)))), "addresses differ"
    digests = {made_of(launch, 80), made_of(launch, 90)}
    tiles = launch.constants | {"BLOCK_D": 1}
    digests |= {made_of(Launch.of(launch.kernel, launch.grid, launch.arguments, tiles, **launch.how), 80)}
    monkeypatch.setattr(triton_code, "written_in", lambda kernel: texts | {function: "return 1"})
    digests |= {made_of(launch, 80)}
    assert len(digests) == 4
