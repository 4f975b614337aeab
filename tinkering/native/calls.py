"""The kernels that work on images, by name, and what they are handed.

All tensors are on the CPU. Pixels are dense and their channels lie beside each other:
``[images, height, width, channels]`` in memory, whatever the axes are called. Noise is float32
with a row a pair, and rows may have gaps between them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinkering.native.build import library

_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
pointer = ctypes.c_void_p
size = ctypes.c_int64


def available(x: Tensor) -> bool:
    """Return whether the kernels can work on a tensor."""
    return x.device.type == "cpu" and x.dtype in _NAMES and library() is not None


def kernel(name: str, dtype: torch.dtype) -> Any:
    """Return a kernel for tensors of a dtype."""
    return _functions()[f"{name}_{_NAMES[dtype]}"]


def convolves() -> Any:
    """Return what says which layers the kernel "convolve" does."""
    return _functions()["convolves"]


@cache
def _functions() -> dict[str, Any]:
    """Return the kernels by name, with the types of their arguments."""
    kernels = library()
    if kernels is None:
        raise RuntimeError("ask available() first")
    types = {
        "correct": [*[pointer] * 8, size],
        "depthwise": [*[pointer] * 9, size],
        "affine": [*[pointer] * 6, size, size, ctypes.c_int32],
        "layer_norm": [*[pointer] * 5, size, size, ctypes.c_int32, ctypes.c_float],
    }
    named = {
        f"{kernel}_{dtype}": arguments
        for kernel, arguments in types.items()
        for dtype in _NAMES.values()
    }
    named["convolve_bfloat16"] = [*[pointer] * 9, size]
    functions = {}
    for name, arguments in named.items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, None
        functions[name] = function
    kernels.convolves.argtypes, kernels.convolves.restype = [pointer], ctypes.c_int32
    return functions | {"convolves": kernels.convolves}


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's numbers begin; None for none."""
    return None if tensor is None else tensor.data_ptr()


def stride(rows: Tensor | None) -> int:
    """Return how many numbers lie from row to row; 0 for none."""
    return 0 if rows is None else rows.stride(0)
