"""A sigma for each parameter: members, slices, sums of noise, and mistakes."""

import pytest
import torch
from torch import nn

from tinkering.noise import Dense, LowRank, Separable, Stream, draw
from tinkering.population import PerturbedPopulation

SIGMA = {"0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.01, "1.bias": 2.0}
KINDS = [Dense(), LowRank(1), Separable(2)]


def make(sigma=SIGMA, kind=None, antithetic=True, model=None):
    torch.manual_seed(7)
    model = model or nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 3))
    return model, PerturbedPopulation(model, 6, sigma, kind, seed=5, antithetic=antithetic)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_member_is_the_centre_plus_noise_times_its_own_sigma(kind, antithetic):
    model, population = make(kind=kind, antithetic=antithetic)
    for i in range(6):
        pair, sign = (i // 2, (1.0, -1.0)[i % 2]) if antithetic else (i, 1.0)
        for name, value in population.member(i)[0].items():
            centre = model.get_parameter(name).detach()
            noise = draw(kind, Stream(5, 0), {name: centre.shape}, range(pair, pair + 1))[name]
            expected = centre + SIGMA[name] * sign * noise.dense()[0]
            torch.testing.assert_close(value, expected)


def test_one_number_for_all_is_the_same_by_name():
    by_name, plain = make(dict.fromkeys(SIGMA, 0.3))[1], make(0.3)[1]
    for i in range(6):
        assert all(torch.equal(p, plain[i][0][name]) for name, p in by_name[i][0].items())


def test_a_slice_has_the_members_of_the_whole():
    _, whole = make()
    part = whole[2:5][1:]
    for i in range(2):
        assert all(torch.equal(p, whole[3 + i][0][n]) for n, p in part[i][0].items())
    assert part.sigma_of("1.bias") == 2.0


def test_sums_of_noise_have_unit_variance_whatever_sigma_is():
    weights = torch.randn(6)
    by_name, plain = make()[1].weighted_noise(weights), make(0.3)[1].weighted_noise(weights)
    assert all(torch.equal(total, plain[name]) for name, total in by_name.items())


def test_the_order_of_the_names_does_not_matter():
    backwards = dict(reversed(SIGMA.items()))
    assert list(make(backwards)[1].sigma) == list(SIGMA)


def test_changing_the_mapping_later_changes_no_member():
    sigma = dict(SIGMA)
    _, population = make(sigma)
    sigma["0.weight"] = 9.0
    assert population.sigma_of("0.weight") == 0.5


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        ({"0.weight": 0.1}, "sigma: needed a number for the parameter '0.bias', got none."),
        (
            {**SIGMA, "2.bias": 0.1},
            "sigma: needed only names of the population's parameters, got '2.bias'.",
        ),
        (
            {**SIGMA, "1.bias": -0.5},
            "sigma: needed a finite number of at least 0 for '1.bias', got -0.5.",
        ),
        (
            {**SIGMA, "1.bias": float("nan")},
            "sigma: needed a finite number of at least 0 for '1.bias', got nan.",
        ),
    ],
)
def test_message(sigma, message):
    with pytest.raises(ValueError, match="needed") as caught:
        make(sigma)
    assert str(caught.value) == message
