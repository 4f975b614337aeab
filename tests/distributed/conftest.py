"""One cluster for all tests of this folder, started as a run starts one."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / name) for name in ("cli", "runs")]
NEED_RAY = ("test_evaluator.py", "test_cluster.py", "test_cli_workers.py")
collect_ignore = [] if find_spec("ray") else [*NEED_RAY]
CPUS = 12


@pytest.fixture(scope="session")
def cluster():
    """Ray, with more room for workers than there are processors."""
    from tinkering.distributed.cluster import connect

    assert "ray" not in sys.modules, "it must be told what to do before it is imported"
    assert connect(None, CPUS, 0.0)
    import ray
    import tasks

    # Workers know nothing of this folder.
    ray.cloudpickle.register_pickle_by_value(tasks)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def one_thread():
    """The bits are those of a process with as many threads as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
