"""The build: what it rewrites, what it refuses, and what it need not do twice."""

import pytest

from proof.simt.build import ROOT, BuildError, build, rewrite_shared

SOURCE = "proof/simt/kernels/sync.cu"


def test_shared_declarations_are_rewritten_in_place() -> None:
    text = (
        "// __shared__ in a comment\n"
        "__shared__ __align__(128) float tile[kRows > 2 ? kRows\n"
        "                                               : 2][33];\n"
        "__shared__ Pair<int, float> pair;\n"
        "extern __shared__ __align__(16) unsigned char raw[];\n"
    )
    lines = rewrite_shared(text, "k.cu").splitlines()
    assert len(lines) == len(text.splitlines())  # reports name the original's lines
    assert lines[0] == "// __shared__ in a comment"
    assert lines[1].startswith("using simt_type_of_tile = float[kRows > 2 ? kRows : 2][33]; auto& tile = ")
    assert lines[1].endswith(", 128);")
    assert lines[3].startswith("using simt_type_of_pair = Pair<int, float>; auto& pair = ")
    assert lines[4] == "unsigned char* raw = ::simt::shared_array<unsigned char>(16);"


@pytest.mark.parametrize("declaration", ["__shared__ float a, b;", "__shared__ float a[4] = {};"])
def test_other_shared_declarations_are_refused(declaration: str) -> None:
    with pytest.raises(BuildError, match=r"k.cu:3: write one variable per __shared__ declaration"):
        rewrite_shared(f"\n\n{declaration}\n", "k.cu")


def test_a_compiler_error_names_the_original_s_line() -> None:
    text = (ROOT / SOURCE).read_text()
    line = text[: text.index("float value = i < n")].count("\n") + 1
    broken = text.replace("float value = i < n", "float value = undeclared < n")
    with pytest.raises(BuildError, match=f"{SOURCE}:{line}:.*undeclared"):
        build([SOURCE], replaced={SOURCE: broken})


def test_only_what_changed_is_compiled_again() -> None:
    library = build([SOURCE])
    made = library.stat().st_mtime_ns
    assert build([SOURCE]) == library
    assert library.stat().st_mtime_ns == made
    text = (ROOT / SOURCE).read_text()
    assert build([SOURCE], replaced={SOURCE: text + "\n// another\n"}) != library
