"""``tinkering evolve``: a run, from its flags to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tinkering import data
from tinkering.cli import checks, growing, network, ranges, resume, settings, workers
from tinkering.cli.display import RunDisplay
from tinkering.cli.ending import conclude, hint
from tinkering.cli.flag import values
from tinkering.cli.flags import Flags
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
class Evolve(Flags):
    """Evolve a small ResNet on labelled images, from scratch and without gradients."""

    def run(self, console: Console) -> int:
        """Evolve with a progress bar, and leave a run folder."""
        before = self.output.resume
        # Of a run that goes on, what is said of a flag is said of the file that it is from.
        with nullcontext() if before is None else resume.values_of(before):
            run = self._prepared(console)
        if before is None:
            folder.create(run.out)
        with folder.locked(run.out):
            return run.begin() if before is None else run.resume()

    def _prepared(self, console: Console) -> _Run:
        """Return the run, once its flags were found to be in range."""
        ranges.require_threads("threads", self.threads)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        dataset = settings.with_validation(data.load(self.data), self.validation)
        flags = settings.resolve(values(self), dataset)
        limits = Limits(flags["seconds"], flags["generations"], flags["measure_every"])
        checks.require(flags, dataset)
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
        shape = self._settings["network"]
        self._strategy = growing.strategy(flags, shape)
        first = growing.model(flags, shape, growing.width(flags, 0))
        self._events = EventFile(self.out) if flags["tensorboard"] else None
        self._task = growing.task(flags, shape, dataset)
        fixed = norm_scales(first)
        evolving = {n: p.detach() for n, p in first.named_parameters() if n not in fixed}
        self._start = self._strategy.init(evolving)
        self._checkpoints: Checkpoints[Any] = Checkpoints(
            self.out, self._start, flags["keep_checkpoints"]
        )
        # Refuses what cannot work before anything is written.
        widest = growing.advanced(self._strategy, self._start, growing.until_widest(flags))
        plan = self._task.plan(self._strategy.ask(widest))
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
        start = growing.advanced(self._strategy, self._start, found.progress.generation)
        resume.require_of_this_network(start, found.state, place)
        with resume.state_of(place):
            self._task.plan(self._strategy.ask(found.state))
        resume.require_not_passed(before, self._limits, found.progress)
        last = _LAST if self._flags["report"] else (PREDICTIONS,)
        if all((self.out / name).exists() for name in last):
            left = resume.what_would_be_left(self._limits, found.progress)
            if left is not None:
                self._console.print(f"{self.out} is complete, {left}.", soft_wrap=True)
                return 0
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
                if flags["grow_from"] is not None:
                    callbacks.insert(0, self._say_width)
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
        width, last = network.width_of(centre), self._flags["width"]
        if width < last:
            self._say(f"it ended before it had grown: the network has width {width:,} of {last:,}")
        model = growing.model(self._flags, self._settings["network"], width)
        tensors = {**model.state_dict(), **centre, **self._task.buffers(centre)}
        return conclude(
            self._console, self.out, outcome, model, tensors, self._dataset, self._settings
        )

    def _print_what_runs(self) -> None:
        dataset, flags = self._dataset, self._flags
        self._console.print(
            f"{dataset.name}: {len(dataset.train):,} training images, {len(dataset.test):,} held "
            f"out, {len(dataset.classes)} classes\n"
            f"network: {self._network_in_words()}; "
            f"{self._recipe.members(flags)}; {flags['threads']} threads, {flags['dtype']}",
            soft_wrap=True,
        )

    def _network_in_words(self) -> str:
        """Return how many parameters it has, or will have."""
        flags = self._flags
        counts = [
            network.count_parameters(flags["blocks"], width, len(self._dataset.classes))
            for width in network.widths(flags)
        ]
        last = f"{counts[-1]:,} parameters"
        return f"{counts[0]:,}, and in the end {last}" if len(counts) > 1 else last

    def _warn(self, record: Record) -> None:
        """Say what went wrong and what to try, the first time that it does."""
        for trouble in record.get("troubles", []):
            if trouble not in self._warned:
                self._warned.add(trouble)
                self._say(f"generation {record['generation']:,}, {trouble}. {ADVICE[trouble]}")

    def _say_width(self, record: Record) -> None:
        """Have the record of a generation say how wide its network was."""
        record["width"] = growing.width(self._flags, record["generation"] - 1)

    def _say(self, what: str) -> None:
        self._console.print(f"note: {what}", soft_wrap=True)
