"""One module per command of `python -m simclr_fast.evaluation`."""
