"""A centre whose layers' outputs are perturbed: members without weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from tinkering.errors import ArgumentError
from tinkering.noise import Stream

Utilities = Callable[[Float[Tensor, "images members"]], Float[Tensor, "images members"]]
"""Fitness of each image's members -> what each member's noise is weighted with."""


@dataclass(frozen=True)
class PerturbedOutputs:
    """Members that are the centre, but for noise on what one layer makes of one image.

    For every image and every layer there are `members` of them: the layer's result, where no
    rectifier is shut, is moved by ``+-sigma`` times its size. The size is its root mean square,
    or, where no rectifier follows, as behind logits, that of its differences from its mean; and 1
    where all of it is zero, as behind weights that start at zero. Members have no weights of
    their own, so there is nothing to materialise; what a layer's noise is worth tells how its
    result should change, and from that and the layer's input follows how its weights should.

    A fitness that is a step, such as being right, says nothing about a member that is far from
    the step. With `blur`, a member's logits are read `readings` times, each time with normal noise
    on them, and its fitness is that of all readings. An image's members share that noise, so that
    it favours none of them.

    Args:
        params: the centre's parameters that evolve, by name; at least one.
        members: perturbations of each image at each layer, at least 2.
        sigma: size of a perturbation by the layer's result, above 0.
        stream: where the noise is read.
        utilities: shapes the fitness of each image's members.
        blur: standard deviation of the noise on logits, at least 0.
        readings: of each member's logits, at least 1.
        first: where the images are only some of a generation's, which of those is their first.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.
    """

    params: Mapping[str, Tensor]
    members: int
    sigma: float
    stream: Stream
    utilities: Utilities = field(repr=False)
    blur: float = 0.0
    readings: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        if not self.params:
            raise ArgumentError("params", "at least one parameter that evolves", "none")
        if self.members < 2:
            raise ArgumentError("members", "an integer of at least 2", self.members)
        if not 0 < self.sigma < float("inf"):
            raise ArgumentError("sigma", "a finite number above 0", self.sigma)
        if not 0 <= self.blur < float("inf"):
            raise ArgumentError("blur", "a finite number of at least 0", self.blur)
        if self.readings < 1:
            raise ArgumentError("readings", "an integer of at least 1", self.readings)
