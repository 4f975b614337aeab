"""What policies are compared with: the same by hand gives the same numbers."""

import pytest
import torch
from torch import nn

from benchmarks.bench.attention import inference
from benchmarks.bench.by_hand import noise_by_hand, stacked_by_hand
from benchmarks.bench.clock import one_thread
from benchmarks.bench.elsewhere import plain_vmap
from benchmarks.bench.networks import policy
from benchmarks.bench.sequences import CausalTransformer, RecurrentPolicy


@pytest.fixture
def policies():
    return [policy(4, 8, 6, 2) for _ in range(5)]


@pytest.fixture
def rows():
    return torch.randn(5, 3, 4)


class TestByHand:
    def test_a_stack_is_a_loop_over_models(self, policies, rows):
        expected = torch.stack([one(each) for one, each in zip(policies, rows, strict=True)])
        torch.testing.assert_close(stacked_by_hand(policies, rows)(), expected)

    def test_noise_is_about_the_model(self, policies, rows):
        x, model = rows[:, :1], policies[0]
        torch.testing.assert_close(noise_by_hand(model, 0.0, x)(), model(x[:, 0]))
        assert not torch.allclose(noise_by_hand(model, 0.1, x)(), model(x[:, 0]))


class TestVmap:
    def test_inputs_of_their_own(self, policies, rows):
        expected = torch.stack([one(each) for one, each in zip(policies, rows, strict=True)])
        torch.testing.assert_close(plain_vmap(policies, rows, in_dim=0)(), expected)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_several_inputs_and_results(self):
        models = [RecurrentPolicy() for _ in range(3)]
        x, state = torch.randn(3, 1, 8), torch.randn(3, 1, 64)
        results = plain_vmap(models, x, state, in_dim=0)()
        each = [one(*given) for one, *given in zip(models, x, state, strict=True)]
        expected = [torch.stack(parts) for parts in zip(*each, strict=True)]
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result, wanted)


class TestInference:
    def test_runs_every_example_in_the_dtype(self):
        seen = []

        class Watched(nn.Linear):
            def forward(self, x):
                seen.append((len(x), x.dtype))
                return super().forward(x)

        (way,) = inference(Watched(4, 2), torch.randn(35, 4), torch.bfloat16, compiled=False)
        way.run()
        assert (way.name, way.images) == ("pure:eager", 35)
        assert seen == [(n, torch.bfloat16) for n in (16, 16, 3)]

    def test_a_word_sees_no_later_one(self):
        model = CausalTransformer(width=16, depth=2).eval()
        words = torch.randint(256, (2, 64))
        others = words.clone()
        others[:, 40:] = torch.randint(256, (2, 24))
        before, after = model(words), model(others)
        torch.testing.assert_close(before[:, :40], after[:, :40])
        assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_one_thread_is_for_the_time_being():
    before = torch.get_num_threads()

    def fails():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_num_threads() == before
