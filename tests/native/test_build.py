"""The kernels are built once, by whoever comes first, and do without a compiler if need be."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tinkering.native import build

LIBRARY = build.library()
needs_kernels = pytest.mark.skipif(LIBRARY is None, reason="no C++ compiler on this machine")
ADVICE = ". Install g++ or clang++, or set TINKERING_NATIVE=0 to be silent."


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, for a library that is looked for anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINKERING_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    build.library.cache_clear()
    yield tmp_path / "cache" / "tinkering"
    build.library.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A quick compiler, which copies the library of this machine; and the log of its work."""
    log, script = tmp_path / "log", tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo quick 1.0; exit; fi\n'
        f'echo "$@" >> {log}\n'
        "sleep 0.2\n"
        'for last; do :; done; cp "$MADE" "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("CXX", str(script))
    if LIBRARY is not None:
        monkeypatch.setenv("MADE", LIBRARY._name)
    log.touch()
    return log


def runs(log):
    return len(log.read_text().splitlines())


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.usefixtures("cache")
class TestWithoutKernels:
    def test_no_compiler_is_said_once_with_what_to_do(self, monkeypatch, caplog, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.library() is None
        assert build.library() is None
        (line,) = warnings(caplog)
        assert line.endswith(f"could not be built: no C++ compiler was found{ADVICE}")
        assert "\n" not in line

    def test_a_compiler_that_is_not_there(self, monkeypatch, caplog):
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert build.library() is None
        (line,) = warnings(caplog)
        assert "No such file or directory: 'no-such-compiler'" in line
        assert line.endswith(ADVICE)

    def test_a_compiler_that_fails(self, monkeypatch, caplog, tmp_path):
        script = tmp_path / "broken"
        script.write_text(
            '#!/bin/sh\nif [ "$1" = --version ]; then exit; fi\n'
            "echo kernels.cpp: unknown flag >&2; echo more >&2; exit 1\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        assert build.library() is None
        (line,) = warnings(caplog)
        assert line.endswith(f"could not be built: kernels.cpp: unknown flag{ADVICE}")
        assert not list((tmp_path / "cache" / "tinkering").iterdir())

    def test_a_compiler_that_fails_in_another_encoding(self, monkeypatch, caplog, tmp_path):
        script = tmp_path / "broken"
        script.write_bytes(
            b'#!/bin/sh\nif [ "$1" = --version ]; then exit; fi\n'
            b"echo erreur \xe0 la ligne >&2; exit 1\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        assert build.library() is None
        (line,) = warnings(caplog)
        assert line.endswith(f"could not be built: erreur \\xe0 la ligne{ADVICE}")

    @pytest.mark.parametrize("said", ["0", "off", "False", "no"])
    def test_turned_off_it_is_silent(self, monkeypatch, caplog, said):
        monkeypatch.setenv("TINKERING_NATIVE", said)
        monkeypatch.setenv("PATH", "")
        assert build.library() is None
        assert not caplog.records

    def test_a_library_that_is_none(self, monkeypatch, caplog, tmp_path, compiler):
        """The compiler reports no error and makes nonsense."""
        made = tmp_path / "nonsense"
        made.write_text("no library")
        monkeypatch.setenv("MADE", str(made))
        assert build.library() is None
        (line,) = warnings(caplog)
        assert line.endswith(ADVICE)
        assert runs(compiler) == 1


@needs_kernels
class TestCache:
    def test_one_build_serves_later_processes(self, cache, compiler):
        first = build.library()
        build.library.cache_clear()
        second = build.library()
        assert first._name == second._name
        assert Path(first._name).parent == cache
        assert runs(compiler) == 1
        assert [path.name for path in cache.iterdir()] == [Path(first._name).name]

    def test_what_comes_of_it_computes(self, cache, compiler):
        loaded = build.library()
        assert cache.is_dir()
        assert runs(compiler) == 1
        table, out = (ctypes.c_float * 65536)(*range(65536)), (ctypes.c_float * 16)()
        word, pointer, one, none = ctypes.c_uint64, ctypes.c_void_p, *map(ctypes.c_uint64, (1, 0))
        stretches = [pointer, pointer, word, pointer]  # keys, firsts, generation, blocks
        loaded.normals.argtypes = [ctypes.c_int64, word, *stretches, pointer, pointer]
        outs = (ctypes.c_void_p * 1)(ctypes.addressof(out))
        loaded.normals(
            1, 0, ctypes.byref(none), ctypes.byref(none), 0, ctypes.byref(one), table, outs
        )
        assert len(set(out)) > 10

    @pytest.mark.parametrize("left", [0, 10, 100, 1000, 0.5, 0.99])
    def test_a_broken_file_is_built_anew(self, cache, compiler, caplog, left):
        """Loading a library that ends too early would end the process."""
        path = Path(build.library()._name)
        whole = path.read_bytes()
        path.unlink()  # in use: what is loaded stays as it is
        path.write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
        build.library.cache_clear()
        assert build.library() is not None
        assert path.read_bytes() == whole
        assert runs(compiler) == 2
        assert len(list(cache.iterdir())) == 1
        assert not caplog.records

    def test_a_changed_byte_is_seen(self, cache, compiler):
        path = Path(build.library()._name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)
        assert build._built() == path
        assert runs(compiler) == 2
        assert cache.is_dir()

    def test_a_folder_that_cannot_be_written_to(self, monkeypatch, tmp_path, compiler):
        blocked, elsewhere = tmp_path / "file", tmp_path / "elsewhere"
        blocked.write_text("in the way")
        elsewhere.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
        monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
        build.library.cache_clear()
        try:
            loaded = build.library()
        finally:
            build.library.cache_clear()
        assert Path(loaded._name).parent.parent == elsewhere
        assert runs(compiler) == 1

    def test_a_folder_of_someone_else(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(build.os, "access", lambda *_: False)
        folder = build._folder()
        assert folder.is_dir()
        assert tmp_path not in folder.parents
        folder.rmdir()

    def test_two_processes_at_once(self, cache, compiler):
        """Both find nothing, and both build; whoever is last leaves the file."""
        code = (
            "import importlib.util, sys\n"
            f"spec = importlib.util.spec_from_file_location('build', {build.__file__!r})\n"
            "build = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(build)\n"
            "sys.exit(0 if build.library() and build.library().normals else 1)\n"
        )
        both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
        assert runs(compiler) == 2
        (left,) = cache.iterdir()
        assert left.suffix == ".so"
        assert build._is_whole(left)


class TestFingerprint:
    def digests(self, monkeypatch, tmp_path):
        yield build._fingerprint(["true", "-O3"])
        yield build._fingerprint(["true", "-O2"])
        yield build._fingerprint(["echo", "-O3"])  # its version is another
        source = tmp_path / "kernels.cpp"
        shutil.copy(build._SOURCE, source)
        monkeypatch.setattr(build, "_SOURCE", source)
        source.write_text(source.read_text() + "// more\n")
        yield build._fingerprint(["true", "-O3"])
        monkeypatch.setattr(build, "_processor", lambda: "another")
        yield build._fingerprint(["true", "-O3"])

    def test_depends_on_source_flags_compiler_and_processor(self, monkeypatch, tmp_path):
        assert len(set(self.digests(monkeypatch, tmp_path))) == 5

    def test_a_version_that_is_not_utf_8(self, tmp_path):
        for number in (b"1", b"2"):
            script = tmp_path / number.decode()
            script.write_bytes(b"#!/bin/sh\necho g++ d\xe9bogu\xe9 " + number + b"\n")
            script.chmod(0o755)
        digests = {build._fingerprint([str(tmp_path / number)]) for number in "12"}
        assert len(digests) == 2

    def test_a_compiler_whose_name_is_not_utf_8(self, tmp_path):
        script = tmp_path / os.fsdecode(b"g\xe9++")
        shutil.copy(shutil.which("true"), script)
        assert build._fingerprint([str(script)])

    def test_is_the_same_twice(self):
        assert build._fingerprint(["true", "-O3"]) == build._fingerprint(["true", "-O3"])
