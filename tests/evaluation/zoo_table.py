"""Which engine every network of the zoo gets: ``python tests/evaluation/zoo_table.py``.

It writes the tables of docs/modules.md anew, from what `bind` chooses.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from zoo import NETWORKS, SEES, Entry
from zoo_layers import LAYERS

from tinkering import LowRank, PerturbedPopulation, UnsupportedLayerError, bind

PAGE = Path(__file__).parents[2] / "docs" / "modules.md"
MEMBERS, EXAMPLES = 4, 2
PARTS = {"Networks": NETWORKS, "Layers": LAYERS}
ZOO = NETWORKS | LAYERS
NO_FORM = " has no form of its own for "
HEADING = """
| module | called with | perturbed members | stacked members | members' own values built for |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """A network of the zoo, members around it, and examples of each member's own."""

    entry: Entry
    model: nn.Module
    perturbed: PerturbedPopulation
    inputs: tuple

    def bound(self, population, engine="auto"):
        """Return the population bound, whatever is said of its engine."""
        kwargs = dict(self.entry.kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bind(self.model, population, self.inputs, kwargs, in_dims=(0, 0), engine=engine)

    def lacking(self):
        """Return the operations that have no form for noise, or what keeps members apart."""
        try:
            notes = self.bound(self.perturbed, "factored").plan.notes
        except UnsupportedLayerError as error:
            return f"none: {error}"
        said = [note.partition(NO_FORM)[0] for note in notes if NO_FORM in note]
        return ", ".join(dict.fromkeys(name.removesuffix(".default") for name in said))


@cache
def case_for(name):
    """Return a network with members, made once."""
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = entry.build().eval()
        drawn = [SEES[entry.sees](EXAMPLES) for _ in range(MEMBERS)]
    inputs = tuple(torch.stack(each) for each in zip(*drawn, strict=True))
    return Case(entry, model, PerturbedPopulation(model, MEMBERS, 0.05, LowRank(1)), inputs)


def row(name):
    """Return a network's line of the table."""
    case = case_for(name)
    engines = [case.bound(of).plan.engine for of in (case.perturbed, case.perturbed.stack())]
    return f"| {' | '.join([name, case.entry.sees, *engines, case.lacking()])} |"


def ends(part):
    """Return the lines of the page between which a part's table is."""
    return f"<!-- {part}, by tests/evaluation/zoo_table.py -->\n", f"\n<!-- {part}, the end -->"


def rows_of_the_page(part):
    """Return the lines of a table as it is now, without its heading."""
    begin, end = ends(part)
    return PAGE.read_text().split(begin)[1].split(end)[0].strip().splitlines()[2:]


if __name__ == "__main__":
    for part, entries in PARTS.items():
        begin, end = ends(part)
        before, rest = PAGE.read_text().split(begin)
        lines = "\n".join(map(row, entries))
        PAGE.write_text(f"{before}{begin}{HEADING}{lines}\n{end}{rest.split(end)[1]}")
