"""Run folders made up for the tests of the report: of any shape, in no time."""

import json

import numpy as np
from safetensors.numpy import save_file

from tinkering.runs import folder
from tinkering.runs.predictions import (
    PREDICTIONS,
    Predictions,
    gravest_mistakes,
    save_predictions,
)

CONFIG = {
    "data": "mnist5k",
    "width": 4,
    "blocks": [1, 1, 1, 1],
    "seconds": 30.0,
    "generations": None,
    "seed": 0,
    "out": "runs/a",
    "tensorboard": False,
    "not_compared": ["out", "tensorboard"],
    "command": "tinkering evolve --data mnist5k --seconds 30.0 --seed 0",
    "network": {"blocks": [1, 1, 1, 1], "width": 4, "classes": 3},
    "classes": ["cat", "dog", "owl"],
    "versions": {"tinkering": "0.1.0", "torch": "2.13.0"},
}


def record_of(g, measured=False):
    """The record of a generation: half a second and 64 forward passes each."""
    return {
        "generation": g,
        "evaluations": 64 * g,
        "seconds": g / 2,
        "fitness_mean": -2.0 / g,
        "fitness_best": -1.0 / g,
        "fitness_low": -3.0 / g,
        "fitness_high": -1.5 / g,
        **({"test_accuracy": min(0.1 + g / 100, 1.0), "test_loss": 1.0} if measured else {}),
    }


def write_metrics(run, generations=9, every=3, without=(), **changes):
    """Write records, measured every so many generations; without some keys, or with others."""
    lines = []
    for g in range(1, generations + 1):
        record = {**record_of(g, measured=bool(every) and g % every == 0), **changes}
        lines.append(json.dumps({k: v for k, v in record.items() if k not in without}))
    (run / folder.METRICS).write_text("".join(f"{line}\n" for line in lines))


def write_predictions(run, labels, predicted, confidence=None):
    """Write predictions whose images are of one grey each, the position in the split."""
    labels, predicted = np.array(labels, np.int32), np.array(predicted, np.int32)
    if confidence is None:
        confidence = np.linspace(0.9, 0.5, len(labels))
    confidence = np.array(confidence, np.float32)
    shown = gravest_mistakes(labels, predicted, confidence)
    images = np.zeros((len(shown), 6, 6), np.uint8) + shown[:, None, None].astype(np.uint8)
    save_predictions(run / PREDICTIONS, Predictions(labels, predicted, confidence, shown, images))


def write_filters(run, filters=4):
    weight = np.linspace(-1, 1, filters * 9, dtype=np.float32).reshape(filters, 1, 3, 3)
    save_file({"conv1.weight": weight}, run / folder.MODEL)


def write_summary(run, generations=9, outcome="seconds"):
    last = record_of(generations, measured=True)
    folder.write_json(
        run / folder.SUMMARY,
        {
            "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"],
            "evaluations": last["evaluations"],
            "seconds": last["seconds"],
            "generations": generations,
            "outcome": outcome,
        },
    )


def write_run(run, generations=9, config=None, **metrics):
    """A finished run of three classes, with two wrong predictions of six."""
    run.mkdir(parents=True, exist_ok=True)
    folder.write_json(run / folder.CONFIG, {**CONFIG, "out": str(run), **(config or {})})
    write_metrics(run, generations, **metrics)
    write_predictions(run, [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0])
    write_filters(run)
    write_summary(run, generations)
    return run
