"""Populations whose effect on the outputs is learned, and plain loops over their members."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from perturbed import held_parameters, labels_for
from torch import nn

from tinkering.evaluation.entry import evaluate
from tinkering.noise import Stream
from tinkering.population import FedBackActivations
from tinkering.strategies.shaping import by_the_others

LEAST = 0.3
"""Of the largest mean square of noise, what is added to each."""


def fed_back(model, x, *, names=None, samples=1, sigma=0.1, seed=0, generation=0, **changes):
    """The module's parameters as a centre; of these names, or all that can be."""
    names = held_parameters(model, x) if names is None else names
    params = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
    stream = Stream(seed, generation)
    changes = {"readings": 8, **changes}
    return FedBackActivations(params, samples, sigma, stream, by_the_others, **changes)


def evaluation_of(model, x, *, y=None, fitness=None, dtype=torch.float32, **changes):
    given = {} if fitness is None else {"fitness": fitness}
    y = labels_for(x) if y is None else y
    return evaluate(model, fed_back(model, x, **changes), x, y, **given, dtype=dtype)


@dataclass
class Place:
    """Where a layer's noise is put, and whose weights it tells about."""

    module: str
    layers: tuple[str, ...]
    """Convolutions and linear layers; the noise has the first one's name."""
    norms: tuple[str, ...] = ()
    before: bool = False
    """Whether the module's input is the place, rather than what it returns."""
    rectified: bool = True
    curve: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What is applied to each number behind it, if it is no rectifier."""

    def amount(self, value, sigma):
        spread = value if self.rectified or value.numel() == 1 else value - value.mean()
        return sigma * spread.square().mean().sqrt()

    def gate(self, value, sigma):
        """How far noise on each number gets."""
        if self.rectified:
            return (value > 0).float()
        if self.curve is None:
            return torch.ones_like(value)
        amount = self.amount(value, sigma)
        above, below = (self.curve(value + sign * amount).float() for sign in (1, -1))
        return (above - below) / (2 * amount)

    @property
    def name(self):
        return f"{self.layers[0]}.weight:result"

    def channel(self, model):
        """The axis of the channels: the last one behind a linear layer."""
        return -1 if isinstance(model.get_submodule(self.layers[0]), nn.Linear) else 1

    def watch(self, model, seen):
        """Call a function with the value, which returns what to go on with."""
        module = model.get_submodule(self.module)
        if self.before:
            return module.register_forward_pre_hook(lambda _, given: (seen(given[0]),))
        return module.register_forward_hook(lambda _module, _given, made: seen(made))

    def parameters(self, model):
        names = [f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")]
        names += [f"{norm}.bias" for norm in self.norms]
        return {n: p for n, p in model.named_parameters() if n in names}


def through(model, x, place, change=None):
    """The module's result, and the value at a place, which may be changed."""
    found = []

    def seen(value):
        value = value if change is None else change(value)
        found.append(value)
        return value

    hook = place.watch(model, seen)
    result = model(x)
    hook.remove()
    return result, found[0]


def cell_numbers(value, most, channel=1):
    """The number of each number's cell, in the shape of a result ``[1, ...]``, and their count."""
    moved = value.movedim(channel, -1)
    *places, channels = moved.shape[1:]
    for side in range(1, max(places, default=1) + 1):
        grid = [math.ceil(length / side) for length in places]
        if math.prod(grid) * channels <= most:
            break
    number = torch.empty(moved.shape, dtype=torch.long)
    for at in product(*map(range, places)):
        block = 0
        for place, length in zip(at, grid, strict=True):
            block = block * length + place // side
        number[(0, *at)] = block * channels + torch.arange(channels)
    # Contiguous: the gradient of a grouped convolution's weight is wrong for some strides.
    return number.movedim(-1, channel).contiguous(), math.prod(grid) * channels


class Loop:
    """One image, one member and one forward of the module at a time."""

    def __init__(self, model, places, population):
        self.model, self.places, self.population = model, places, population

    def evaluate(self, x, y, fitness):
        population = self.population
        worth = []
        gradient = {n: torch.zeros_like(p) for n, p in self.model.named_parameters()}
        totals, members = {}, {}
        costs, forwards, evaluations = self.costs(x[:1]), 0.0, 0
        for i in range(len(x)):
            image, row = x[i : i + 1], population.first + i
            logits = self.model(image).detach()
            own, slope = self.slope(logits, row, y[i : i + 1], fitness)
            worth.append(own)
            forwards, evaluations = forwards + 1, evaluations + 1
            start = next(p.start for p in population.parts(len(x)) if i < p.stop)
            part = math.ceil((population.first + start) / population.images_a_part)
            for number, place in enumerate(self.places):
                for name, value in self.carried(place, image, slope / len(x)).items():
                    gradient[name] += value
                turn = number + part + population.stream.generation
                for sample in range(population.samples if turn % population.every == 0 else 0):
                    total = self.tried(place, image, logits, row * population.samples + sample)
                    totals[place.name] = totals.get(place.name, 0) + total
                    members[place.name] = members.get(place.name, 0) + 1
                    forwards, evaluations = forwards + costs[number], evaluations + 1
        return torch.stack(worth), gradient, totals, members, forwards, evaluations

    def slope(self, logits, row, label, fitness):
        population, many = self.population, self.population.readings
        rows, size = range(row, row + 1), logits.numel()
        if population.blur:
            amount = torch.tensor(population.blur)
            noise = population.stream.normals("outputs", rows, many * size).view(many, size)
        else:
            amount = population.sigma * (logits - logits.mean()).square().mean().sqrt()
            noise = population.stream.signs("outputs", rows, many * size).float().view(many, size)
        read = [logits + amount * noise[r].view_as(logits) for r in range(many)]
        worth = [fitness(each[None], label[None])[0] for each in read]
        slope = torch.zeros(size)
        for r in range(many):
            others = [worth[o] for o in range(many) if o != r]
            slope += (worth[r] - sum(others) / len(others)) * noise[r] / (many * amount)
        return sum(worth) / many, slope

    def carried(self, place, image, slope):
        """How fitness changes with a layer's weights, as far as is known."""
        learned = self.population.learned.get(place.name)
        if learned is None:
            return {}
        layers = [self.model.get_submodule(name) for name in place.layers]
        hooks = [m.register_forward_pre_hook(lambda _, g: (g[0].detach(),)) for m in layers]
        with torch.enable_grad():
            _, value = through(self.model, image, place)
            number, _ = cell_numbers(value, self.population.cells, place.channel(self.model))
            known = learned[:-1] / (learned[-1] + LEAST * learned[-1].max())
            change = (slope @ known)[number]
            change = change * place.gate(value, self.population.sigma)
            held = place.parameters(self.model)
            found = torch.autograd.grad((value * change.detach()).sum(), list(held.values()))
        for hook in hooks:
            hook.remove()
        return dict(zip(held, found, strict=True))

    def tried(self, place, image, logits, row):
        """What a member's noise did to the outputs, times the noise; and its square."""
        population = self.population
        _, value = through(self.model, image, place)
        number, count = cell_numbers(value, population.cells, place.channel(self.model))
        signs = population.stream.signs(place.name, range(row, row + 1), count).float()[0]
        amount, gate = place.amount(value, population.sigma), place.gate(value, population.sigma)
        open_ = (value > 0).float() if place.rectified else torch.ones_like(value)
        moved, _ = through(self.model, image, place, lambda v: v + amount * open_ * signs[number])
        response = (moved - logits).flatten() / amount
        many = torch.zeros(count).index_add(0, number.flatten(), gate.flatten())
        noise = signs * many
        return torch.cat([torch.outer(response, noise), noise.square()[None]])

    def costs(self, image):
        """For each place, multiplications of the layers behind it by those of all."""
        order = []
        hooks = []
        for name, module in self.model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):

                def note(module, _, made, name=name):
                    order.append((name, made.numel() * module.weight[0].numel()))

                hooks.append(module.register_forward_hook(note))
        self.model(image)
        for hook in hooks:
            hook.remove()
        names = [name for name, _ in order]
        work = [each for _, each in order]
        # A place is behind the last of the layers whose results are added to it.
        last = [max(names.index(layer) for layer in place.layers) for place in self.places]
        return [sum(work[at + 1 :]) / sum(work) for at in last]


def cross_entropy(logits, labels):
    """The default fitness, in PyTorch's words."""
    return -F.cross_entropy(logits[:, 0], labels[:, 0], reduction="none")
