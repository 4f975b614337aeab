"""Evolutionary noise: standard normals by address, and the kinds that are built from them.

stream.py    (seed, generation, parameter name, pair) -> normals
kinds.py     normals -> the noise of a parameter: dense, of low rank, separable
factors.py   that noise, in the form it was drawn in
"""

from tinkering.noise.factors import DenseFactors as DenseFactors
from tinkering.noise.factors import Factors as Factors
from tinkering.noise.factors import LowRankFactors as LowRankFactors
from tinkering.noise.factors import SeparableFactors as SeparableFactors
from tinkering.noise.factors import on_device as on_device
from tinkering.noise.kinds import Dense as Dense
from tinkering.noise.kinds import LowRank as LowRank
from tinkering.noise.kinds import Noise as Noise
from tinkering.noise.kinds import Separable as Separable
from tinkering.noise.kinds import draw as draw
from tinkering.noise.stream import Stream as Stream
