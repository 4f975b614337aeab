"""The network of a run: from settings to a module, and back from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinkering.errors import RunFolderError
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
    try:
        model = build(settings["network"])
        _ = settings["data"], settings["pixels"]["mean"], settings["pixels"]["std"]
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            run / folder.CONFIG, "the settings of a run", f"no usable {error}"
        ) from error
    try:
        model.load_state_dict(folder.load_model(run / folder.MODEL))
    except RuntimeError as error:
        raise RunFolderError(
            run / folder.MODEL, f"the parameters that {folder.CONFIG} describes", str(error)
        ) from error
    return model.eval(), settings
