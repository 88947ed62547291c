"""Pretrain an encoder with SimCLR: the command `simclr-fast pretrain`, from a checkout.

    python train.py demo                                              # 5,000 digits, minutes on a laptop
    python train.py cifar10 --data data --download                    # one GPU, or the CPU with patience
    python train.py imagenet --data /data/imagenet --batch-size 512
    torchrun --nproc-per-node 8 train.py imagenet --data /data/imagenet                 # one host, 8 GPUs
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py imagenet ...
    python train.py imagenet --resume auto ...                        # go on after a stop, exactly

`python train.py RECIPE --help` explains every option and shows that recipe's defaults. The training loop itself is
simclr_fast/training/loop.py, one step of it simclr_fast/training/step.py.
"""

import sys

from simclr_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
