"""`python -m simclr_fast` is the command `simclr-fast`, also where no script was installed and under torchrun."""

import sys

from simclr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
