"""Populations: many parameter sets for one architecture.

`StackedPopulation` holds explicit members; a `PerturbedPopulation` is a centre and noise; in a
`SeedChainPopulation` every member is a base and the addresses of its mutations; members of
`PerturbedActivations` and `FedBackActivations` are the centre, but for noise on a layer's
activation for an example.
"""

from tinkering.population.fed_back import FedBackActivations as FedBackActivations
from tinkering.population.member import CountedPopulation as CountedPopulation
from tinkering.population.member import Members as Members
from tinkering.population.member import ParamsAndBuffers as ParamsAndBuffers
from tinkering.population.member import Population as Population
from tinkering.population.perturbed import Draw as Draw
from tinkering.population.perturbed import PerturbedPopulation as PerturbedPopulation
from tinkering.population.perturbed import Sigma as Sigma
from tinkering.population.perturbed_activations import (
    PerturbedActivations as PerturbedActivations,
)
from tinkering.population.seed_chains import Chain as Chain
from tinkering.population.seed_chains import Mutation as Mutation
from tinkering.population.seed_chains import SeedChainPopulation as SeedChainPopulation
from tinkering.population.stacked import StackedPopulation as StackedPopulation
