"""The flags of ``tinkering evolve``, each with what is known of it; see `tinkering.cli.flag`.

Where the defaults come from: docs/recipes.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from tinkering import data
from tinkering.cli import ranges
from tinkering.cli.flag import (
    ByFitness,
    ByWidth,
    DivisorOf,
    choices,
    documented,
    flag,
    metavar,
    section,
)
from tinkering.engines.memory import default_budget

Integer = Annotated[int | None, metavar("INT")]
Float = Annotated[float | None, metavar("FLOAT")]
Seconds = Annotated[float | None, metavar("SECONDS")]
Folder = Annotated[Path | None, metavar("FOLDER")]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Shaping = Literal["raw", "relative", "z-score", "rank", "sign"]
Statistics = Literal["fixed", "renewed"]


@documented
@dataclass(frozen=True)
class EvolutionStrategy:
    """How an estimate of the gradient becomes a step."""

    learning_rate: Float = flag(
        None, feedback=ByWidth(0.004, power=0.5), activations=ByWidth(0.004), weights=ByWidth(0.002)
    )
    """Adam's step, about the change of a parameter in a generation."""
    decay: Float = flag(None, feedback=1000.0, activations=200.0, weights=300.0)
    """Generations until the step begins to shrink, as 1 / sqrt(1 + generation / decay)."""
    averaging: Float = flag(None, feedback=0.99, activations=0.98, weights=0.98)
    """Weight of the past in the running average of the centre, 0 to below 1."""
    shaping: Annotated[Shaping | None, choices(Shaping)] = flag(
        None,
        feedback=ByFitness("raw", accuracy="relative"),
        activations=ByFitness("raw", accuracy="relative"),
        weights="z-score",
    )
    """How the differences of fitness are scaled. For feedback: raw, or relative to the mean of the
    readings of an image. For activations: raw, or relative to the fitness of the members of the
    same image. For weights: z-score, raw, rank or sign."""


@documented
@dataclass(frozen=True)
class Activations:
    """How outputs are read under noise."""

    blur: Float = flag(
        None, feedback=ByFitness(0.0, accuracy=2.0), activations=ByFitness(0.0, accuracy=2.0)
    )
    """Standard deviation of the noise under which outputs are read, a member's or, for feedback,
    the centre's: it makes a slope of the step from wrong to right. With 0, feedback takes --sigma
    times what an image's outputs differ by, and activations none."""
    readings: Integer = flag(
        None, feedback=ByFitness(64, accuracy=1024), activations=ByFitness(1, accuracy=1024)
    )
    """Times that outputs are read, each with other noise."""


@documented
@dataclass(frozen=True)
class Feedback:
    """How finely noise on layers is drawn."""

    cells: Integer = flag(None, check=ranges.at_least_one, feedback=512)
    """Signs of noise that a layer has at most: pixels of a channel share them where it has more
    numbers."""


@documented
@dataclass(frozen=True)
class Networks:
    """Which images a generation sees, and how batch norms see them."""

    images: Integer = flag(None, check=ranges.at_least_one, feedback=128, weights=1, genetic=64)
    """Images that a member sees in a generation; for feedback, that the centre sees."""
    statistics: Annotated[Statistics | None, choices(Statistics)] = flag(
        None, feedback="renewed", weights="fixed", genetic="fixed"
    )
    """BatchNorm's mean and variance: from the start, or from each generation; for feedback, from
    up to 64 images that are evaluated together."""


@documented
@dataclass(frozen=True)
class Weights:
    """What the noise on the weights is."""

    antithetic: Switch = flag(False, weights=False)
    """Members come in pairs of opposite noise; needs --group 2."""
    rank: Integer = flag(None, weights=1)
    """Rank of the noise; higher is closer to plain Gaussian noise, and slower."""


@documented
@dataclass(frozen=True)
class Genetic:
    """Who has children."""

    parents: Integer = flag(None, genetic=16)
    """Fittest members, of which those of the next generation are mutations."""
    elites: Integer = flag(None, genetic=1)
    """Fittest members that live on as they are."""


@documented
@dataclass(frozen=True)
class Growing:
    """A network that begins narrow, and is widened while it evolves."""

    grow_from: Integer = flag(None, check=ranges.at_least_one)
    """Width to begin with: --width halved, once or more. The network is given twice as many
    channels, without a change of what it computes, until it has --width; a generation of a narrow
    one takes less time. For feedback, activations and weights; --learning-rate and --cells are
    those of the last width."""
    grow_every: Integer = flag(None, check=ranges.at_least_one)
    """Generations of each width but the last; 80 if there is --grow-from."""


@documented
@dataclass(frozen=True)
class Workers:
    """Other processes, here or on a Ray cluster, evaluate in place of this one."""

    workers: Integer = flag(None, role="beside", check=ranges.at_least_one)
    """Processes that evaluate; needs tinkering[ray]. With --threads 1 the run's numbers are the
    same for any number of them."""
    ray_address: Annotated[str | None, metavar("ADDRESS")] = flag(None, role="beside")
    """A Ray cluster whose workers evaluate, such as 10.0.0.1:6379, or auto for the one on this
    machine; as many as it has CPUs for, unless --workers says otherwise."""
    gpus_per_worker: float = flag(0.0, role="beside", check=ranges.share)
    """GPUs that Ray reserves for each worker; a fraction shares one."""
    threads_per_worker: Integer = flag(None, role="beside", check=ranges.at_least_one)
    """Processor threads of each worker; by default workers on this machine share --threads, and
    those of a cluster have one each."""
    worker_timeout: Annotated[float, metavar("SECONDS")] = flag(
        60.0, role="beside", check=ranges.waiting_time
    )
    """Seconds without an answer after which a worker is replaced."""


@documented
@dataclass(frozen=True)
class Output:
    """Where a run writes, how it goes on, and what it does when something fails."""

    out: Folder = flag(None, role="place")
    """The run folder, new or empty; runs/DATA-wWIDTH-sSEED-TIME by default."""
    report: bool = flag(True, role="beside")
    """Draw report.html and its pictures at the end; `tinkering report` draws them later."""
    tensorboard: Switch = flag(False, role="beside")
    """Write TensorBoard's event files into the run folder as well; needs tinkering[tensorboard]."""
    resume: Folder = flag(None, role="call")
    """Go on with the run in this folder, as if it had never ended. Its settings are its own;
    --seconds and --generations may be given anew, counted from the run's start."""
    checkpoint_every: int = flag(1, role="beside", check=ranges.at_least_one)
    """Generations between two checkpoints. At each end there is one as well."""
    keep_checkpoints: int = flag(3, role="beside", check=ranges.at_least_one)
    """Checkpoints to keep: older ones help where the newest is damaged."""
    if_disk_full: Literal["end", "go-on"] = flag("end", role="beside")
    """What to do when nothing can be written: end the run, or go on and hope for room."""
    debug: Switch = flag(False, role="call")
    """Show where in the program a mistake was met."""


@documented
@dataclass(frozen=True)
class Flags:
    """What every run has, and groups of what only some have."""

    data: str = flag(data.DEFAULT)
    """Data set: a name from `tinkering data list`, or idx:FOLDER."""
    width: int = flag(8, check=ranges.at_least_one)
    """Channels of the first of the four stages; the others have 2, 4 and 8 times as many."""
    blocks: tuple[int, int, int, int] = flag((1, 1, 1, 1), check=ranges.counts_of_stages)
    """Residual blocks in each stage."""
    strategy: Literal["feedback", "activations", "weights", "genetic"] = flag("feedback")
    """What evolves: a network whose activations are perturbed, by learned feedback, which learns
    fastest, or by their fitness alone; one whose weights are; or the weights of the fittest
    networks, which are copied and mutated."""
    population: Integer = flag(
        None, feedback=DivisorOf(16, "images"), activations=512, weights=1024, genetic=256
    )
    """Members a generation; for feedback and activations, at each layer."""
    group: Integer = flag(None, activations=8, weights=DivisorOf(256, "population"))
    """Members that see the same images, and are compared with each other. With --strategy weights
    it may be all of them."""
    sigma: Float = flag(None, feedback=0.1, activations=0.1, weights=0.005, genetic=0.01)
    """Size of a perturbation of a weight; of an activation, by its root mean square."""
    fitness: Literal["cross-entropy", "accuracy"] = flag("cross-entropy")
    """What members are rated for: minus cross-entropy, or being right."""
    shift: Annotated[int | None, metavar("PIXELS")] = flag(
        None, feedback=2, activations=2, weights=0, genetic=0
    )
    """Training images are moved by up to so many pixels, another way each time."""
    seconds: Seconds = flag(None, role="limit")
    """Time limit in seconds. 120 if there is no --generations either."""
    generations: Integer = flag(None, role="limit", check=ranges.generation_number)
    """Limit of generations; whichever limit comes first ends the run."""
    measure_every: Annotated[float, metavar("SECONDS")] = flag(10.0, role="limit")
    """Seconds between two measurements on held-out images; there is always one at the end."""
    validation: int = flag(0)
    """Training images to take out and to measure on, in place of the test images: for the search
    for settings. They are called test images all the same."""
    seed: int = flag(0)
    """Decides the first weights, the noise and the order of the images."""
    threads: Integer = flag(None, found=torch.get_num_threads, check=ranges.require_threads)
    """Processor threads; all cores by default."""
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto")
    """Floating-point dtype of the members' convolutions; auto is bfloat16 on a processor with AMX
    or AVX512-BF16."""
    memory: Annotated[int | None, metavar("BYTES")] = flag(
        None, role="place", found=default_budget, check=ranges.at_least_one
    )
    """Bytes that an evaluation may take; half of what is free at the start by default. Workers on
    this machine share it."""
    evolution_strategy: EvolutionStrategy = section(EvolutionStrategy)
    activations: Activations = section(Activations)
    feedback: Feedback = section(Feedback)
    networks: Networks = section(Networks)
    weights: Weights = section(Weights)
    genetic: Genetic = section(Genetic)
    growing: Growing = section(Growing)
    worker: Workers = section(Workers)
    output: Output = section(Output)
