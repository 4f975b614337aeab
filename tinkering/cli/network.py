"""The network of a run: from settings to a module, and back from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinkering.errors import ArgumentError, RunFolderError
from tinkering.models import BasicBlock, SimpleResNet
from tinkering.runs import folder


def build(settings: Mapping[str, Any]) -> SimpleResNet:
    """Return the `SimpleResNet` of ``{"blocks": [...], "width": ..., "classes": ...}``."""
    return SimpleResNet(
        BasicBlock, settings["blocks"], num_classes=settings["classes"], width=settings["width"]
    )


def initialise(settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the network with PyTorch's default initialisation, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(settings)


def load(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a run folder in eval mode, and the folder's settings.

    Raises:
        RunFolderError: a file is missing or cannot be used.
    """
    settings = folder.read_json(run / folder.CONFIG)
    tensors = folder.load_model(run / folder.MODEL)
    described = f"the parameters that {folder.CONFIG} describes"
    try:
        shape = settings["network"]
        if sum(map(abs, shape["blocks"])) > len(tensors):
            raise RunFolderError(run / folder.MODEL, described, f"{len(tensors)} tensors")
        # Without memory: a file that was tampered with may describe a network of any size.
        with torch.device("meta"):
            model = build(shape)
        _ = settings["data"], settings["pixels"]["mean"], settings["pixels"]["std"]
    except (KeyError, TypeError, ArgumentError, OverflowError, RuntimeError) as error:
        raise RunFolderError(
            run / folder.CONFIG, "the settings of a run", f"no usable {error}"
        ) from error
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            found = f"{name} in {tensors[name].dtype}"
            raise RunFolderError(run / folder.MODEL, f"{name} in {value.dtype}", found)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise RunFolderError(run / folder.MODEL, described, str(error)) from error
    return model.eval(), settings
