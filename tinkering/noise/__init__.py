"""Evolutionary noise: standard normals by address, and the kinds that are built from them.

stream.py    (seed, generation, parameter name, pair) -> normals
kinds.py     normals -> the noise of a parameter: dense, of low rank, separable
factors.py   that noise, in the form it was drawn in
products.py  the same as outer products, by which it is summed
blocks.py    a generation's noise, drawn once for all who need it
sums.py      its sum over members
"""

from tinkering.noise.blocks import Address as Address
from tinkering.noise.blocks import Blocks as Blocks
from tinkering.noise.blocks import living as living
from tinkering.noise.factors import DenseFactors as DenseFactors
from tinkering.noise.factors import Factors as Factors
from tinkering.noise.factors import LowRankFactors as LowRankFactors
from tinkering.noise.factors import SeparableFactors as SeparableFactors
from tinkering.noise.factors import on_device as on_device
from tinkering.noise.factors import weighted_sum as weighted_sum
from tinkering.noise.kinds import Dense as Dense
from tinkering.noise.kinds import LowRank as LowRank
from tinkering.noise.kinds import Noise as Noise
from tinkering.noise.kinds import Separable as Separable
from tinkering.noise.kinds import draw as draw
from tinkering.noise.stream import Stream as Stream
from tinkering.noise.sums import Mapped as Mapped
from tinkering.noise.sums import weighted_noise as weighted_noise
