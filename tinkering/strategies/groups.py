"""Which parameters evolve, and how strongly: factors by patterns over their names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tinkering.errors import ArgumentError
from tinkering.population.patterns import require_matches
from tinkering.ranges import require_not_negative


@dataclass(frozen=True)
class Group:
    """How some parameters differ from the rest.

    Args:
        sigma: factor on the strategy's sigma; 0 for parameters that do not evolve.
        step: factor on the learning rate, above 0.

    Raises:
        ArgumentError: (a ``ValueError``) one of them is out of range.

    Example:
        >>> head = Group(sigma=0.5, step=2.0)
        >>> fixed = Group(sigma=0)
    """

    sigma: float | int = 1.0
    step: float | int = 1.0

    def __post_init__(self) -> None:
        require_not_negative(**{"Group.sigma": self.sigma})
        if not 0 < self.step < math.inf:
            advice = "Group(sigma=0) keeps parameters as they are."
            raise ArgumentError("Group.step", "a finite number above 0", self.step, advice)


def group_of_each(names: Iterable[str], groups: Mapping[str, Group]) -> dict[str, Group]:
    """Return the group of each parameter: of the first pattern that its name matches.

    Args:
        names: of the parameters.
        groups: by patterns in the way of file names: ``*`` is anything, dots included, ``?``
            one character, ``[ab]`` one of some; upper and lower case differ.

    Raises:
        ArgumentError: (a ``ValueError``) a pattern matches no name, or nothing evolves.

    Example:
        >>> groups = {"*.bias": Group(sigma=0), "head.*": Group(step=2.0)}
        >>> found = group_of_each(["body.weight", "head.weight", "head.bias"], groups)
        >>> found["body.weight"], found["head.weight"], found["head.bias"].sigma
        (Group(sigma=1.0, step=1.0), Group(sigma=1.0, step=2.0), 0)
        >>> group_of_each(["weight"], {"wieght": Group()})
        Traceback (most recent call last):
        tinkering.errors.ArgumentError: groups: needed patterns that match a parameter's name, got
        'wieght'. The parameters are 'weight'.
    """
    names = list(names)
    require_matches("groups", names, groups)
    other = Group()
    found = {
        name: next((g for pattern, g in groups.items() if fnmatchcase(name, pattern)), other)
        for name in names
    }
    if groups and not any(group.sigma for group in found.values()):
        raise ArgumentError("groups", "a sigma above 0 for some parameter", "0 for all of them")
    return found
