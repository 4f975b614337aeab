"""Builds the kernels once a machine, and loads them.

The file is compiled for the processor it runs on and kept in the user's cache folder, under
a name made of everything that it depends on. Where there is no compiler, or the build goes
wrong, the callers' plain PyTorch forms serve, and one line says so.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).parent / "kernels.cpp"
"""What it includes lies beside it."""
_FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno"]
_OFF = ("0", "off", "false", "no")
_DIGEST_SIZE = 16
_log = logging.getLogger("tinkering")


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had; says once why not.

    The environment variable ``TINKERING_NATIVE=0`` turns them off.
    """
    if os.environ.get("TINKERING_NATIVE", "").lower() in _OFF:
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        first = str(reason).strip().splitlines()[:1]
        _log.warning(
            "Slower, plain PyTorch forms are used, because the C++ kernels could not be built: "
            "%s. Install g++ or clang++, or set TINKERING_NATIVE=0 to be silent.",
            *(first or ["no reason given"]),
        )
        return None


def _built() -> Path:
    """Return the library's path, after compiling it where this has not been done."""
    compiler = os.environ.get("CXX") or next(
        (found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None
    )
    if compiler is None:
        raise FileNotFoundError("no C++ compiler was found")
    command = [*compiler.split(), *_FLAGS, str(_SOURCE)]
    target = _folder() / f"kernels-{_fingerprint(command)}.so"
    if not _is_whole(target):
        # Beside the target and renamed: another process may be building the same file.
        handle, part = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        try:
            _said([*command, "-o", part], timeout=300)
            code = Path(part).read_bytes()
            Path(part).write_bytes(code + _digest(code))
            Path(part).replace(target)
        finally:
            Path(part).unlink(missing_ok=True)
    return target


def _is_whole(target: Path) -> bool:
    """Return whether a library is as it was built: loading half of one would end the process."""
    try:
        content = target.read_bytes()
    except OSError:
        return False
    code, digest = content[:-_DIGEST_SIZE], content[-_DIGEST_SIZE:]
    return digest == _digest(code)


def _digest(code: bytes) -> bytes:
    """Return what stands behind a library's code in its file."""
    return hashlib.blake2b(code, digest_size=_DIGEST_SIZE).digest()


def _folder() -> Path:
    """Return a folder to keep the library in: the user's cache, else one for this process."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinkering"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not writable, or a user without a home
        pass
    own = tempfile.mkdtemp(prefix="tinkering-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _fingerprint(command: list[str]) -> str:
    """Return a digest of what the library is made from, by, and for."""
    version = _said([command[0], "--version"], timeout=60)
    sources = [_SOURCE, *sorted(_SOURCE.parent.glob("*.h"))]
    texts = [source.read_text("utf-8") for source in sources]
    parts = [*texts, " ".join(command), version, _processor()]
    content = "\0".join(parts).encode(errors="backslashreplace")
    return hashlib.blake2b(content, digest_size=10).hexdigest()


def _said(command: list[str], timeout: int) -> str:
    """Return what a program prints; it speaks the user's language, in whichever encoding."""
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=timeout,
    )
    return done.stdout


def _processor() -> str:
    """Return what tells one kind of processor from another."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "backslashreplace").splitlines()
    except OSError:  # another system: what Python knows
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
