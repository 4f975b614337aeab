"""Layers of any shape: what members add to the centre's is ``sigma E``, to fp32."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import assert_close, batch_for, loop
from torch import nn

from tinkering.evaluation.entry import forward
from tinkering.noise import Dense, LowRank, Separable
from tinkering.population import PerturbedPopulation

kinds = st.one_of(
    st.just(Dense()), st.builds(LowRank, st.integers(1, 4)), st.builds(Separable, st.integers(1, 3))
)
two = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def convolutions(draw):
    """A convolution over images, perhaps with a norm and a rectifier, and images for it."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    many = st.integers(1, 20 // groups)
    inputs, outputs = groups * draw(many), groups * draw(many)
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    # Dilation of a single tap means nothing, and PyTorch 2.13 itself crashes on some of it.
    dilation = tuple(draw(st.integers(1, 2)) if taps > 1 else 1 for taps in kernel)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    conv = nn.Conv2d(
        inputs, outputs, kernel, draw(two), padding, dilation, groups, bias=draw(st.booleans())
    )
    layers = [conv]
    if draw(st.booleans()):
        layers += [nn.BatchNorm2d(outputs)]
        layers[1].running_mean.normal_(std=0.1)
        layers[1].running_var.uniform_(0.5, 1.5)
        nn.init.normal_(layers[1].bias)
    if draw(st.booleans()):
        layers += [nn.ReLU()]
    least = [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True)]
    sizes = [draw(st.integers(size, size + 4)) for size in least]
    return nn.Sequential(*layers, nn.Flatten()).eval(), (inputs, *sizes)


def check(model, shape, kind, names, shared, images):
    """Members 1 to 3 of four, so that a pair is cut."""
    params = {name: p.detach() for name, p in model.named_parameters() if name in names}
    population = PerturbedPopulation(params, size=4, sigma=0.5, noise=kind)[1:]
    population = population.with_buffers(dict(model.named_buffers()))
    in_dims = (0, None) if shared else (0, 0)
    x = batch_for(in_dims, 3, images, shape)
    result = forward(model, population, x, in_dims, engine="factored")
    expected = loop(population, x, in_dims, model)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1e-2)


@given(convolutions(), kinds, st.data(), st.booleans(), st.integers(1, 3))
@settings(max_examples=20)
def test_convolutions(made, kind, data, shared, images):
    model, shape = made
    names = [name for name, _ in model.named_parameters()]
    some = data.draw(st.just(set(names)) | st.sets(st.sampled_from(names), min_size=1))
    check(model, shape, kind, some, shared, images)


@pytest.mark.parametrize("engine", ["factored", "sequential"])
@pytest.mark.parametrize("stride", [(1, 2), (1, 3)])
def test_one_channel_to_a_column_of_pixels(stride, engine):
    """oneDNN's packed convolution returns other numbers here: found by the test above."""
    model = nn.Sequential(nn.Conv2d(1, 4, 2, stride), nn.Flatten()).eval()
    population = PerturbedPopulation(model, size=4, sigma=0.5)
    x = torch.randn(6, 1, 4, 3)
    assert_close(forward(model, population, x, engine=engine), loop(population, x))


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=4),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    kinds,
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
@settings(max_examples=10)
def test_linear_layers_on_rows_of_any_number_of_axes(sizes, rows, kind, bias, shared, images):
    layers = [nn.Linear(*pair, bias=bias) for pair in itertools.pairwise(sizes)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).eval()
    names = {name for name, _ in model.named_parameters()}
    check(model, (*rows, sizes[0]), kind, names, shared, images)
