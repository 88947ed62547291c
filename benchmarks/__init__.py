"""Benchmarks: contestants are timed in interleaved rounds of one process, and only after their results agree."""
