"""Data sets of small labelled images, read strictly, and the order in which they are used.

Example:
    >>> from tinkering.data import BatchOrder, load
    >>> digits = load("mnist5k")
    >>> batches = BatchOrder(len(digits.train), batch=256, seed=0)
    >>> now = batches.order(generation=0)
    >>> x, y = digits.train.images(now), digits.train.labels[now]
    >>> x.shape, y.shape
    (torch.Size([256, 1, 28, 28]), torch.Size([256]))
"""

from tinkering.data.batches import BatchOrder
from tinkering.data.dataset import Dataset, Split, make_dataset
from tinkering.data.download import Download, cache_folder
from tinkering.data.grid import save_grid
from tinkering.data.shifts import Shifts
from tinkering.data.sources import DEFAULT, Listing, get, listing, load, names

__all__ = [
    "DEFAULT",
    "BatchOrder",
    "Dataset",
    "Download",
    "Listing",
    "Shifts",
    "Split",
    "cache_folder",
    "get",
    "listing",
    "load",
    "make_dataset",
    "names",
    "save_grid",
]
