"""A centre whose layers' activations are perturbed: members without weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from tinkering.errors import ArgumentError
from tinkering.noise import Stream
from tinkering.population.member import ParamsAndBuffers
from tinkering.ranges import require_at_least, require_not_negative, require_positive

Utilities = Callable[[Float[Tensor, "examples samples"]], Float[Tensor, "examples samples"]]
"""Fitness of each example's members at a layer -> what each member's noise is weighted with."""


@dataclass(frozen=True)
class PerturbedActivations:
    """Members that are the centre, but for noise on one layer's activation for one example.

    For every example and every layer there are `samples` of them: the layer's activation, where no
    rectifier is shut, is moved by ``+-sigma`` times its size. The size is its root mean square,
    or, where no rectifier follows, as behind logits, that of its differences from its mean; and 1
    where all of it is zero, as behind weights that start at zero. What a layer's noise is worth
    tells how its activation should change, and from that and the layer's input follows how its
    weights should.

    Members have no weights of their own, and how many there are is told by the examples and the
    layers that they are evaluated on: `member`, `materialise` and `stack` refuse.

    A fitness that is a step, such as being right, says nothing about a member that is far from
    the step. With `blur`, a member's logits are read `readings` times, each time with normal noise
    on them, and its fitness is that of all readings. An example's members share that noise, so
    that it favours none of them.

    Args:
        params: the centre's parameters that evolve, by name; at least one.
        samples: members for each example at each layer, at least 2.
        sigma: size of a perturbation by the layer's activation, above 0.
        stream: where the noise is read.
        utilities: shapes the fitness of each example's members.
        blur: standard deviation of the noise on logits, at least 0.
        readings: of each member's logits, at least 1.
        first: where the examples are only some of a generation's, which of those is their first.
        buffers: of all members; the module's own for those that are not here.

    Raises:
        ArgumentError: (a ``ValueError``) one of these is out of range.

    Example:
        >>> centre = dict(nn.Linear(8, 4).named_parameters())
        >>> population = PerturbedActivations(centre, 6, 0.1, Stream(0, 0), lambda f: f)
        >>> population.materialise(0)
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: population: needed members with weights of their own, got
        PerturbedActivations. Its members are the centre, but for noise on an activation.
    """

    params: Mapping[str, Tensor]
    samples: int
    sigma: float
    stream: Stream
    utilities: Utilities = field(repr=False)
    blur: float = 0.0
    readings: int = 1
    first: int = 0
    buffers: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    images_a_part: ClassVar[int] = 16
    """Whose estimates are summed at a time. Few, so that there are parts for several workers;
    enough for a product of matrices."""
    fewest_samples: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.params:
            raise ArgumentError("params", "at least one parameter that evolves", "none")
        require_at_least(self.fewest_samples, samples=self.samples)
        require_at_least(1, readings=self.readings)
        require_positive("sigma", self.sigma)
        require_not_negative(blur=self.blur)

    @property
    def template(self) -> nn.Module | None:
        """None: the architecture is not known."""
        return None

    @property
    def centre(self) -> Mapping[str, Tensor]:
        """The parameters that all members have."""
        return self.params

    @property
    def like(self) -> ParamsAndBuffers:
        """The centre."""
        return dict(self.params), dict(self.buffers)

    @property
    def differing(self) -> frozenset[str]:
        """Names of the parameters and buffers that members have values of their own for."""
        return frozenset(self.params)

    @property
    def likeness(self) -> Hashable:
        """Equal for populations that are evaluated in the same way, whatever their numbers."""
        return type(self), self.samples, self.readings, self.blur > 0, tuple(self.params)

    def parts(self, examples: int) -> list[slice]:
        """Return the examples whose estimates are summed at a time, before those of all are.

        They are of about the same size, and depend on nothing but the number of examples, so a sum
        has the same bits however many threads and processes take part.

        Example:
            >>> from tinkering.strategies.shaping import raw
            >>> population = PerturbedActivations({"p": Tensor()}, 2, 0.1, Stream(0, 0), raw)
            >>> population.parts(20)
            [slice(0, 10, None), slice(10, 20, None)]
        """
        count = -(-examples // self.images_a_part)
        bounds = [examples * at // max(1, count) for at in range(count + 1)]
        return [slice(*pair) for pair in pairwise(bounds)]

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> PerturbedActivations:
        """Return the same members with other buffers, such as fresh BatchNorm statistics."""
        return replace(self, buffers=dict(buffers))

    def member(self, index: int) -> NoReturn:
        """Refuse: no member has parameters of its own.

        Raises:
            ArgumentError: (a ``ValueError``) always.
        """
        del index
        self._refuse()

    def materialise(self, index: int, model: nn.Module | None = None) -> NoReturn:
        """Refuse: no member has parameters of its own.

        Raises:
            ArgumentError: (a ``ValueError``) always.
        """
        del index, model
        self._refuse()

    def stack(self) -> NoReturn:
        """Refuse: no member has parameters of its own.

        Raises:
            ArgumentError: (a ``ValueError``) always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ArgumentError(
            "population",
            "members with weights of their own",
            type(self).__name__,
            "Its members are the centre, but for noise on an activation.",
        )
