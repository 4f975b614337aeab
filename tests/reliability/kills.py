"""Runs that are killed at random moments and resumed until they are done.

    python tests/reliability/kills.py --kills 200

A run is killed with SIGKILL after a random time, or by itself at a chosen step of its writing:
with half of a file written, before and after fsync, before and after the rename. After every kill
all checkpoints are whole; after every resume no more than the generation that was under way is
computed again; at the end the metrics have each generation once and the centre is that of a run
that nobody touched, to the last bit. Ends with exit code 1 where something of this is not so.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from commands import TINY, quiet, write_digits

from tinkering.cli import main
from tinkering.runs import checkpoint, folder
from tinkering.strategies.evolution_strategy import EvolutionState
from tinkering.tasks.classification import Classification

GENERATIONS = 8
LAST = ("predictions.safetensors",)
FLAGS = {
    "feedback": [],
    "activations": ["--strategy", "activations"],
    "weights": ["--strategy", "weights", "--sigma", "0.02"],
}
MOMENTS = (
    "half a line written",
    "after a line",
    "half a file written",
    "before fsync",
    "after fsync",
    "before rename",
    "after rename",
    "before an old one goes",
)


class Killer:
    """Kills its process at the n-th step of a kind; where n is 0 it only watches."""

    def __init__(self, moment, n, started):
        self.moment, self.n, self.started = moment, n, started
        self.write = os.write

    def reach(self, moment, before=lambda: None):
        """Die here if this is the step; `before` is what is still done of it."""
        if moment != self.moment:
            return
        self.n -= 1
        if not self.n:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self):
        self.around_write()
        self.around_open()
        for owner, name, kind in ((os, "fsync", "fsync"), (Path, "replace", "rename")):
            self.around(owner, name, f"before {kind}", f"after {kind}")
        self.around(Path, "unlink", "before an old one goes", "")
        self.note_starts(Classification)

    def around(self, owner, name, before, after):
        real = getattr(owner, name)

        def call(*words, **more):
            self.reach(before)
            done = real(*words, **more)
            self.reach(after)
            return done

        setattr(owner, name, call)

    def around_write(self):
        def call(descriptor, content):
            half = content[: len(content) // 2]
            self.reach("half a line written", lambda: self.write(descriptor, half))
            done = self.write(descriptor, content)
            self.reach("after a line")
            return done

        os.write = call

    def around_open(self):
        real = Path.open

        def call(path, mode="r", *words, **more):
            file = real(path, mode, *words, **more)
            return Half(file, self) if mode == "wb" else file

        Path.open = call

    def note_starts(self, task):
        """Note that a generation is begun, where no kill reaches."""
        real = task.evaluate

        def call(this, population, generation):
            descriptor = os.open(self.started, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self.write(descriptor, f"{generation}\n".encode())
            os.close(descriptor)
            return real(this, population, generation)

        task.evaluate = call


class Half:
    """A file that may be killed with half of its content written."""

    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        def half():
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        self.killer.reach("half a file written", half)
        return self.file.write(content)


def fork(words, killer, log):
    """Start the command in a copy of this process, which is warm."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        killer.install()
        code = main([str(word) for word in words])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child, until=None):
    """Wait for a process, or kill it at a time; return its signal and its exit code."""
    while True:
        process, status = os.waitpid(child, os.WNOHANG if until else 0)
        if process:
            killed = os.WIFSIGNALED(status)
            return (os.WTERMSIG(status) if killed else 0), os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = None
        else:
            time.sleep(0.002)


def numbers(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def whole_checkpoints(out):
    """The generations of the checkpoints, all of which can be read."""
    like = EvolutionState(0, {}, {}, {})
    known = checkpoint.classes_of(checkpoint.Checkpoint(checkpoint.Progress(), like))
    known |= checkpoint.classes_of(like)
    paths = sorted((out / checkpoint.FOLDER).glob("*.safetensors"))
    return [checkpoint.decode(path, known).progress.generation for path in paths]


class Survivor:
    """A run that is killed and resumed until it is done."""

    def __init__(self, place, digits, name, seconds, chance):
        self.out, self.started, self.log = place / "run", place / "started", place / "log"
        self.chance, self.seconds = chance, seconds
        self.begin = [
            "evolve",
            "--data",
            digits,
            "--width",
            "2",
            "--population",
            "8",
            "--no-report",
        ]
        self.begin += ["--generations", GENERATIONS, "--threads", "1", "--out", self.out]
        self.begin += FLAGS[name]
        self.kills, self.again = Counter(), Counter()

    def live(self, most):
        """Go on until the run is done; after so many kills nobody kills it any more."""
        while True:
            begun = (self.out / folder.CONFIG).exists()
            if all((self.out / name).exists() for name in LAST):
                return  # killed when all was done
            words = ["evolve", "--resume", self.out] if begun else self.begin
            moment, n, until = self._fate(sum(self.kills.values()) < most)
            before = len(numbers(self.started))
            stood = max(whole_checkpoints(self.out), default=0)
            over = max(self._lines(), default=0)
            assert over - stood <= 1, f"{over - stood} generations are computed again"
            child = fork(words, Killer(moment, n, self.started), self.log)
            number, code = ended(child, until)
            assert number in (0, signal.SIGKILL), f"signal {number}"
            starts = numbers(self.started)[before:]
            if starts:
                assert starts[0] == stood, f"went on at {starts[0]} from {stood}"
                self.again[over - stood] += begun
            if not number:
                assert code == 0, self.log.read_text()
                return
            self.kills[moment or "at any time"] += 1

    def _lines(self):
        """The generations that are over: those that have a whole line."""
        metrics = self.out / folder.METRICS
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        return [json.loads(line)["generation"] for line in lines if line.endswith(b"\n")]

    def _fate(self, mortal):
        if not mortal:
            return "", 0, None
        if self.chance.random() < 0.4:
            return "", 0, time.monotonic() + self.chance.uniform(0, self.seconds)
        moment = self.chance.choice(MOMENTS)
        # Files have more steps than lines: a checkpoint's, and its folder's.
        most = GENERATIONS // 2 if "line" in moment or "old" in moment else 2 * GENERATIONS
        return moment, self.chance.randint(1, most), None

    def come_to(self):
        """What the run came to; its files are whole."""
        lines = (self.out / folder.METRICS).read_text().splitlines()
        found = [json.loads(line)["generation"] for line in lines]
        assert found == [*range(1, GENERATIONS + 1)], f"metrics of generations {found}"
        parts = [path for path in self.out.rglob("*.part") if path.parent.name == "checkpoints"]
        assert not parts, parts
        model = (self.out / folder.MODEL).read_bytes()
        return json.loads((self.out / folder.SUMMARY).read_text())["centre_sha256"], model


def survive(kills, seed=0, names=tuple(FLAGS)):
    """Kill runs so many times; return how often at which moment, and how much was done again."""
    chance = random.Random(seed)
    died, again, runs = Counter(), Counter(), 0
    with tempfile.TemporaryDirectory() as where:
        place = Path(where)
        digits = write_digits(place / "digits")
        expected, seconds = {}, 0.0
        for name in names:
            # What is loaded and compiled on the way is there in every copy of this process.
            words = ["evolve", "--data", digits, *TINY, "--generations", "1", *FLAGS[name]]
            assert quiet([*words, "--out", place / f"warm {name}"])[0] == 0
            (place / name).mkdir()
            start = time.monotonic()
            undisturbed = Survivor(place / name, digits, name, 0.0, chance)
            undisturbed.live(0)
            seconds = max(seconds, time.monotonic() - start)
            expected[name] = undisturbed.come_to()
        while sum(died.values()) < kills:
            name = names[runs % len(names)]
            (place / str(runs)).mkdir()
            run = Survivor(place / str(runs), digits, name, seconds, chance)
            run.live(min(10, kills - sum(died.values())))
            assert run.come_to() == expected[name], f"run {runs} ended elsewhere"
            died, again, runs = died + run.kills, again + run.again, runs + 1
    return died, again, runs


def report(died, again, runs):
    lines = [f"{'killed':<24}{'times':>6}"]
    lines += [f"{moment:<24}{died[moment]:>6}" for moment in ("at any time", *MOMENTS)]
    lines += [
        f"{'all':<24}{sum(died.values()):>6}",
        f"runs: {runs}, all with the centre of a run that nobody touched",
        "checkpoints that could not be read: 0",
        f"generations computed again after a kill: at most {max(again, default=0)}",
        "metrics torn or doubled: 0",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", choices=[*FLAGS], default=[*FLAGS])
    given = parser.parse_args()
    print(report(*survive(given.kills, given.seed, given.strategies)))  # noqa: T201
