"""Online evaluation during training: weighted kNN within the labelled training images. No test image is touched."""

import torch
from torch import nn

from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.evaluation.features import Preprocess, embed
from simclr_fast.evaluation.knn import knn_accuracy

QUERY_SHARE = 0.1
KNN_K = 20  # neighbours; with many more, a small data set gives the share of its largest class
LARGEST_BANK = 50_000  # images; of a larger set a fixed random part is used


class OnlineKnn:
    """kNN accuracy of an encoder: a fixed tenth of the labelled training images against the rest."""

    def __init__(self, dataset: Dataset, config: Config, device: torch.device):
        self.source = dataset.labelled
        self.device = device
        self.preprocess = Preprocess.of(config.augment)
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(0))[:LARGEST_BANK]
        queries = max(1, int(QUERY_SHARE * len(order)))
        self.queries, self.bank = order[:queries], order[queries:]

    def accuracy(self, encoder: nn.Module) -> float:
        """Share of the queries whose class is voted right (fraction)."""
        bank, queries = (
            embed(encoder, self.source, self.preprocess, self.device, part) for part in (self.bank, self.queries)
        )
        labels = self.source.labels
        return knn_accuracy(bank, labels[self.bank], queries, labels[self.queries], knn_k=KNN_K)
