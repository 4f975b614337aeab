"""What a generation that was told came to, as a strategy's state says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Told = Literal["nothing yet", "moved", "no finite fitness", "update not finite"]
"""What the latest generation came to.

``"nothing yet"``: none was told. ``"moved"``: its fitness was used. ``"no finite fitness"``: all
of it was NaN or infinite. ``"update not finite"``: it would have put such a number into the
parameters or the optimiser. After the latter two the state is what it was before, but for its
counts.
"""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor holds a NaN or an infinity.

    Example:
        >>> all_finite([torch.zeros(3)]), all_finite([torch.zeros(3), torch.tensor(torch.inf)])
        (True, False)
    """
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
