"""The members that a batch of examples belongs to, and the values that are their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from tinkering.layers.after import After

Made = TypeVar("Made")


class MemberTile(ABC):
    """Members whose examples are run as one batch; those of a member lie beside each other.

    How members come to values of their own is each kind's: noise around a centre, or a stack.
    """

    rows: Tensor
    """``[images]``: the row of what is the members' own that belongs to each image."""
    signs: Tensor
    """``[images]``: what that is multiplied by."""
    batch: int
    """Images a member."""
    kept: dict[object, Any]
    """What layers have made of the members' values, for the tiles that share them."""
    made: dict[object, Any]
    """Values of each member that were computed from its own alone, for tiles of these members."""

    @property
    def members(self) -> int:
        """How many they are."""
        return len(self.rows) // self.batch

    @abstractmethod
    def own(self, name: str, shared: Tensor) -> Tensor:
        """Return the members' own values of a parameter or buffer, ``[members, *shape]``.

        Args:
            name: of it.
            shared: its value where it is nobody's own.
        """

    @abstractmethod
    def looked_up(self, name: str, table: Tensor, indices: Tensor) -> Tensor:
        """Return the vectors that members look up in a table of their own.

        Args:
            name: of the table.
            table: ``[words, features]``: as it is shared.
            indices: ``[images, ...]``.
        """

    @abstractmethod
    def affine(
        self,
        scale: Tensor | None,
        shift: Tensor | None,
        names: tuple[str | None, str | None],
        channels: int,
    ) -> After:
        """Return what multiplies and adds what members have of their own.

        Args:
            scale: ``[channels]``, as it is shared; None for ones.
            shift: likewise; None for zeros.
            names: of the two, where they are members' own.
            channels: how many they are.
        """

    @abstractmethod
    def like(self, rows: Tensor, signs: Tensor, batch: int) -> MemberTile:
        """Return a tile of the same members with other images."""

    def held(self) -> list[Tensor]:
        """Return tensors that are the members' own, and kept."""
        return [value for value in self.made.values() if isinstance(value, Tensor)]

    def times(self, count: int) -> MemberTile:
        """Return the tile of the same members, whose images are `count` parts each.

        Such as the frames of a film, or the windows of an image, one after the other.
        """
        rows, signs = (each.repeat_interleave(count) for each in (self.rows, self.signs))
        return self.like(rows, signs, self.batch * count)

    def alone(self) -> MemberTile:
        """Return the tile of the same members, with one image each."""
        if self.batch == 1:
            return self
        return self.like(self.rows[:: self.batch], self.signs[:: self.batch], 1)

    def of_images(self, values: Tensor) -> Tensor:
        """Return a value of each member, ``[members, ...]``, for each of its images."""
        return values if self.batch == 1 else values.repeat_interleave(self.batch, 0)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """Return what `make` returns, made once for all tiles that share `kept`."""
        if key not in self.kept:
            self.kept[key] = make()
        made: Made = self.kept[key]
        return made
