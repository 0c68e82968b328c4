"""kill -9 of the daemon, of supervisors and of clients, while fifty containers come and go."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from end_to_end.storm import (
    AT_ONCE,
    EXPECTED,
    JOBS,
    Job,
    Storm,
    daemon_of,
    end_engine,
    held,
    kill,
    logs,
    outcomes,
    supervisors_of,
)

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

RIGHT = {job.name: f"exited {job.code}" for job in JOBS}
AT_REST = {"containers", "daemon.log", "gone", "launch.lock"}
"""What a run directory may hold when no engine runs."""
WHOLE = {job.name: EXPECTED for job in JOBS}


@pytest.fixture
def engine_of(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Client]:
    """A client that starts its engine whenever there is none, with the image `base`."""
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=real_tmp))
    client = Client(root, short_run())
    client.ok("import", str(tiny_archive), "base")
    yield client
    end_engine(client)
    assert not any(client.traces().values())
    assert {path.name for path in client.run_directory.iterdir()} <= AT_REST
    shutil.rmtree(root)
    shutil.rmtree(client.run_directory)


def test_killed_supervisors_cost_no_container_no_code_and_no_line(engine_of: Client) -> None:
    client = engine_of
    client.ok("run", "--rm", "base", "true")
    before = held(daemon_of(client))
    storm = Storm(client, "-d")
    with storm.blowing():
        for done in (5, 20, 35):
            storm.wait_for(done)
            for supervisor in supervisors_of(client):
                kill(supervisor)
    results = storm.results.items()
    assert {job.name: result.err for job, result in results if result.code != 0} == {}
    assert {job.name for job, _ in results} == set(RIGHT)
    assert outcomes(client) == RIGHT
    assert logs(client, list(RIGHT)) == WHOLE
    client.remove_all()
    eventually(lambda: not any(client.traces().values()), "nothing is left of them")
    eventually(
        lambda: not held(daemon_of(client)) - before,
        f"the daemon lets go of all ({held(daemon_of(client)) - before})",
    )


def test_a_killed_daemon_costs_no_container_no_code_and_no_line(engine_of: Client) -> None:
    client = engine_of
    storm = Storm(client, "-d")
    with storm.blowing():
        for done in (5, 30):
            storm.wait_for(done)
            kill(daemon_of(client))
    answered = {job.name for job, result in storm.results.items() if result.code == 0}
    refused = [result.err for result in storm.results.values() if result.code != 0]
    assert len(refused) <= 2 * AT_ONCE  # those that were in the middle of it
    assert {"dockpy: the daemon ended before it had answered\n"} >= set(refused)
    found = outcomes(client)
    assert answered <= set(found)
    begun = [name for name, state in found.items() if state != "created 0"]
    assert answered <= set(begun)
    assert {name: found[name] for name in begun} == {name: RIGHT[name] for name in begun}
    assert logs(client, begun) == dict.fromkeys(begun, EXPECTED)
    never = [name for name in found if name not in begun]
    assert logs(client, never) == dict.fromkeys(never, "")
    for name in never:
        assert client("start", "-a", name).code == int(RIGHT[name].split()[1])


def test_clients_in_the_foreground_outlive_killed_daemons(engine_of: Client) -> None:
    client = engine_of
    storm = Storm(client, "--rm")
    with storm.blowing():
        for done in (5, 30):
            storm.wait_for(done)
            kill(daemon_of(client))
    begun = {job: result for job, result in storm.results.items() if result.out}
    assert len(begun) >= len(JOBS) - 2 * AT_ONCE
    assert {job.name: result.out for job, result in begun.items()} == {
        job.name: EXPECTED for job in begun
    }
    assert {job.name: (result.code, result.err) for job, result in begun.items()} == {
        job.name: (job.code, "") for job in begun
    }
    never = [result for job, result in storm.results.items() if job not in begun]
    assert [(result.code, result.err.count("\n")) for result in never] == [(125, 1)] * len(never)
    eventually(lambda: client.ids() == [], "--rm containers are gone")


def test_killed_clients_cost_no_container_no_code_and_no_line(engine_of: Client) -> None:
    client = engine_of

    def begin(job: Job) -> None:
        with client.started("run", "--name", job.name, "base", *job.command) as process:
            if job.number % 2:
                assert process.stdout is not None
                process.stdout.readline()
            process.kill()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for one in [pool.submit(begin, job) for job in JOBS]:
            one.result()
    found = outcomes(client)
    assert {job.name for job in JOBS if job.number % 2} <= set(found)  # seen to print
    assert found == {name: RIGHT[name] for name in found}
    assert logs(client, list(found)) == dict.fromkeys(found, EXPECTED)


def test_an_exec_goes_on_under_the_next_daemon(engine_of: Client) -> None:
    client = engine_of
    client.ok("run", "-d", "--name", "box", "base", "sleep", "1000")
    client.ok("exec", "-d", "box", "sleep", "333")
    kill(daemon_of(client))
    assert "sleep 333" in client.ok("exec", "box", "ps", "-o", "args").out
    for supervisor in supervisors_of(client):
        kill(supervisor)
    assert "sleep 333" in client.ok("exec", "box", "ps", "-o", "args").out
    assert client("exec", "box", "sh", "-c", "exit 6").code == 6
    client.remove_all()


def logged_more(client: Client, than: int) -> bool:
    return len(client.ok("logs", "busy").lines) > than


def test_a_daemon_killed_while_it_commits_leaves_nobody_frozen_and_nothing_half_made(
    engine_of: Client,
) -> None:
    client = engine_of
    script = (
        "mkdir /d; for i in $(seq 2000); do echo $i > /d/$i; done; echo ready; "
        "while :; do date; usleep 20000; done"
    )
    client.ok("run", "-d", "--name", "busy", "base", "sh", "-c", script)
    eventually(lambda: "ready" in client.ok("logs", "busy").out, "it has written its files")
    before = client.ok("images", "-aq").lines
    for pause in (0.0, 0.05, 0.1, 0.2):
        with client.started("commit", "busy"):
            time.sleep(pause)
            kill(daemon_of(client))
        lines = len(client.ok("logs", "busy").lines)
        eventually(partial(logged_more, client, lines), "it goes on")
    for name in set(client.ok("images", "-aq").lines) - set(before):  # those that were whole
        assert client.ok("run", "--rm", name, "ls", "/d").out.count("\n") == 2000
        client.ok("rmi", name)
    layers = os.listdir(client.root / "layers")
    assert len(layers) == 1
    client.remove_all()
