"""The cluster that a run starts: for this process alone, and for no longer than it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinkering.distributed.cluster import connect
from tinkering.errors import ClusterError

LISTENS = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def family(process):
    """A process with all that it started, and what these did."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        parents.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
    found = [process]
    for pid in found:
        found += parents.get(pid, [])
    return found


def listening(processes):
    """The addresses that processes listen at, as the kernel writes them."""
    sockets = set()
    for pid in processes:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(descriptor.readlink()))
            except OSError:
                continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and f"socket:[{words[9]}]" in sockets:
                found.append(words[1].split(":")[0])
    return found


def elsewhere(source, **more):
    """What another process prints, that knows nothing of a token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=100,
        env={**kept, **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestStarted:
    def test_listens_on_this_machine_only(self, cluster):
        assert cluster.get_runtime_context().gcs_address.startswith("127.0.0.1:")
        addresses = listening(family(os.getpid()))
        assert len(addresses) >= 3
        assert {*addresses} <= {*LOOPBACK}

    def test_has_no_dashboard(self, cluster):
        assert not cluster._private.worker.global_worker.node.webui_url
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"

    def test_lets_nobody_in_without_its_token(self, cluster):
        address = cluster.get_runtime_context().gcs_address
        source = (
            "from ray._raylet import GcsClient\n"
            "from ray.exceptions import AuthenticationError\n"
            "try:\n"
            f"    GcsClient(address={address!r})\n"
            "except AuthenticationError:\n"
            "    print('shut')\n"
        )
        assert elsewhere(source) == "shut\n"
        token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        source = f"from ray._raylet import GcsClient; GcsClient(address={address!r}); print('open')"
        assert elsewhere(source, **token) == "open\n"
        assert "not it" not in token["RAY_AUTH_TOKEN"]
        assert len(token["RAY_AUTH_TOKEN"]) == 64

    def test_where_one_is_there_it_is_used(self, cluster):
        address = cluster.get_runtime_context().gcs_address
        assert connect(None, 1, 0.0) is False
        assert cluster.get_runtime_context().gcs_address == address

    def test_where_ray_was_imported_before(self):
        """It has read its settings then: a token that is made now would lock ourselves out."""
        source = (
            "import os, ray\n"
            "from tinkering.distributed.cluster import connect\n"
            "ray.init = lambda *_, **__: None\n"
            "ray.cluster_resources = dict\n"
            "print(connect(None, 1, 0.0), 'RAY_AUTH_MODE' in os.environ)\n"
        )
        assert elsewhere(source) == "True False\n"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "[Errno 111] Connection refused"),
        ("[::1]:1", "[Errno "),
        ("nobody.invalid:6379", "[Errno "),
    ],
)
def test_where_there_is_none(address, said):
    source = (
        "import time\n"
        "from tinkering.distributed.cluster import connect\n"
        "from tinkering.errors import ClusterError\n"
        "start = time.monotonic()\n"
        "try:\n"
        f"    connect({address!r}, 1, 0.0)\n"
        "except ClusterError as error:\n"
        "    print(error)\n"
        "    assert time.monotonic() - start < 30\n"
    )
    got = elsewhere(source)
    assert got.startswith(f"Ray: needed a cluster at {address}, got none: {said}")
    assert "token" not in got  # nobody is there to ask for one


def test_an_error_survives_the_way_between_processes():
    import pickle

    error = ClusterError("a", "b", "Do c.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "Ray: needed a, got b. Do c."
