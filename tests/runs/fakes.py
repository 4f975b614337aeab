"""A strategy and an evaluator that only count, and a clock that tests move by hand."""

import torch

from tinkering.engines.evaluation import Evaluation


class Counting:
    """Its state is the number of generations told; its centre says so."""

    def __init__(self):
        self.told = []

    def ask(self, state):
        return f"population of generation {state}"

    def tell(self, state, evaluation):
        self.told.append(evaluation.fitness.tolist())
        return state + 1

    def centre(self, state):
        return {"generation": torch.tensor(state)}


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Evaluator:
    """Every evaluation takes `seconds`, every measurement `measuring` seconds."""

    def __init__(self, clock=None, seconds=1.0, measuring=0.0, fitness=(1.0, 3.0), during=None):
        self.clock = clock or Clock()
        self.seconds, self.measuring = seconds, measuring
        self.given, self.during = fitness, during or {}
        self.populations, self.measured = [], []

    def _happens(self, what, generation):
        self.during.get((what, generation), lambda: None)()

    def evaluate(self, population, generation):
        assert population.startswith("population")
        self.populations.append((population, generation))
        self._happens("fitness", generation)
        self.clock.now += self.seconds
        return Evaluation(torch.tensor(self.given), evaluations=7)

    def measure(self, params):
        generation = int(params["generation"])
        self.measured.append(generation)
        self._happens("measure", generation)
        self.clock.now += self.measuring
        return {"test_accuracy": generation / 100, "test_loss": -float(generation)}
