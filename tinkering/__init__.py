"""Evaluate and evolve populations of neural networks in PyTorch."""

# The names are looked up when first used. Importing them here would have Python find
# `python -m tinkering.models` loaded twice, and say so.
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinkering.distributed.evaluator import RayEvaluator as RayEvaluator
    from tinkering.engines.evaluation import Evaluation as Evaluation
    from tinkering.engines.planning import Plan as Plan
    from tinkering.errors import ArgumentError as ArgumentError
    from tinkering.errors import CheckpointError as CheckpointError
    from tinkering.errors import ClusterError as ClusterError
    from tinkering.errors import DataError as DataError
    from tinkering.errors import RunBusyError as RunBusyError
    from tinkering.errors import RunFolderError as RunFolderError
    from tinkering.errors import TinkeringError as TinkeringError
    from tinkering.errors import UnsupportedLayerError as UnsupportedLayerError
    from tinkering.evaluation.batchnorm import Reference as Reference
    from tinkering.evaluation.batchnorm import recalibrate as recalibrate
    from tinkering.evaluation.batchnorm import reference_statistics as reference_statistics
    from tinkering.evaluation.bound import Bound as Bound
    from tinkering.evaluation.bound import bind as bind
    from tinkering.evaluation.entry import evaluate as evaluate
    from tinkering.evaluation.entry import fastest_dtype as fastest_dtype
    from tinkering.evaluation.entry import forward as forward
    from tinkering.evaluation.entry import plan as plan
    from tinkering.evaluation.fitness import accuracy as accuracy
    from tinkering.evaluation.fitness import negative_cross_entropy as negative_cross_entropy
    from tinkering.functional import functional_forward_core as functional_forward_core
    from tinkering.functional import get_parallel_forward_pass_fn as get_parallel_forward_pass_fn
    from tinkering.models import BasicBlock as BasicBlock
    from tinkering.models import ResNet4StageCustom as ResNet4StageCustom
    from tinkering.models import SimpleResNet as SimpleResNet
    from tinkering.noise.kinds import Dense as Dense
    from tinkering.noise.kinds import LowRank as LowRank
    from tinkering.noise.kinds import Separable as Separable
    from tinkering.population.fed_back import FedBackActivations as FedBackActivations
    from tinkering.population.perturbed import PerturbedPopulation as PerturbedPopulation
    from tinkering.population.perturbed_activations import (
        PerturbedActivations as PerturbedActivations,
    )
    from tinkering.population.stacked import StackedPopulation as StackedPopulation
    from tinkering.runs.checkpoint import Checkpoints as Checkpoints
    from tinkering.runs.checkpoint import Progress as Progress
    from tinkering.runs.evolve import Limits as Limits
    from tinkering.runs.evolve import Outcome as Outcome
    from tinkering.runs.evolve import evolve as evolve
    from tinkering.strategies.activations import Activations as Activations
    from tinkering.strategies.evolution_strategy import EvolutionStrategy as EvolutionStrategy
    from tinkering.strategies.feedback import Feedback as Feedback
    from tinkering.strategies.genetic_algorithm import GeneticAlgorithm as GeneticAlgorithm
    from tinkering.strategies.groups import Group as Group
    from tinkering.strategies.growing import Growing as Growing
    from tinkering.strategies.schedules import constant as constant
    from tinkering.strategies.schedules import cosine as cosine
    from tinkering.strategies.schedules import inverse_sqrt as inverse_sqrt
    from tinkering.strategies.weights import Weights as Weights
    from tinkering.tasks.classification import Classification as Classification

__version__ = "0.1.0"

_ROOM_OF = {
    "RayEvaluator": "distributed.evaluator",
    "ArgumentError": "errors",
    "CheckpointError": "errors",
    "ClusterError": "errors",
    "DataError": "errors",
    "RunBusyError": "errors",
    "RunFolderError": "errors",
    "TinkeringError": "errors",
    "UnsupportedLayerError": "errors",
    "Reference": "evaluation.batchnorm",
    "recalibrate": "evaluation.batchnorm",
    "reference_statistics": "evaluation.batchnorm",
    "Classification": "tasks.classification",
    "accuracy": "evaluation.fitness",
    "negative_cross_entropy": "evaluation.fitness",
    "evaluate": "evaluation.entry",
    "fastest_dtype": "evaluation.entry",
    "forward": "evaluation.entry",
    "plan": "evaluation.entry",
    "Plan": "engines.planning",
    "BasicBlock": "models",
    "ResNet4StageCustom": "models",
    "SimpleResNet": "models",
    "functional_forward_core": "functional",
    "get_parallel_forward_pass_fn": "functional",
    "Dense": "noise.kinds",
    "LowRank": "noise.kinds",
    "Separable": "noise.kinds",
    "PerturbedPopulation": "population.perturbed",
    "StackedPopulation": "population.stacked",
    "Checkpoints": "runs.checkpoint",
    "Progress": "runs.checkpoint",
    "Limits": "runs.evolve",
    "Outcome": "runs.evolve",
    "evolve": "runs.evolve",
    "EvolutionStrategy": "strategies.evolution_strategy",
    "GeneticAlgorithm": "strategies.genetic_algorithm",
    "Group": "strategies.groups",
    "Growing": "strategies.growing",
    "constant": "strategies.schedules",
    "cosine": "strategies.schedules",
    "inverse_sqrt": "strategies.schedules",
    "Weights": "strategies.weights",
    "Activations": "strategies.activations",
    "Feedback": "strategies.feedback",
    "Evaluation": "engines.evaluation",
    "bind": "evaluation.bound",
    "Bound": "evaluation.bound",
    "FedBackActivations": "population.fed_back",
    "PerturbedActivations": "population.perturbed_activations",
}
__all__ = list(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
