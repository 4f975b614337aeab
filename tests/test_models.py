"""The seed: shapes, counts and names of the network, and its forwards against plain loops."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from tinkering import models
from tinkering.errors import TinkeringError
from tinkering.models import (
    BasicBlock,
    ResNet4StageCustom,
    SimpleResNet,
    functional_forward_core,
    get_parallel_forward_pass_fn,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class Bottleneck(nn.Module):
    """A block that this package does not have: 1x1, 3x3, 1x1 with four times the planes."""

    expansion = 4

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        out = planes * self.expansion
        self.body = nn.Sequential(
            nn.Conv2d(in_planes, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Conv2d(in_planes, out, 1, stride, bias=False)

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def state_of(model):
    return dict(model.named_parameters()), dict(model.named_buffers())


def make_population(size, width=4):
    """Networks with weights of their own and running statistics that have seen images."""
    population = []
    for seed in range(size):
        torch.manual_seed(seed)
        model = SimpleResNet(BasicBlock, [1, 1, 1, 1], width=width)
        for _ in range(10):
            model(torch.randn(16, 1, 28, 28))
        population.append(model)
    return population


class TestArchitecture:
    @pytest.mark.parametrize(
        ("model", "parameters"),
        [
            (ResNet4StageCustom(num_classes=10), 4_902_090),
            (SimpleResNet(BasicBlock, [2, 2, 2, 2], 10, 3), 11_173_962),
        ],
        ids=["four-stage", "resnet-18"],
    )
    def test_parameter_counts(self, model, parameters):
        assert sum(p.numel() for p in model.parameters()) == parameters

    def test_state_dict_has_the_keys_of_the_cifar_resnets(self):
        """Written out from the layout that their checkpoints have, not from our module."""
        expected = {"conv1.weight", "linear.weight", "linear.bias"}
        norms = ["bn1"]
        for stage in range(1, 5):
            for block in range(2):
                at = f"layer{stage}.{block}"
                expected |= {f"{at}.conv1.weight", f"{at}.conv2.weight"}
                norms += [f"{at}.bn1", f"{at}.bn2"]
            if stage > 1:
                expected.add(f"layer{stage}.0.shortcut.0.weight")
                norms.append(f"layer{stage}.0.shortcut.1")
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected |= {f"{norm}.{part}" for norm in norms for part in parts}
        assert set(SimpleResNet(BasicBlock, [2, 2, 2, 2], 10, 3).state_dict()) == expected

    def test_block_has_the_seeds_parts(self):
        same, wider = BasicBlock(8, 8), BasicBlock(8, 16, stride=2)
        assert BasicBlock.expansion == 1
        assert [name for name, _ in same.named_children()] == [
            "conv1",
            "bn1",
            "conv2",
            "bn2",
            "shortcut",
        ]
        assert len(same.shortcut) == 0
        assert [type(layer) for layer in wider.shortcut] == [nn.Conv2d, nn.BatchNorm2d]
        assert wider.shortcut[0].kernel_size == (1, 1)
        assert wider.shortcut[0].stride == wider.conv1.stride == (2, 2)
        convs = [m for m in wider.modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == 3
        assert all(conv.bias is None for conv in convs)

    def test_block_computes_the_residual(self):
        block = BasicBlock(3, 5, stride=2).eval()
        x = torch.randn(2, 3, 9, 9)
        left = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        right = block.shortcut[1](block.shortcut[0](x))
        torch.testing.assert_close(block(x), F.relu(left + right))

    def test_stages(self):
        model = ResNet4StageCustom()
        assert [name for name, _ in model.named_children()] == [
            "conv1",
            "bn1",
            "layer1",
            "layer2",
            "layer3",
            "layer4",
            "avgpool",
            "linear",
        ]
        shapes = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            stage.register_forward_hook(lambda _m, _x, out: shapes.append(tuple(out.shape)))
        model(torch.zeros(2, 1, 28, 28))
        assert shapes == [(2, 64, 28, 28), (2, 128, 14, 14), (2, 256, 7, 7), (2, 512, 4, 4)]
        assert model.linear.in_features == 512

    @pytest.mark.parametrize("size", [28, 32, 17])
    @pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
    def test_any_block_and_any_image_size(self, block, size):
        model = SimpleResNet(block, [1, 2, 1, 1], 47, 3, width=4)
        assert model.linear.in_features == 4 * 8 * block.expansion
        assert model(torch.randn(2, 3, size, size)).shape == (2, 47)


class TestForwards:
    def test_functional_equals_standard_exactly(self):
        (model,) = make_population(1)
        model.eval()
        x = torch.randn(6, 1, 28, 28)
        assert torch.equal(functional_forward_core(model, state_of(model), x), model(x))

    def test_functional_uses_the_given_state_and_leaves_the_module_alone(self):
        model, other = (m.eval() for m in make_population(2))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x = torch.randn(6, 1, 28, 28)
        assert torch.equal(functional_forward_core(model, state_of(other), x), other(x))
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())

    @pytest.mark.parametrize("in_dims", [(0, None), (0, 0)])
    def test_vmapped_equals_a_loop_over_modules(self, in_dims):
        population = [model.eval() for model in make_population(3)]
        batch = torch.randn(5, 1, 28, 28) if in_dims[1] is None else torch.randn(3, 5, 1, 28, 28)
        forward = get_parallel_forward_pass_fn(population[0], in_dims=in_dims)
        result = forward(stack_module_state(population), batch)
        batches = batch.expand(3, 5, 1, 28, 28)
        loop = torch.stack([m(x) for m, x in zip(population, batches, strict=True)])
        assert result.shape == (3, 5, 10)
        torch.testing.assert_close(result, loop, **TOLERANCE)
        assert not torch.allclose(result[0], result[1], **TOLERANCE)

    def test_the_seeds_own_vmap_over_distinct_batches(self):
        population = [model.eval() for model in make_population(3)]
        batches = torch.randn(3, 5, 1, 28, 28)
        forward = vmap(
            lambda state, x: functional_forward_core(population[0], state, x),
            in_dims=(0, 0),
            randomness="same",
        )
        result = forward(stack_module_state(population), batches)
        loop = torch.stack([m(x) for m, x in zip(population, batches, strict=True)])
        torch.testing.assert_close(result, loop, **TOLERANCE)

    @pytest.mark.parametrize("in_dims", [(0, None), (0, 0)])
    def test_train_mode_moves_every_members_running_statistics_as_a_loop_does(self, in_dims):
        population = make_population(3)
        params, buffers = stack_module_state(population)
        batch = torch.randn(5, 1, 28, 28) if in_dims[1] is None else torch.randn(3, 5, 1, 28, 28)
        forward = get_parallel_forward_pass_fn(population[0], in_dims=in_dims)
        result = forward((params, buffers), batch)
        batches = batch.expand(3, 5, 1, 28, 28)
        for member, (model, x) in enumerate(zip(population, batches, strict=True)):
            before = model.bn1.running_mean.clone()
            torch.testing.assert_close(result[member], model(x), **TOLERANCE)
            assert not torch.allclose(before, model.bn1.running_mean)
            for name, value in model.named_buffers():
                torch.testing.assert_close(buffers[name][member], value, **TOLERANCE)

    def test_dropout_draws_the_same_mask_for_every_member(self):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        state = ({}, {"counter": torch.zeros(3)})
        result = vmap(
            lambda _, x: functional_call(model, {}, (x,)), in_dims=(0, None), randomness="same"
        )(torch.zeros(3), torch.ones(4, 50))
        ours = get_parallel_forward_pass_fn(model)(state, torch.ones(4, 50))
        for masks in (result, ours):
            assert torch.equal(masks[0], masks[1])
            assert 0 < (masks[0] == 0).sum() < 200


class TestMistakes:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: SimpleResNet(BasicBlock, [1, 1, 1]),
                "num_blocks_per_stage: needed four numbers of at least 1, one a stage, "
                "got [1, 1, 1].",
            ),
            (
                lambda: SimpleResNet(BasicBlock, [1, 0, 1, 1]),
                "num_blocks_per_stage: needed four numbers of at least 1, one a stage, "
                "got [1, 0, 1, 1].",
            ),
            (
                lambda: ResNet4StageCustom(num_classes=0),
                "num_classes: needed an integer of at least 1, got 0.",
            ),
            (
                lambda: ResNet4StageCustom(in_channels=-1),
                "in_channels: needed an integer of at least 1, got -1.",
            ),
            (
                lambda: SimpleResNet(BasicBlock, [1, 1, 1, 1], width=0),
                "width: needed an integer of at least 1, got 0.",
            ),
            (
                lambda: ResNet4StageCustom()(torch.zeros(2, 3, 28, 28)),
                "x: needed images of shape [batch, 1, height, width], got [2, 3, 28, 28].",
            ),
            (
                lambda: ResNet4StageCustom()(torch.zeros(1, 28, 28)),
                "x: needed images of shape [batch, 1, height, width], got [1, 28, 28].",
            ),
            (
                lambda: get_parallel_forward_pass_fn(ResNet4StageCustom(), in_dims=(None, 0)),
                "in_dims: needed (0, None) for one batch shared by all members or (0, 0) for a "
                "batch each, got (None, 0).",
            ),
        ],
    )
    def test_message(self, make, message):
        with pytest.raises(ValueError, match="needed") as caught:
            make()
        assert str(caught.value) == message
        assert isinstance(caught.value, TinkeringError)


def assert_demonstrated(printed):
    lines = printed.splitlines()
    assert [line[:2] for line in lines[::2]] == ["1.", "2.", "3.", "4.", "5."]
    assert printed.count("largest difference") == 5
    assert "[4, 5, 10]" in printed


class TestDemonstration:
    def test_of_the_file_runs_and_says_what_it_compared(self, tmp_path):
        """With its own folder first on the path, in which files are called as modules are."""
        done = subprocess.run(
            [sys.executable, "-W", "error", models.__file__],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            # Threads that wait for a busy processor take several times as long.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert_demonstrated(done.stdout)

    @pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
    def test_of_the_module_too(self, capsys):
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("tinkering.models", run_name="__main__")
        assert ended.value.code == 0
        assert_demonstrated(capsys.readouterr().out)

    def test_a_difference_beyond_tolerance_ends_with_a_non_zero_exit_code(self, tmp_path, capsys):
        source = Path(models.__file__).read_text()
        broken = tmp_path / "broken.py"
        broken.write_text(source.replace("member(x) for member", "member(x + 1e-2) for member"))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(broken), run_name="__main__")
        assert ended.value.code == 1
        assert "FAILED, tolerance 1e-05" in capsys.readouterr().out
