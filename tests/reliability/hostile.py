"""Files changed by chance, and what watches over those who read them."""

import os
import resource
import sys
from contextlib import contextmanager

MIB = 1 << 20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
}
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")


def mutate(content, chance):
    """Content with one to four changes, each of a kind and at a place that chance decides."""
    content = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        # Half of the changes at the beginning, where headers are.
        at = min(at, chance.randrange(200)) if chance.random() < 0.5 else at
        length = chance.choice((1, 2, 4, 8, 30, 300))
        kind = chance.randrange(9)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[at : at + 1] = bytes([chance.choice((0, 0xFF, 0x7F, 0x80, 0x22, 0x5B, 0x7B))])
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = chance.randbytes(length)
        elif kind == 5:
            content[at:at] = content[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 6:
            content[at : at + length] = bytes(length)
        elif kind == 7:
            content[at : at + 8] = chance.choice((2**64 - 1, 2**63, 2**31, 2**32, 0)).to_bytes(8)
        else:
            digits = [place for place, byte in enumerate(content) if 48 <= byte < 58]
            if digits:
                place = chance.choice(digits)
                more = chance.choice((b"9", b"0", b"-1", b"1e999", b"9" * 30, b"null", b"[]"))
                content[place : place + 1] = more
    return bytes(content)


class Guard:
    """While watching, writing outside a folder is a mistake, as is running anything."""

    def __init__(self, folder):
        self._folder, self._watching = os.path.realpath(folder), False
        sys.addaudithook(self._audit)

    @contextmanager
    def watching(self):
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _audit(self, event, arguments):
        if not self._watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & _WRITES or set(mode or "") & set("wax+")
            if writes and not isinstance(path, int):
                self._require_inside(event, path)
        elif event in _CHANGES:
            for place in _CHANGES[event]:
                self._require_inside(event, arguments[place])
        elif event.startswith(_NEVER):
            raise AssertionError(f"{event} {arguments}")

    def _require_inside(self, event, path):
        real = os.path.realpath(os.fspath(path))
        if not real.startswith(self._folder + os.sep):
            raise AssertionError(f"{event} of {path}, outside {self._folder}")


def peak():
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
