"""What every test shares: the annotations are checked, and the draws are the same."""

import inspect
import re

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import settings

jaxtyped = jaxtyping.jaxtyped


def _names_a_shape(function):
    words = re.findall(r"\w+", " ".join(map(str, function.__annotations__.values())))
    meant = (function.__globals__.get(word) for word in words)
    return any(getattr(value, "__module__", None) == "jaxtyping" for value in meant)


def _checked(*, typechecker):
    """Check shapes where an annotation names one, and elsewhere the types alone.

    jaxtyping takes a tenth of a millisecond for a call of anything; beartype alone is nearly
    free, and says as much where there is no shape. Functions made in functions stay jaxtyping's:
    beartype keeps the latest of them alive, and with it the module that it closes over.
    """

    def check(checked):
        own = inspect.isfunction(checked) and "<locals>" not in checked.__qualname__
        if not own or _names_a_shape(checked):
            return jaxtyped(checked, typechecker=typechecker)
        return beartype(checked, conf=BeartypeConf(violation_type=TypeError))

    return check


jaxtyping.jaxtyped = _checked

# A first call warms up libraries, and a machine may be busy: time is not what fails a test.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep a file's tests in one process, for what they share; and all that need the cluster."""
    for item in items:
        room = item.path.parent
        together = room if room.name == "distributed" else item.path
        item.add_marker(pytest.mark.xdist_group(str(together)))


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Tests that draw from torch's global generator draw the same numbers every time."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def same_threads():
    """Commands set the number of threads of their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A data set of a few images, as the command line names it."""
    from commands import write_digits

    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def run(tmp_path_factory, digits):
    """The folder of a finished run, and what it printed. Tests must not change it."""
    from commands import TINY, quiet

    out = tmp_path_factory.mktemp("runs") / "a run"
    words = ["evolve", "--data", digits, *TINY, "--seed", "1", "--measure-every", "0"]
    code, printed = quiet([*words, "--report", "--out", out])
    assert code == 0
    return out, printed
