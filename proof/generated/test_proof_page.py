"""The table in docs/proof.md is that of the committed counts."""

import pytest

from proof.generated.proof_page import PAGE, page_with, section


def test_the_page_holds_the_committed_counts() -> None:
    assert PAGE.read_text() == page_with(PAGE.read_text(), section()), "rewrite: python -m proof.generated.proof_page"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        page_with("# A page\n", section())
