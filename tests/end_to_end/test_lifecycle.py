"""The life of a container through the command line: ps, logs, inspect, stop, kill, wait, rm."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

WORKER = "while true; do echo Hello world; sleep 0.2; done"
POLITE = "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo ready; while true; do sleep 0.05; done"


def test_the_seeds_worker_example(dockpy: Client) -> None:
    job = dockpy.ok("run", "-d", "base", "/bin/sh", "-c", WORKER).out.strip()
    dockpy.wait_for_log(job, "Hello world\nHello world\n")
    assert set(dockpy.ok("logs", job).lines) == {"Hello world"}
    (row,) = dockpy.ok("ps").lines[1:]
    assert row.startswith(job[:12])
    assert "Up" in row
    dockpy.ok("kill", job)
    assert dockpy.ok("ps").lines[1:] == []
    assert dockpy.field(job, "{{.State.ExitCode}} {{.State.Running}}") == "137 false"


def test_ps_has_dockers_columns(dockpy: Client) -> None:
    dockpy.detached("--name", "web", "base", "sleep", "60")
    header, row = dockpy.ok("ps").lines
    assert header.split() == [
        "CONTAINER",
        "ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
    ]
    cells = [row[header.index(name) :].split("  ")[0] for name in ("IMAGE", "COMMAND", "NAMES")]
    assert cells == ["base", '"sleep 60"', "web"]


def test_ps_selects_and_shows_what_is_asked(dockpy: Client) -> None:
    ended = dockpy.detached("--name", "ended", "--label", "tier=back", "base", "sh", "-c", "exit 2")
    dockpy.ok("wait", ended)
    running = dockpy.detached("--name", "running", "base", "sleep", "60")
    table = {
        ("-q",): [running[:12]],
        ("-a", "-q"): [running[:12], ended[:12]],
        ("-a", "-q", "--no-trunc"): [running, ended],
        ("-l", "-q"): [running[:12]],
        ("-n", "1", "-q"): [running[:12]],
        ("-a", "-q", "--filter", "status=exited"): [ended[:12]],
        ("-a", "-q", "--filter", "exited=2"): [ended[:12]],
        ("-a", "-q", "--filter", "label=tier=back"): [ended[:12]],
        ("-a", "-q", "--filter", "name=runn"): [running[:12]],
        ("-a", "--format", "{{.ID}} {{.Names}} {{.Image}}"): [
            f"{running[:12]} running base",
            f"{ended[:12]} ended base",
        ],
    }
    assert {flags: dockpy.ok("ps", *flags).lines for flags in table} == table


def test_a_container_is_found_by_id_prefix_and_name(dockpy: Client) -> None:
    identifier = dockpy.detached("--name", "found", "base", "sleep", "60")
    for reference in (identifier, identifier[:12], identifier[:6], "found"):
        assert dockpy.field(reference, "{{.Id}}") == identifier


def test_inspect_tells_where_the_log_is(dockpy: Client) -> None:
    identifier = dockpy.detached("base", "echo", "told")
    dockpy.ok("wait", identifier)
    assert "told" in Path(dockpy.field(identifier, "{{.LogPath}}")).read_text()


def test_inspect_is_json_and_takes_several(dockpy: Client) -> None:
    first = dockpy.detached("-e", "A=1", "base", "sleep", "60")
    second = dockpy.detached("base", "sleep", "60")
    shown = json.loads(dockpy.ok("inspect", first, second).out)
    assert [each["Id"] for each in shown] == [first, second]
    assert shown[0]["State"]["Running"] is True
    assert "A=1" in shown[0]["Config"]["Env"]
    assert json.loads(dockpy.field(first, "{{json .Config.Cmd}}")) == ["sleep", "60"]
    assert dockpy.field(first, "{{index .Config.Cmd 1}}") == "60"
    assert dockpy.field(first, "{{range .Config.Cmd}}<{{.}}>{{end}}") == "<sleep><60>"


def test_wait_prints_each_code(dockpy: Client) -> None:
    ids = [dockpy.detached("base", "sh", "-c", f"exit {code}") for code in (0, 3)]
    assert dockpy.ok("wait", *ids).lines == ["0", "3"]


def test_stop_lets_a_program_end_its_own_way(dockpy: Client) -> None:
    job = dockpy.detached("base", "sh", "-c", POLITE)
    dockpy.wait_for_log(job, "ready")
    dockpy.ok("stop", job)
    assert dockpy.field(job, "{{.State.ExitCode}}") == "5"
    assert dockpy.ok("logs", job).lines == ["ready", "bye"]


def test_stop_kills_what_does_not_end_in_time(dockpy: Client) -> None:
    job = dockpy.detached("base", "sh", "-c", STUBBORN)
    dockpy.wait_for_log(job, "ready")
    dockpy.ok("stop", "-t", "0", job)
    assert dockpy.field(job, "{{.State.ExitCode}} {{.State.OOMKilled}}") == "137 false"


def test_the_containers_own_stop_signal_and_time_out_are_used(dockpy: Client) -> None:
    script = "trap 'exit 6' USR1; trap '' TERM; echo ready; while true; do sleep 0.05; done"
    job = dockpy.detached(
        "--stop-signal", "USR1", "--stop-timeout", "30", "base", "sh", "-c", script
    )
    dockpy.wait_for_log(job, "ready")
    dockpy.ok("stop", job)
    assert dockpy.field(job, "{{.State.ExitCode}}") == "6"
    slow = dockpy.detached("--stop-timeout", "0", "base", "sh", "-c", STUBBORN)
    dockpy.wait_for_log(slow, "ready")
    dockpy.ok("stop", slow)
    assert dockpy.field(slow, "{{.State.ExitCode}}") == "137"


def test_kill_sends_the_named_signal(dockpy: Client) -> None:
    job = dockpy.detached(
        "base", "sh", "-c", "trap 'exit 8' HUP; echo ready; while true; do sleep 0.05; done"
    )
    dockpy.wait_for_log(job, "ready")
    dockpy.ok("kill", "-s", "HUP", job)
    assert dockpy.ok("wait", job).out == "8\n"


def test_restart_keeps_the_files_and_starts_again(dockpy: Client) -> None:
    script = "echo x >>/count; wc -l </count; trap 'exit 0' TERM; while true; do sleep 0.05; done"
    job = dockpy.detached("base", "sh", "-c", script)
    dockpy.wait_for_log(job, "1\n")
    dockpy.ok("restart", job)
    dockpy.wait_for_log(job, "2\n")
    dockpy.ok("stop", job)
    dockpy.ok("start", job)
    dockpy.wait_for_log(job, "3\n")


def test_start_attached_shows_the_output_and_gives_the_code(dockpy: Client) -> None:
    dockpy("run", "--name", "again", "base", "sh", "-c", "echo once; exit 4")
    result = dockpy("start", "-a", "again")
    assert (result.code, result.out) == (4, "once\n")


def test_attach_joins_a_running_program_until_it_ends(dockpy: Client) -> None:
    job = dockpy.detached("-i", "base", "sh", "-c", "read line; echo got $line; exit 2")
    result = dockpy("attach", job, input="this\n")
    assert (result.code, result.out) == (2, "got this\n")


def test_rm_refuses_a_running_container_and_f_ends_it(dockpy: Client) -> None:
    job = dockpy.detached("--name", "busy", "base", "sleep", "60")
    refused = dockpy("rm", "busy")
    assert refused.code != 0
    assert "running" in refused.err
    assert dockpy.ids() == [job]
    dockpy.ok("rm", "-f", "busy")
    assert dockpy.ids() == []


def test_several_are_removed_at_once_and_a_missing_one_is_told(dockpy: Client) -> None:
    ids = [dockpy.detached("base", "true") for _ in range(2)]
    dockpy.ok("wait", *ids)
    result = dockpy("rm", ids[0], "missing", ids[1])
    assert result.code != 0
    assert "missing" in result.err
    assert dockpy.ids() == []


def test_logs_select_by_stream_number_and_time(dockpy: Client) -> None:
    dockpy("run", "--name", "both", "base", "sh", "-c", "echo one; echo two >&2; echo three")
    both = dockpy.ok("logs", "both")
    assert (both.out, both.err) == ("one\nthree\n", "two\n")
    dockpy("run", "--name", "talker", "base", "sh", "-c", "echo one; echo three")
    assert dockpy.ok("logs", "--tail", "1", "talker").lines == ["three"]
    assert dockpy.ok("logs", "--since", f"{time.time() + 60:.0f}", "talker").out == ""
    assert dockpy.ok("logs", "--until", f"{time.time() - 3600:.0f}", "talker").out == ""
    (first, _) = dockpy.ok("logs", "-t", "talker").lines
    stamp, _, text = first.partition(" ")
    assert text == "one"
    assert stamp.endswith("Z")
    assert stamp.startswith(time.strftime("%Y-", time.gmtime()))


def test_logs_f_follows_to_the_end_and_leaves(dockpy: Client) -> None:
    script = "echo early; read line; echo $line; echo late"
    job = dockpy.detached("-i", "base", "sh", "-c", script)
    dockpy.wait_for_log(job, "early")
    with dockpy.started("logs", "-f", job) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"early\n"
        dockpy("attach", job, input="middle\n")
        rest, _ = follower.communicate(timeout=patient(20))
    assert rest == b"middle\nlate\n"
    assert follower.returncode == 0


def test_logs_f_can_be_interrupted_and_the_container_goes_on(dockpy: Client) -> None:
    job = dockpy.detached("base", "sh", "-c", WORKER)
    with dockpy.started("logs", "-f", job) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"Hello world\n"
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=patient(20))
    assert dockpy.field(job, "{{.State.Running}}") == "true"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_client_reach_the_program(dockpy: Client, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while true; do sleep 0.05; done"
    with dockpy.started("run", "--rm", "base", "sh", "-c", script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(number)
        rest, _ = client.communicate(timeout=patient(20))
    assert (client.returncode, rest) == (9, f"got {name}\n".encode())


def test_without_sig_proxy_the_program_does_not_notice(dockpy: Client) -> None:
    argv = (
        "run",
        "--name",
        "deaf",
        "--sig-proxy=false",
        "base",
        "sh",
        "-c",
        f"echo ready; {WORKER}",
    )
    with dockpy.started(*argv) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        client.communicate(timeout=patient(20))
    assert dockpy.field("deaf", "{{.State.Running}}") == "true"


def test_a_killed_client_leaves_its_container_running(dockpy: Client) -> None:
    with dockpy.started(
        "run", "--name", "orphan", "base", "sh", "-c", f"echo ready; {WORKER}"
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.kill()
    assert dockpy.field("orphan", "{{.State.Running}}") == "true"
    lines = len(dockpy.ok("logs", "orphan").lines)
    eventually(lambda: len(dockpy.ok("logs", "orphan").lines) > lines, "the log goes on")


def test_images_info_and_version_answer(dockpy: Client) -> None:
    header, row = dockpy.ok("images").lines
    assert header.split()[:2] == ["REPOSITORY", "TAG"]
    assert row.split()[:2] == ["base", "latest"]
    assert "0.1.0" in dockpy.ok("version").out
    assert str(dockpy.root) in dockpy.ok("info").out


@pytest.mark.parametrize("kind", ["", "z", "j", "J"])
def test_archives_are_imported_however_they_are_packed(
    dockpy: Client, kind: str, packed_root: object
) -> None:
    archive = packed_root(kind)  # type: ignore[operator]
    by_file = dockpy.ok("import", str(archive), f"packed:f{kind.lower()}x{len(kind)}").out.strip()
    by_stdin = dockpy.ok("import", "-", "packed:stdin", input=archive.read_bytes()).out.strip()
    assert by_file.removeprefix("sha256:")
    assert by_stdin.removeprefix("sha256:")
    assert dockpy.ok("run", "--rm", "packed:stdin", "echo", "unpacked").out == "unpacked\n"
