"""The fused operators, one folder each."""
