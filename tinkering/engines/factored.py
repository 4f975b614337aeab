"""Engine: members that share a centre, folded into the batch.

The centre's layers are folded, cast and packed once. A tile of members then runs through
them as one batch of images, and every layer adds to each image what belongs to its member.
"""

from __future__ import annotations

from typing import Any

from tinkering.engines.binder import Forms
from tinkering.engines.cost import Load, processor
from tinkering.engines.job import Job
from tinkering.engines.member_forward import MembersRun, members_run
from tinkering.errors import UnsupportedLayerError
from tinkering.layers.perturbed import MemberLayer, MemberNorm, Tile
from tinkering.population import Draw, PerturbedPopulation, Sigma

_FORMS = Forms(MemberLayer, MemberNorm, buffers=False)


def prepare(job: Job) -> MembersRun:
    """Return what evaluates the job's members around their centre.

    Raises:
        UnsupportedLayerError: the module has no member-wise form.
    """
    population = job.population
    if not isinstance(population, PerturbedPopulation):
        raise UnsupportedLayerError(type(population).__name__, "members that share no centre")
    state = job.own | population.params | population.buffers

    def portion(members: slice) -> MembersNoise:
        part = population[members]
        return MembersNoise(part.draw(), part.sigma)

    return members_run(job, state, frozenset(population.params), _FORMS, portion)


_BEGIN = 10
"""Calls that an evaluation takes."""
_STEP = 3
"""Calls that a step takes."""
_DENSE = 0.2
"""Of the speed of large products, for those with noise on every weight of a pair."""


def cost(load: Load) -> float:
    """Return what an evaluation is expected to cost, in seconds of one thread."""
    known = processor()
    work = load.images * (load.convolved + load.multiplied)
    moved = 2 * load.images * load.values * 4 / known.cached
    noise = 0.0
    if load.dense:  # read once for a pair
        noise = load.members / 2 * load.weights * 4 / known.memory
        noise += work / (_DENSE * known.products)
    calls = _BEGIN + _STEP * load.steps
    return calls * known.call + work / known.products + moved + noise


class MembersNoise:
    """The noise of some members as it was drawn, and the tiles that it makes.

    Args:
        draw: of the members.
        sigma: multiplies it; one number, or one a parameter.
    """

    def __init__(self, draw: Draw, sigma: Sigma) -> None:
        self._draw, self._sigma = draw, sigma
        self._kept: dict[object, Any] = {}
        self._tiles: dict[tuple[int, int, int], Tile] = {}

    def tile(self, members: slice, examples: int) -> Tile:
        """Return the tile of some of the members, each with so many examples."""
        key = members.start, members.stop, examples
        if key not in self._tiles:
            if any(each != examples for *_, each in list(self._tiles)):
                self._tiles = {}  # of batches of another size: one at a time is kept
            rows, signs = self._draw.rows[members], self._draw.signs[members]
            if examples > 1:
                rows, signs = rows.repeat_interleave(examples), signs.repeat_interleave(examples)
            noise, sigma = self._draw.noise, self._sigma
            tile = Tile(noise, rows, signs, sigma, examples, self._kept)
            self._tiles[key] = tile
            return tile
        return self._tiles[key]
