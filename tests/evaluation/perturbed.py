"""Populations of perturbed activations for any network, for the tests of their evaluation."""

import torch
import torch.nn.functional as F
from small_nets import program

from tinkering.evaluation.entry import evaluate
from tinkering.graph.program import NORM, arguments
from tinkering.noise import Stream
from tinkering.population import PerturbedActivations
from tinkering.strategies.shaping import by_the_others


def held_parameters(model, x):
    """Names of the weights and biases of fused layers and the shifts of norms."""
    steps = program(model, x)
    nodes = []
    for step in steps.fused:
        norm = step.layer if step.layer.target is NORM else step.norm
        nodes += [] if norm is None else [arguments(norm)["bias"]]
        nodes += [] if norm is step.layer else [step.given["weight"], step.given["bias"]]
    names = steps.captured.parameters
    return {names[node.name] for node in nodes if node is not None and node.name in names}


def perturbed(model, x, names, *, samples=8, sigma=0.1, seed=0, generation=0, blur=0.0, readings=1):
    """The module's parameters of these names as a centre; None: all that can be."""
    names = held_parameters(model, x) if names is None else names
    params = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
    params |= {n: torch.zeros(1) for n in names if n not in params}
    stream = Stream(seed, generation)
    return PerturbedActivations(params, samples, sigma, stream, by_the_others, blur, readings)


def labels_for(x):
    return torch.arange(len(x)) % 5


def evaluation_of(model, x, *, names=None, y=None, fitness=None, dtype=torch.float32, **changes):
    population = perturbed(model, x, names, **changes)
    given = {} if fitness is None else {"fitness": fitness}
    y = labels_for(x) if y is None else y
    return evaluate(model, population, x, y, **given, dtype=dtype)


def relative(result, expected):
    return ((result - expected).abs().max() / expected.abs().max()).item()


def cosine(one, other):
    return F.cosine_similarity(one.flatten(), other.flatten(), 0).item()
