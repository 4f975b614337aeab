"""``tinkering evolve``: the settings of a run, and the run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

import tinkering
from tinkering import data
from tinkering.cli import network, reproduce
from tinkering.cli.display import RunDisplay
from tinkering.cli.recipes import RECIPES
from tinkering.data import Dataset, Split
from tinkering.errors import ArgumentError
from tinkering.evaluation.batchnorm import norm_scales
from tinkering.evaluation.forward import fastest_dtype
from tinkering.evaluation.predictions import predict_split
from tinkering.runs import folder, report
from tinkering.runs.events import EventFile
from tinkering.runs.evolve import Limits, Outcome, Record, evolve
from tinkering.runs.predictions import (
    PREDICTIONS,
    Predictions,
    gravest_mistakes,
    save_predictions,
)

DEFAULT_SECONDS = 120.0


@dataclass(frozen=True)
class Evolve:
    """Evolve a small ResNet on labelled images, from scratch and without gradients."""

    data: str = data.DEFAULT
    """Data set: a name from `tinkering data list`, or idx:FOLDER."""
    width: int = 8
    """Channels of the first of the four stages; the others have 2, 4 and 8 times as many."""
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks in each stage."""
    strategy: Literal["outputs", "weights"] = "outputs"
    """What is perturbed: what the layers put out, which learns faster, or the weights, whose
    members are networks of their own."""
    population: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Members a generation: 512 at each layer for outputs, 1024 for weights."""
    group: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Members that see the same image, and are compared with each other: 8."""
    sigma: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Size of a perturbation: 0.1 of an output's root mean square, or 0.005 on a weight."""
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Adam's step, about the change of a parameter in a generation: 0.004."""
    decay: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Generations until the step begins to shrink, as 1 / sqrt(1 + generation / decay): 200 for
    outputs, 100 for weights."""
    averaging: float = 0.98
    """Weight of the past in the running average of the centre, 0 to below 1."""
    fitness: Literal["cross-entropy", "accuracy"] = "cross-entropy"
    """What members are rated for: minus cross-entropy, or being right."""
    antithetic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Weights only: members come in pairs of opposite noise; needs --group 2."""
    rank: int = 1
    """Weights only: rank of the noise; higher is closer to plain Gaussian noise, and slower."""
    shaping: Literal["raw", "z-score", "rank", "sign"] = "z-score"
    """Weights only: how the differences of fitness are scaled."""
    statistics: Literal["fixed", "renewed"] = "fixed"
    """Weights only: BatchNorm's mean and variance, from the start or from each generation."""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Time limit in seconds. 120 if there is no --generations either."""
    generations: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Limit of generations; whichever limit comes first ends the run."""
    validation: int = 0
    """Training images to take out and to measure on, in place of the test images: for the
    search for settings. They are called test images all the same."""
    measure_every: float = 10.0
    """Seconds between two measurements on held-out images; there is always one at the end."""
    seed: int = 0
    """Decides the first weights, the noise and the order of the images."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Processor threads; all cores by default."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers in the members' convolutions; auto is bfloat16 on a processor with AMX."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The run folder, new or empty; runs/DATA-wWIDTH-sSEED-TIME by default."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write TensorBoard's event files into the run folder as well; needs
    tinkering[tensorboard]."""

    def run(self, console: Console) -> int:
        """Evolve with a progress bar, and leave a run folder."""
        limits = self._limits()
        if self.threads is not None:
            if self.threads < 1:
                raise ArgumentError("threads", "an integer of at least 1", self.threads)
            torch.set_num_threads(self.threads)
        dataset = _with_validation(data.load(self.data), self.validation)
        settings = self._settings(dataset, limits)
        recipe = RECIPES[self.strategy]
        strategy = recipe.strategy(settings)
        model = network.initialise(settings["network"], self.seed)
        out = Path(settings["out"])
        events = EventFile(out) if self.tensorboard else None
        folder.create(out)
        folder.write_json(out / folder.CONFIG, settings)

        task = recipe.task(settings, model, dataset)
        fixed = norm_scales(model)
        evolving = {n: p.detach() for n, p in model.named_parameters() if n not in fixed}
        console.print(
            f"{dataset.name}: {len(dataset.train):,} training images, {len(dataset.test):,} held "
            f"out, {len(dataset.classes)} classes\n"
            f"network: {sum(p.numel() for p in model.parameters()):,} parameters; "
            f"{recipe.members(settings)}; {settings['threads']} threads, {settings['dtype']}",
            soft_wrap=True,
        )
        with ExitStack() as stack:
            display = stack.enter_context(RunDisplay(console, limits))
            callbacks: list[Callable[[Record], None]] = [
                partial(folder.append_line, out / folder.METRICS),
                display.show,
            ]
            if events is not None:
                callbacks.append(stack.enter_context(events).write)
            outcome = evolve(strategy, strategy.init(evolving), task, limits, callbacks)
        centre = strategy.centre(outcome.state)
        tensors = {**model.state_dict(), **centre, **task.buffers(centre)}
        _save(out, outcome, tensors)
        said = predict_split(model, centre, task.buffers(centre), dataset.test)
        save_predictions(out / PREDICTIONS, _kept(dataset.test, *said))
        return _finish(console, out, outcome)

    def _limits(self) -> Limits:
        without_limit = self.seconds is None and self.generations is None
        return Limits(
            seconds=DEFAULT_SECONDS if without_limit else self.seconds,
            generations=self.generations,
            measure_every=self.measure_every,
        )

    def _settings(self, dataset: Dataset, limits: Limits) -> dict[str, Any]:
        """Return what ``config.json`` holds: the flags, and what they came to."""
        name = f"{dataset.name}-w{self.width}-s{self.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        dtype = str(fastest_dtype()) if self.dtype == "auto" else self.dtype
        flags = {
            **asdict(self),
            **{
                flag: default if getattr(self, flag) is None else getattr(self, flag)
                for flag, default in RECIPES[self.strategy].defaults.items()
            },
            "out": str(self.out or Path("runs", re.sub(r"[^\w.-]+", "-", name))),
            "seconds": limits.seconds,
            "dtype": dtype.removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        return {
            **flags,
            "command": reproduce.command(flags),
            "classes": dataset.classes,
            "network": {
                "blocks": self.blocks,
                "width": self.width,
                "classes": len(dataset.classes),
            },
            "pixels": {"mean": dataset.mean, "std": dataset.std},
            "versions": {
                "tinkering": tinkering.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def _with_validation(dataset: Dataset, count: int) -> Dataset:
    """Return the data with some training images in the place of the test images."""
    if not count:
        return dataset
    most = len(dataset.train) - 1
    if not 0 < count <= most:
        raise ArgumentError("validation", f"an integer from 0 to {most}", count)
    train = dataset.subset(train=len(dataset.train)).train  # shuffled
    halves = [
        replace(train, pixels=train.pixels[part], labels=train.labels[part])
        for part in (slice(count, None), slice(count))
    ]
    return replace(dataset, train=halves[0], test=halves[1])


def _save(out: Path, outcome: Outcome[Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write the network, and what the run came to."""
    folder.save_model(out / folder.MODEL, tensors)
    folder.write_json(
        out / folder.SUMMARY,
        {
            **outcome.measured,
            "evaluations": outcome.evaluations,
            "seconds": outcome.seconds,
            "generations": outcome.generations,
            "outcome": outcome.reason,
        },
    )


def _kept(test: Split, classes: torch.Tensor, confidence: torch.Tensor) -> Predictions:
    """Return what the report needs of the predictions."""
    labels, predicted = test.labels.numpy(), classes.numpy()
    mistakes = gravest_mistakes(labels, predicted, confidence.numpy())
    return Predictions(
        labels=labels.astype("int32"),
        predicted=predicted.astype("int32"),
        confidence=confidence.numpy(),
        mistakes=mistakes,
        images=test.pixels.numpy()[mistakes],
    )


def _finish(console: Console, out: Path, outcome: Outcome[Any]) -> int:
    """Draw the report, print what the run came to, and return the exit code."""
    page = report.write_report(out)
    console.print(
        f"{_ENDINGS[outcome.reason]} after {outcome.generations:,} generations, "
        f"{outcome.evaluations:,} model-images, {outcome.seconds:.0f} s: "
        f"test accuracy {100 * outcome.measured['test_accuracy']:.2f} %, "
        f"test loss {outcome.measured['test_loss']:.4f}\n"
        f"run folder: {out}\n"
        f"report: {page}\n"
        f"next: {_command()} evaluate {out}",
        soft_wrap=True,
    )
    return 130 if outcome.reason == "interrupted" else 0


_ENDINGS = {
    "seconds": "Ended by --seconds",
    "generations": "Ended by --generations",
    "interrupted": "Ended by Ctrl-C",
}


def _command() -> str:
    """Return what to type for this program: its path, where its name alone would not do."""
    if shutil.which("tinkering"):
        return "tinkering"
    return os.path.relpath(Path(sys.executable).with_name("tinkering"))
