"""Training images moved by some pixels, another way each time: more images than there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from tinkering.data.shuffle import Purpose, check_seed
from tinkering.errors import ArgumentError
from tinkering.ranges import require_at_least


@dataclass(frozen=True)
class Shifts:
    """How far a generation's images are moved: a pure function of seed, generation and place.

    Args:
        most: pixels, up or down and left or right; 0 leaves images as they are.
        seed: from 0 to 2**64 - 1.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> shifts = Shifts(most=1)
        >>> shifts.offsets(generation=0, count=3).tolist()
        [[1, 0], [0, -1], [1, 1]]
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> shifts.moved(image, torch.tensor([[0, 1]]), background=0.0)
        tensor([[[[0., 1.],
                  [0., 3.]]]])
    """

    most: int
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(0, shift=self.most)
        check_seed(self.seed)

    def require_visible(self, height: int, width: int) -> None:
        """Refuse to move images of this size by more than their longer side.

        By so much each of them is out of sight, whichever way it goes: a larger number leaves
        fewer images to learn from, and nothing else.

        Raises:
            ArgumentError: (a ``ValueError``) they may be moved by more.
        """
        longer = max(height, width)
        if self.most > longer:
            needed = f"an integer from 0 to {longer}, the side of an image"
            raise ArgumentError("shift", needed, self.most)

    def offsets(self, generation: int, count: int) -> Int64[Tensor, "count 2"]:
        """Return how many pixels down and to the right each image moves.

        Args:
            generation: from 0.
            count: images of the generation; the first ones do not depend on it.
        """
        key = np.array([self.seed, generation], dtype=np.uint64)
        counter = np.array([0, 0, 0, Purpose.SHIFTS], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=counter).random_raw(2 * count)
        drawn = (bits % np.uint64(2 * self.most + 1)).astype(np.int64) - self.most
        return torch.from_numpy(drawn.reshape(count, 2))

    def moved(
        self,
        images: Float32[Tensor, "n 1 height width"],
        offsets: Int64[Tensor, "n 2"],
        background: float,
    ) -> Float32[Tensor, "n 1 height width"]:
        """Return images moved by their offsets; what comes in at the edge is background."""
        if not self.most:
            return images
        height, width = images.shape[2:]
        # Moved by its longer side an image is out of sight, and further takes no more room.
        most = min(self.most, max(height, width))
        offsets = offsets.clamp(-most, most)
        padded = F.pad(images, (most, most, most, most), value=background)
        rows = most - offsets[:, :1] + torch.arange(height)
        columns = most - offsets[:, 1:] + torch.arange(width)
        place = torch.arange(len(images))[:, None, None]
        return padded[place, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
