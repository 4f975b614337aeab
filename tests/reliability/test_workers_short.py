"""The command `workers.py` for a moment."""

import re
from importlib.util import find_spec

import pytest
from test_short_forms import printed

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is missing"),
]


def test_workers_that_are_killed():
    said = printed("workers.py", "--generations", 3, "--node-generations", 0)
    assert re.search(r"^workers killed +3$", said, re.MULTILINE)
    assert re.search(r"^generations whose fitness differs +0$", said, re.MULTILINE)
    assert re.search(r"^centre of the calm run +yes$", said, re.MULTILINE)


def test_nodes_that_come_and_go():
    said = printed("workers.py", "--generations", 0, "--node-generations", 20)
    (done,) = re.findall(r"^parts done on the node that came +(\d+)$", said, re.MULTILINE)
    assert int(done) > 0
    assert re.search(r"^centre of the calm run +yes$", said, re.MULTILINE)
