"""The connection to Ray. This file alone imports it."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from typing import Any

from tinkering.errors import ArgumentError, ClusterError

_STORE = 256 << 20
"""Bytes of shared memory for objects: a centre or two, and results that are numbers."""

_TOKEN = "If it asks for a token, RAY_AUTH_MODE=token is needed here as well."


def import_ray() -> Any:
    """Return the package.

    Raises:
        ArgumentError: (a ``ValueError``) it is not installed.
    """
    # Nothing is reported to anybody unless the user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What becomes of CUDA_VISIBLE_DEVICES where a worker has no GPU: as a coming release does it,
    # and no warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ArgumentError(
            "workers",
            "the package ray",
            "a Python without it",
            "pip install 'tinkering[ray]' installs it.",
        ) from error


def connect(address: str | None, cpus: int, gpus: float) -> bool:
    """Connect to a cluster, or start one on this machine, and return whether that was needed.

    Where this process is connected already, it stays so, whatever the address.

    What is started has no dashboard, listens on 127.0.0.1 only, and lets in who has a token that
    is made for it. (Where Ray was imported before, it is too late for the latter two, and what
    the user or Ray decides holds.)

    Args:
        address: of a cluster, ``"auto"`` for the one on this machine; None to start one.
        cpus: processors of a cluster that is started, whether or not there are as many.
        gpus: that a worker needs; a cluster that is started has this machine's.

    Raises:
        ArgumentError: (a ``ValueError``) Ray is not installed.
        ClusterError: there is no cluster at this address, or none can be started; or this
            machine has not the GPUs.
    """
    if address is None and "ray" not in sys.modules:
        _keep_to_this_machine()
    ray = import_ray()
    if ray.is_initialized():
        return False
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                "local",
                num_cpus=cpus,
                num_gpus=None if gpus else 0,
                include_dashboard=False,
                object_store_memory=_STORE,
                **common,
            )
        else:
            _knock(address)
            ray.init(address, **common)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        needed = "a cluster that starts here" if address is None else f"a cluster at {address}"
        # The system's own errors have a number: then there is nobody who could ask.
        somebody = address is not None and getattr(error, "errno", None) is None
        asks = _TOKEN if somebody and os.environ.get("RAY_AUTH_MODE") != "token" else ""
        raise ClusterError(needed, f"none: {reason}", asks) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray has put its own in the place.
            signal.signal(signal.SIGTERM, terminated or signal.SIG_DFL)
    if address is None and gpus > amount("GPU"):
        found = resources()
        ray.shutdown()
        raise ClusterError(f"a machine with {gpus:g} GPUs for a worker", found)
    return True


def _knock(address: str) -> None:
    """Raise ``OSError`` where nobody listens, which Ray would find out in many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()


def _keep_to_this_machine() -> None:
    """Have a cluster that is started here be for this process alone; Ray reads it when imported."""
    # Named for the systems where it is the default: no cluster of several machines.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if not os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def resources() -> str:
    """Return what the cluster has and what of it is free, in words."""
    ray = import_ray()
    has, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(
        f"{name} {has.get(name, 0):g} ({free.get(name, 0):g} free)"
        for name in ("CPU", "GPU")
        if name in has or name == "CPU"
    )


def amount(kind: str) -> float:
    """Return how many ``"CPU"`` or ``"GPU"`` the cluster has, whether they are free or not."""
    return float(import_ray().cluster_resources().get(kind, 0))
