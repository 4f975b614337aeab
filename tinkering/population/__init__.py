"""Populations: many parameter sets for one architecture.

`StackedPopulation` holds explicit members; a `PerturbedPopulation` is a centre and noise.
"""

from tinkering.population.member import ParamsAndBuffers as ParamsAndBuffers
from tinkering.population.member import Population as Population
from tinkering.population.perturbed import Draw as Draw
from tinkering.population.perturbed import PerturbedPopulation as PerturbedPopulation
from tinkering.population.stacked import StackedPopulation as StackedPopulation
