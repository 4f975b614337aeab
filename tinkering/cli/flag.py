"""What is known of a flag, said once, beside it; lists of flags are read from there."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import tyro

Command = TypeVar("Command")
Role = Literal["result", "limit", "place", "beside", "call"]
"""What a flag is to a run. Part of its result: a run that is resumed keeps it, and the command
that repeats the run has it. A limit: it may change, and the command has it. A place, or how much
room there is: the run keeps it, and another has its own. Beside it, as who evaluates and what else
is written: it may change, and changes nothing about what is computed. Of a single call of the
program: it stands in no file."""


@dataclass(frozen=True)
class Facts:
    """What is known of a flag.

    Args:
        role: what it is to a run.
        defaults: by strategy, for those that it is for; empty if it is for all, with one default.
        found: gives what it comes to where it was not given.
        check: refuses what no run can have, by the flag's name and value.
    """

    role: Role
    defaults: Mapping[str, Any]
    found: Callable[[], Any] | None
    check: Callable[[str, Any], None] | None

    @property
    def may_change(self) -> bool:
        """Whether it may be another one when a run is resumed."""
        return self.role not in ("result", "place")

    @property
    def repeats(self) -> bool:
        """Whether it tells one run from another, and belongs in the command that repeats it."""
        return self.role in ("result", "limit")

    @property
    def saved(self) -> bool:
        """Whether it stands in ``config.json``."""
        return self.role != "call"

    def is_for(self, strategy: str) -> bool:
        """Return whether runs of this strategy have it."""
        return not self.defaults or strategy in self.defaults

    def is_open(self, strategy: str) -> bool:
        """Return whether it need not be given, and comes to something in such a run."""
        return strategy in self.defaults or self.found is not None

    def depends(self, strategy: str) -> bool:
        """Return whether what it comes to depends on what another flag says."""
        return isinstance(self.defaults.get(strategy), DivisorOf)

    def default(
        self, strategy: str, fitness: str, width: int, others: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what it comes to in a run that does not say.

        Args:
            strategy: of the run.
            fitness: its name.
            width: of the network.
            others: flags that it may depend on, by name.
        """
        value = self.defaults.get(strategy)
        if isinstance(value, DivisorOf):
            return value.in_run(others or {})
        if isinstance(value, ByFitness):
            return value.accuracy if fitness == "accuracy" else value.cross_entropy
        if isinstance(value, ByWidth):
            return value.narrow * min(1.0, value.width / max(1, width)) ** value.power
        return self.found() if value is None and self.found is not None else value


@dataclass(frozen=True)
class ByFitness:
    """A default that is another one with ``--fitness accuracy``."""

    cross_entropy: int | float | str
    accuracy: int | float | str

    def __str__(self) -> str:
        return f"{self.cross_entropy}, or {self.accuracy} with --fitness accuracy"


@dataclass(frozen=True)
class ByWidth:
    """A step, which is smaller by as much as the network is wider.

    Adam moves every weight by its step, so an activation moves in proportion to a layer's inputs,
    of which a wider network has more: Yang et al. 2021, "Tensor Programs V" (arXiv 2203.03466).
    Where statistics of norms are renewed, weights count by their direction alone. It turns by the
    step over their size, which falls with the square root of the inputs: hence `power`.
    """

    narrow: float
    width: int = 8
    """Of the first stage, up to which it is `narrow`."""
    power: float = 1.0
    """Of the ratio of widths."""

    def __str__(self) -> str:
        much = "as much" if self.power == 1 else "the square root of as much"
        return f"{self.narrow}, and less by {much} as the network is wider than {self.width}"


@dataclass(frozen=True)
class DivisorOf:
    """A default that divides what another flag says."""

    most: int
    whole: str
    """The name of the other flag."""

    def in_run(self, flags: Mapping[str, Any]) -> int:
        """Return the largest divisor up to `most`.

        Example:
            >>> DivisorOf(16, "images").in_run({"images": 100})
            10
        """
        whole = max(1, flags.get(self.whole) or self.most)
        return next(one for one in range(min(self.most, whole), 0, -1) if whole % one == 0)

    def __str__(self) -> str:
        return f"{self.most}, or the next smaller that divides --{self.whole},"


def flag(
    default: Any = MISSING,
    *,
    role: Role = "result",
    found: Callable[[], Any] | None = None,
    check: Callable[[str, Any], None] | None = None,
    **defaults: Any,
) -> Any:
    """Return the field of a dataclass that becomes a flag. See `Facts`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Weights:
        ...     rank: int | None = flag(None, weights=1)
        >>> Weights().rank is None
        True
        >>> facts(Weights)["rank"].is_for("activations")
        False
    """
    known = Facts(role, defaults, found, check)
    return field(default=default, metadata={"facts": known})


def documented(command: type[Command]) -> type[Command]:
    """Have ``--help`` show the text under each field of a dataclass, and what its default is.

    Tyro finds the text too, and breaks it where its lines end in the source.
    """
    (body,) = ast.parse(inspect.getsource(command)).body
    dataclass_: Any = command
    assigned = {one.name: one for one in fields(dataclass_)}
    for at, text in pairwise(getattr(body, "body", ())):
        if isinstance(at, ast.AnnAssign) and isinstance(text, ast.Expr):
            one = assigned[ast.unparse(at.target)]
            said = " ".join(ast.literal_eval(text.value).split())
            known = one.metadata.get("facts")
            if known is not None and known.defaults and one.default is None:
                said += f" (default: {_said(known.defaults)})"
            one.metadata = MappingProxyType({**one.metadata, "help": said})
    return command


def section(kind: type) -> Any:
    """Return the field of a dataclass that holds flags of another, for ``--help`` to show apart."""
    (strategies,) = {tuple(known.defaults) for known in facts(kind).values()}
    only = f"Only with --strategy {' or '.join(strategies)}. " if strategies else ""
    return field(default_factory=kind, metadata={"help": f"{only}{kind.__doc__}"})


def metavar(word: str) -> Any:
    """Return what shows a flag's value as this word, and no default where it is None."""

    def hint(default: str) -> str:
        return "" if default == "None" else f"(default: {default})"

    return tyro.conf.arg(metavar=word, help_behavior_hint=hint)


def choices(literal: Any) -> Any:
    """Return what shows the names of a Literal as a flag's values."""
    return metavar(f"{{{','.join(get_args(literal))}}}")


@cache
def facts(command: type) -> Mapping[str, Facts]:
    """Return what is known of each flag of a command, in their order."""
    return {one.name: one.metadata["facts"] for _, one in _flags(command)}


@cache
def types(command: type) -> Mapping[str, Any]:
    """Return the type of each flag of a command."""
    owners = {one.name: owner for owner, one in _flags(command)}
    hints = {owner: get_type_hints(owner) for owner in {*owners.values()}}
    return {name: hints[owner][name] for name, owner in owners.items()}


def values(command: Any) -> dict[str, Any]:
    """Return the value of each flag of a command, whichever group it is in."""
    found: dict[str, Any] = {}
    for one in fields(command):
        value = getattr(command, one.name)
        found |= values(value) if _is_group(one) else {one.name: value}
    return found


def with_values(command: Any, changed: Mapping[str, Any]) -> Any:
    """Return the command with other values for some flags, whichever group they are in."""
    return replace(
        command,
        **{
            one.name: with_values(getattr(command, one.name), changed)
            if _is_group(one)
            else changed[one.name]
            for one in fields(command)
            if _is_group(one) or one.name in changed
        },
    )


def _flags(command: type) -> Iterator[tuple[type, Field[Any]]]:
    """Give each flag with the class that it stands in."""
    for one in fields(command):
        yield from _flags(_kind(one)) if _is_group(one) else ((command, one),)


def _is_group(one: Field[Any]) -> bool:
    return is_dataclass(_kind(one))


def _kind(one: Field[Any]) -> Any:
    return one.default_factory


def _said(defaults: Mapping[str, Any]) -> str:
    if len({str(value) for value in defaults.values()}) == 1:
        return str(next(iter(defaults.values())))
    return ", ".join(f"{value} for {strategy}" for strategy, value in defaults.items())
