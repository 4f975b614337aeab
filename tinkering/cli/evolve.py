"""``tinkering evolve``: the flags of a run, and the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from tinkering import data
from tinkering.cli import network, ranges, resume, settings, workers
from tinkering.cli.display import RunDisplay
from tinkering.cli.ending import conclude, hint
from tinkering.cli.recipes import RECIPES
from tinkering.data import Dataset
from tinkering.distributed.evaluator import RayEvaluator
from tinkering.evaluation.batchnorm import norm_scales
from tinkering.runs import folder
from tinkering.runs.checkpoint import Checkpoint, Checkpoints, Progress
from tinkering.runs.events import EventFile
from tinkering.runs.evolve import Limits, Outcome, Record, evolve
from tinkering.runs.predictions import PREDICTIONS
from tinkering.runs.recorder import Recorder
from tinkering.runs.report import REPORT
from tinkering.runs.watch import ADVICE

_LAST = (PREDICTIONS, REPORT)
"""What a run writes last: where they are, it had come to its end."""


@dataclass(frozen=True)
class Evolve:
    """Evolve a small ResNet on labelled images, from scratch and without gradients."""

    data: str = data.DEFAULT
    """Data set: a name from `tinkering data list`, or idx:FOLDER."""
    width: int = 8
    """Channels of the first of the four stages; the others have 2, 4 and 8 times as many."""
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks in each stage."""
    strategy: Literal["activations", "weights", "genetic"] = "activations"
    """What is perturbed: activations, which learns faster, or weights, whose members are networks
    of their own; or genetic, whose fittest members have mutated children."""
    population: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Members a generation: 512 at each layer for outputs, 1024 for weights."""
    group: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Members that see the same images, and are compared with each other: 8. With --strategy
    weights it may be all of them."""
    sigma: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Size of a perturbation: 0.1 of the size of what a layer puts out, or 0.005 on a weight."""
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Adam's step, about the change of a parameter in a generation: 0.004, and less by as much as
    the network is wider than 8."""
    decay: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Generations until the step begins to shrink, as 1 / sqrt(1 + generation / decay): 200 for
    outputs, 100 for weights."""
    averaging: float = 0.98
    """Weight of the past in the running average of the centre, 0 to below 1."""
    fitness: Literal["cross-entropy", "accuracy"] = "cross-entropy"
    """What members are rated for: minus cross-entropy, or being right."""
    blur: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Outputs only: standard deviation of noise on a member's logits when it is rated, which makes
    a slope of the step from wrong to right: 0, or 2 for accuracy."""
    readings: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Outputs only: times that a member's logits are rated, each with other noise: 1, or 1024 for
    accuracy."""
    images: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Images that a member sees in a generation: 1 for weights; 64 for genetic, the same for all
    members. Not for activations, whose members see one each."""
    parents: int = 16
    """Genetic only: fittest members, whose children are the next generation."""
    elites: int = 1
    """Genetic only: parents that are handed on as they are, and evaluated anew."""
    antithetic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Weights only: members come in pairs of opposite noise; needs --group 2."""
    rank: int = 1
    """Weights only: rank of the noise; higher is closer to plain Gaussian noise, and slower."""
    shaping: Annotated[
        Literal["raw", "relative", "z-score", "rank", "sign"] | None,
        tyro.conf.arg(metavar="{raw,relative,z-score,rank,sign}"),
    ] = None
    """How the differences of fitness are scaled: raw for outputs, or relative to the fitness of the
    image's members for outputs and accuracy; z-score for weights, or raw, rank or sign."""
    statistics: Literal["fixed", "renewed"] = "fixed"
    """Weights only: BatchNorm's mean and variance, from the start or from each generation."""
    shift: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Training images are moved by up to so many pixels, another way each time: 2 for outputs, 0
    for weights."""
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
    """Numbers in the members' convolutions; auto is bfloat16 on a processor with
    AMX or AVX512-BF16."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The run folder, new or empty; runs/DATA-wWIDTH-sSEED-TIME by default."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write TensorBoard's event files into the run folder as well; needs
    tinkering[tensorboard]."""
    report: bool = True
    """Draw report.html and its pictures at the end; `tinkering report` draws them later."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Go on with the run in this folder, as if it had never ended. Its settings are its own;
    --seconds and --generations may be given anew, counted from the run's start."""
    checkpoint_every: int = 1
    """Generations between two checkpoints. At each end there is one as well."""
    keep_checkpoints: int = 3
    """Checkpoints to keep: older ones help where the newest is damaged."""
    if_disk_full: Literal["end", "go-on"] = "end"
    """What to do when nothing can be written: end the run, or go on and hope for room."""
    memory: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """Bytes that an evaluation may take; half of what is free at the start by default. Workers on
    this machine share it."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Processes that evaluate, in place of this one; needs tinkering[ray]. With --threads 1 the
    run's numbers are the same for any number of them."""
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """A Ray cluster whose workers evaluate, such as 10.0.0.1:6379, or auto for the one on this
    machine; as many as it has CPUs for, unless --workers says otherwise."""
    gpus_per_worker: Annotated[float, tyro.conf.arg(metavar="NUMBER")] = 0.0
    """GPUs that Ray reserves for each worker; a fraction shares one."""
    threads_per_worker: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Processor threads of each worker; by default workers on this machine share --threads, and
    those of a cluster have one each."""
    worker_timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """Seconds without an answer after which a worker is replaced."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show where in the program a mistake was met."""

    def run(self, console: Console) -> int:
        """Evolve with a progress bar, and leave a run folder."""
        # Of a run that goes on, what is said of a flag is said of the file that it is from.
        with nullcontext() if self.resume is None else resume.values_of(self.resume):
            run = self._prepared(console)
        out = run.out
        if self.resume is None:
            folder.create(out)
        with folder.locked(out):
            return run.resume() if self.resume is not None else run.begin()

    def _prepared(self, console: Console) -> _Run:
        """Return the run, once its flags were found to be in range."""
        ranges.require_threads("threads", self.threads)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        dataset = settings.with_validation(data.load(self.data), self.validation)
        flags = settings.resolve(asdict(self), dataset)
        limits = Limits(flags["seconds"], flags["generations"], flags["measure_every"])
        ranges.require(flags, dataset)
        return _Run(console, flags, dataset, limits)


class _Run:
    """A run with its folder, whose lock is held."""

    def __init__(
        self, console: Console, flags: dict[str, Any], dataset: Dataset, limits: Limits
    ) -> None:
        self._console, self._flags, self._limits = console, flags, limits
        self.out = Path(flags["out"])
        self._warned: set[str] = set()
        self._dataset = dataset
        self._settings = settings.described(flags, dataset)
        self._recipe = RECIPES[flags["strategy"]]
        self._strategy = self._recipe.strategy(flags)
        self._model = network.initialise(self._settings["network"], flags["seed"])
        self._events = EventFile(self.out) if flags["tensorboard"] else None
        self._task = self._recipe.task(flags, self._model, dataset)
        fixed = norm_scales(self._model)
        evolving = {n: p.detach() for n, p in self._model.named_parameters() if n not in fixed}
        self._start = self._strategy.init(evolving)
        self._checkpoints: Checkpoints[Any] = Checkpoints(
            self.out, self._start, flags["keep_checkpoints"]
        )
        # Refuses what cannot work before anything is written.
        plan = self._task.plan(self._strategy.ask(self._start))
        self._settings = {**self._settings, "plan": str(plan)}

    def begin(self) -> int:
        """Run from the first generation on."""
        with self._evaluator() as evaluator:
            folder.write_json(self.out / folder.CONFIG, self._settings)
            return self._go(Checkpoint(Progress(), self._start), evaluator)

    def resume(self) -> int:
        """Run on from the newest checkpoint."""
        config = self.out / folder.CONFIG
        before = folder.read_json(config)
        resume.require_same_data(before, self._settings["data_sha256"])
        for note in resume.notes(config, before, self._settings):
            self._say(note)
        if before.get("plan") != self._settings["plan"]:
            self._say("it is evaluated in other portions than before; see plan in config.json")
        found = self._checkpoints.newest(self._say) or Checkpoint(Progress(), self._start)
        place = self._checkpoints.path(found.progress.generation)
        resume.require_of_this_network(self._start, found.state, place)
        resume.require_not_passed(before, self._limits, found.progress)
        last = _LAST if self._flags["report"] else (PREDICTIONS,)
        if all((self.out / name).exists() for name in last):
            resume.require_something_left(self._limits, found.progress)
        with self._evaluator() as evaluator:  # before the folder is touched
            self._rewind(before, found.progress)
            return self._go(found, evaluator)

    def _rewind(self, before: dict[str, Any], progress: Progress) -> None:
        """Have the folder hold what it held when the run stood there."""
        self._checkpoints.tidy()
        for name in (*_LAST, folder.SUMMARY):  # of where it stood before
            (self.out / name).unlink(missing_ok=True)
        lines = folder.trim_metrics(self.out / folder.METRICS, progress.generation)
        if lines < progress.generation:
            self._say(f"{folder.METRICS} has lost {progress.generation - lines:,} generations")
        kept = ("versions", "processor", "plan", "command")  # those that it was begun with
        was = {name: before[name] for name in kept if name in before}
        folder.write_json(self.out / folder.CONFIG, {**self._settings, **was})
        self._console.print(
            f"resumed after generation {progress.generation:,}, {progress.seconds:.0f} s",
            soft_wrap=True,
        )

    def _go(self, at: Checkpoint[Any], evaluator: Any) -> int:
        self._print_what_runs()
        flags = self._flags
        recorder = Recorder(
            self.out,
            self._checkpoints,
            flags["checkpoint_every"],
            flags["if_disk_full"] == "go-on",
            self._say,
        )
        try:
            with ExitStack() as stack:
                display = stack.enter_context(RunDisplay(self._console, self._limits))
                callbacks: list[Callable[[Record], None]] = [
                    recorder.record,
                    display.show,
                    self._warn,
                ]
                if isinstance(evaluator, RayEvaluator):
                    callbacks.insert(0, lambda record: record.update(evaluator.exchange()))
                if self._events is not None:
                    callbacks.append(stack.enter_context(self._events).write)
                outcome = evolve(
                    self._strategy,
                    at.state,
                    evaluator,
                    self._limits,
                    callbacks,
                    at.progress,
                    recorder.keep,
                )
            recorder.finish()
            if isinstance(evaluator, RayEvaluator) and evaluator.exchange():
                said = workers.summary(evaluator.exchange(), evaluator.lost)
                self._console.print(said, soft_wrap=True)
            return self._conclude(outcome)
        except BaseException:
            self._console.print(hint(self.out), soft_wrap=True)
            raise
        finally:
            recorder.close()

    @contextmanager
    def _evaluator(self) -> Iterator[Any]:
        """Give who evaluates: this process, or workers."""
        if not workers.are_asked_for(self._flags):
            yield self._task
            return
        self._console.print("starting workers ...", soft_wrap=True)
        shape, sha256 = self._settings["network"], self._settings["data_sha256"]
        with workers.evaluator(self._flags, shape, sha256, self._task, self._say) as evaluator:
            said = f"workers: {evaluator.workers:,}, threads of each: {evaluator.threads}"
            self._console.print(said, soft_wrap=True)
            yield evaluator

    def _conclude(self, outcome: Outcome[Any]) -> int:
        centre = self._strategy.centre(outcome.state)
        tensors = {**self._model.state_dict(), **centre, **self._task.buffers(centre)}
        return conclude(
            self._console, self.out, outcome, self._model, tensors, self._dataset, self._settings
        )

    def _print_what_runs(self) -> None:
        dataset, flags = self._dataset, self._flags
        self._console.print(
            f"{dataset.name}: {len(dataset.train):,} training images, {len(dataset.test):,} held "
            f"out, {len(dataset.classes)} classes\n"
            f"network: {sum(p.numel() for p in self._model.parameters()):,} parameters; "
            f"{self._recipe.members(flags)}; {flags['threads']} threads, {flags['dtype']}",
            soft_wrap=True,
        )

    def _warn(self, record: Record) -> None:
        """Say what went wrong and what to try, the first time that it does."""
        for trouble in record.get("troubles", []):
            if trouble not in self._warned:
                self._warned.add(trouble)
                self._say(f"generation {record['generation']:,}, {trouble}. {ADVICE[trouble]}")

    def _say(self, what: str) -> None:
        self._console.print(f"note: {what}", soft_wrap=True)
