"""run and create: every option in both spellings, what a caller sees, what happens to signals."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from cli_engine import Caller, FakeContainer, FakeEngine
from dockpy.cli import main
from dockpy.cli.request import RunValues
from dockpy.cli.session import Session
from dockpy.errors import CannotExecute, CommandNotFound, KernelError
from dockpy.model import Bind, Config, Ulimit
from dockpy.supervision import AttachmentEnd


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def caller(engine: FakeEngine, tmp_path: Path) -> Caller:
    return Caller(engine, tmp_path, env={"HOME": "/root", "EMPTY": ""})


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("-a stdout", {"attach_stdout": True, "attach_stderr": False}),
    ("-a=stdout -attach stderr", {"attach_stdout": True, "attach_stderr": True}),
    ("--attach stdin", {"attach_stdin": True, "open_stdin": True, "stdin_once": True}),
    ("-a=true", {"attach_stdin": True, "attach_stdout": True, "attach_stderr": True}),
    ("-d", {"attach_stdout": False, "attach_stderr": False}),
    ("-d=true", {"attach_stdout": False}),
    ("--detach -i", {"open_stdin": True, "attach_stdin": False, "stdin_once": False}),
    ("-d=false", {"attach_stdout": True}),
    ("-i", {"open_stdin": True, "attach_stdin": True, "stdin_once": True}),
    ("--interactive=1", {"open_stdin": True}),
    ("-i=false", {"open_stdin": False, "attach_stdin": False}),
    ("-t", {"tty": True}),
    ("-t=true", {"tty": True}),
    ("--tty=T", {"tty": True}),
    ("-td", {"tty": True, "attach_stdout": False}),
    ("-ditm 64m", {"tty": True, "open_stdin": True, "memory": 64 << 20}),
    ("-e A=1 -e B=x=y", {"env": ("A=1", "B=x=y")}),
    ("-e=A=1 --env=B=2 -env C=3", {"env": ("A=1", "B=2", "C=3")}),
    ("-eA=1", {"env": ("A=1",)}),
    ("-e A=1 -e A=2", {"env": ("A=2",)}),
    ("-e HOME -e EMPTY -e ABSENT", {"env": ("HOME=/root", "EMPTY=", "ABSENT")}),
    ("-h web", {"hostname": "web"}),
    ("-h=web", {"hostname": "web"}),
    ("--hostname web.example", {"hostname": "web.example"}),
    ("-hostname web", {"hostname": "web"}),
    ("--domainname example.org", {"domainname": "example.org"}),
    ("-m 512m", {"memory": 512 << 20}),
    ("-m=64000000", {"memory": 64_000_000}),
    ("-m64m", {"memory": 64 << 20}),
    ("--memory 1g --memory-swap 2g", {"memory": 1 << 30, "memory_swap": 2 << 30}),
    ("-memory 1g -memory-swap=-1", {"memory": 1 << 30, "memory_swap": -1}),
    ("--memory-reservation 32m", {"memory_reservation": 32 << 20}),
    ("-u worker", {"user": "worker"}),
    ("-u 1000:1000", {"user": "1000:1000"}),
    ("--user=worker", {"user": "worker"}),
    ("-user worker", {"user": "worker"}),
    ("--dns 9.9.9.9 --dns ::1", {"dns": ("9.9.9.9", "::1")}),
    ("-dns 9.9.9.9", {"dns": ("9.9.9.9",)}),
    ("-dns=9.9.9.9", {"dns": ("9.9.9.9",)}),
    ("--dns-search example.org", {"dns_search": ("example.org",)}),
    ("--add-host db:10.0.0.5", {"extra_hosts": ("db:10.0.0.5",)}),
    ("--add-host six:::1 --add-host v=[::2]", {"extra_hosts": ("six:::1", "v:::2")}),
    ("--rm", {"auto_remove": True}),
    ("-rm", {"auto_remove": True}),
    ("--rm=false", {"auto_remove": False}),
    ("-w /srv", {"working_dir": "/srv"}),
    ("--workdir=/srv", {"working_dir": "/srv"}),
    ("--entrypoint /bin/cat", {"entrypoint": ("/bin/cat",)}),
    ("--entrypoint=", {"entrypoint": ()}),
    ("-l a=1 --label b", {"labels": {"a": "1", "b": ""}}),
    ("--net none", {"network_mode": "none"}),
    ("--network=host", {"network_mode": "host"}),
    ("-net host", {"network_mode": "host"}),
    ("--network container:db", {"network_mode": "container:db"}),
    ("--net default", {"network_mode": "bridge"}),
    ("--network-alias db --net-alias sql", {"network_aliases": ("db", "sql")}),
    ("--ip 10.9.0.5", {"ip_address": "10.9.0.5"}),
    ("--mac-address 02-42-0A-09-00-05", {"mac_address": "02:42:0a:09:00:05"}),
    ("--link db --link web:www", {"links": ("db", "web:www")}),
    ("-p 8080:80 --publish 53/udp", {"port_specs": ("8080:80", "53/udp")}),
    ("-P", {"publish_all": True}),
    ("--publish-all", {"publish_all": True}),
    ("--expose 80 --expose 53/udp", {"exposed_ports": ("80/tcp", "53/udp")}),
    ("--dns-opt ndots:2 --dns-option rotate", {"dns_options": ("ndots:2", "rotate")}),
    ("", {"network_mode": "bridge", "attach_stdout": True, "attach_stderr": True}),
    ("-v /a:/b -v /c:/d:ro", {"binds": (Bind("/a", "/b"), Bind("/c", "/d", read_only=True))}),
    ("--volume=/a:/b", {"binds": (Bind("/a", "/b"),)}),
    ("--tmpfs /run --tmpfs /tmp:size=1m", {"tmpfs": {"/run": "", "/tmp": "size=1m"}}),
    ("--mount type=bind,src=/a,dst=/b,ro", {"binds": (Bind("/a", "/b", read_only=True),)}),
    ("--mount type=tmpfs,target=/t,tmpfs-size=1m", {"tmpfs": {"/t": "size=1m"}}),
    ("--read-only", {"read_only": True}),
    ("--cap-add NET_ADMIN --cap-add sys_time", {"cap_add": ("NET_ADMIN", "sys_time")}),
    ("--cap-drop ALL", {"cap_drop": ("ALL",)}),
    ("--privileged", {"privileged": True, "seccomp": "unconfined"}),
    ("--privileged --security-opt seccomp=default", {"privileged": True, "seccomp": "default"}),
    ("--security-opt seccomp=unconfined", {"seccomp": "unconfined"}),
    ("--security-opt seccomp:unconfined", {"seccomp": "unconfined"}),
    ("--security-opt no-new-privileges", {"no_new_privileges": True}),
    ("--security-opt no-new-privileges=false", {"no_new_privileges": False}),
    ("--security-opt no-new-privileges:true", {"no_new_privileges": True}),
    ("--ulimit nofile=1024:2048", {"ulimits": (Ulimit("nofile", 1024, 2048),)}),
    ("--cpus 1.5", {"cpus": 1.5}),
    ("-c 512", {"cpu_shares": 512}),
    ("--cpu-shares=512", {"cpu_shares": 512}),
    ("--cpuset-cpus 0-1,3", {"cpuset_cpus": "0-1,3"}),
    ("--cpuset-mems 0", {"cpuset_mems": "0"}),
    ("--pids-limit 100", {"pids_limit": 100}),
    ("--pids-limit -1", {"pids_limit": -1}),
    ("--blkio-weight 300", {"blkio_weight": 300}),
    ("--oom-score-adj -500", {"oom_score_adj": -500}),
    ("--device /dev/null:/dev/x:r", {"devices": ("/dev/null:/dev/x:r",)}),
    ("--init", {"init": True}),
    ("--cgroup-view", {"cgroup_view": True}),
    ("--detach-keys ctrl-a,d", {"detach_keys": "ctrl-a,d"}),
    ("--stop-signal USR1", {"stop_signal": "USR1"}),
    ("--stop-timeout 3", {"stop_timeout": 3}),
    ("--shm-size 1g", {"shm_size": 1 << 30}),
    ("--log-opt max-size=10m --log-opt max-file=3", {"log_max_size": 10 << 20, "log_max_file": 3}),
    ("--pull never -q --sig-proxy=false --trace", {}),
    ("-a stdout --", {"attach_stdout": True}),
]


@pytest.mark.parametrize(("words", "expected"), OPTIONS, ids=[words for words, _ in OPTIONS])
def test_each_spelling_of_an_option_reaches_the_configuration(
    words: str, expected: dict[str, Any], caller: Caller, engine: FakeEngine
) -> None:
    code, _, errors = caller("create", *words.split(), "base", "ls", "-l")
    assert (code, errors) == (0, "")
    config = engine.containers[0].config
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.cmd == ("ls", "-l")


def test_the_typed_values_of_run_are_those_of_its_option_table() -> None:
    for name in ("run", "create"):
        command = main.COMMANDS[name]
        parameters = {str(one.name) for one in command.params if one.name != "help"}
        assert parameters == set(RunValues.__annotations__)


def test_every_option_of_run_is_tried_in_the_table() -> None:
    tried = {word.partition("=")[0] for words, _ in OPTIONS for word in words.split()}
    missing = [
        option.opts
        for option in main.COMMANDS["run"].options
        if not any(one in tried or one.replace("--", "-") in tried for one in option.opts)
        and option.name not in ("name", "cidfile", "env_file", "label_file", "interactive")
        and not any(f"-{letter}" in option.opts for letter in "dit")
    ]
    assert missing == []


def test_options_end_at_the_image(caller: Caller, engine: FakeEngine) -> None:
    caller("create", "base", "--rm", "-t", "--", "-d")
    assert engine.containers[0].config == Config(
        image="base",
        cmd=("--rm", "-t", "--", "-d"),
        attach_stdout=True,
        attach_stderr=True,
    )


def test_files_of_variables_and_labels_are_read_with_the_callers_eyes(
    caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("# a comment\n\nA=1\nB=two words\n  HOME\nABSENT\nC=x=y\n")
    (tmp_path / "labels").write_text("a=1\n# no\nb\n")
    caller(
        *("create", "--env-file", "env", "-e", "A=2"),
        *("--label-file", "labels", "-l", "a=3", "base", "ls"),
    )
    config = engine.containers[0].config
    assert config.env == ("A=2", "B=two words", "HOME=/root", "C=x=y")
    assert config.labels == {"a": "3", "b": ""}


def test_a_seccomp_profile_is_read_from_its_file(
    caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "profile.json").write_text('{"defaultAction":"SCMP_ACT_ALLOW"}')
    caller("create", "--security-opt", "seccomp=profile.json", "base", "ls")
    assert json.loads(engine.containers[0].config.seccomp) == {"defaultAction": "SCMP_ACT_ALLOW"}


def test_a_relative_source_of_a_volume_starts_in_the_callers_directory(
    caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    caller("create", "-v", "./x/../y:/y:ro", "-v", ".:/here", "base", "ls")
    assert engine.containers[0].config.binds == (
        Bind(f"{tmp_path}/y", "/y", read_only=True),
        Bind(str(tmp_path), "/here"),
    )


REFUSALS = [
    ("--bogus base", "unknown flag --bogus"),
    ("--hostnam x base", "did you mean --hostname?"),
    ("-itX base", "unknown flag -X in -itX"),
    ("-Z base", "unknown flag -Z"),
    ("", "it needs an image"),
    ("--rm", "it needs an image"),
    ("--name", "--name needs a value"),
    ("-m", "-m needs a value"),
    ("--rm=maybe base", "true or false expected"),
    ("-a window base", "stdin, stdout or stderr expected"),
    ("-a stdout -d base", "-a and -d contradict each other"),
    ("-m 1q base", "-m '1q'"),
    ("--memory-swap 1g base", "--memory-swap needs --memory"),
    ("-m 1g --memory-swap 512m base", "--memory-swap counts memory too"),
    ("-m 1g --memory-reservation 2g base", "--memory-reservation is above --memory"),
    ("--net container: base", "container:NAME or the name of a network expected"),
    ("--ip fe80::1 base", "an IPv4 address expected"),
    ("--mac-address 01:42:0a:09:00:05 base", "the address of a group"),
    ("--mac-address 02:42 base", "six bytes such as"),
    ("--link :db base", "NAME or NAME:ALIAS expected"),
    ("--network-alias= base", "a name without spaces expected"),
    ("-p 99999:80 base", "dockpy: -p '99999:80': ports go from 1 to 65535; see"),
    ("-p 80/icmp base", "the protocol is one of tcp, udp, sctp"),
    ("--expose www base", "'www' is not a port"),
    ("--dns server base", "an IP address expected"),
    ("--add-host db base", "name:address expected"),
    ("--add-host db:where base", "'where' is not an IP address"),
    ("-w srv base", "an absolute path inside the container expected"),
    ("-v data:/data base", "the source must be an absolute path"),
    ("-v /a:/b -v /c:/b base", "/b is asked for twice"),
    ("-v /a:/b --tmpfs /b base", "/b is asked for twice"),
    ("--tmpfs /b --tmpfs /b base", "/b is asked for twice"),
    ("--mount type=bind,source=/a,target=/b -v /c:/b base", "/b is asked for twice"),
    ("--mount source=/a base", "write type=bind or type=tmpfs"),
    ("--cpus 0 base", "a number of CPUs above 0 expected"),
    ("--cpus nan base", "a number of CPUs above 0 expected"),
    ("--cpus x base", "a number expected"),
    ("--cpuset-cpus a base", "a list such as 0-2,5 expected"),
    ("--oom-score-adj 2000 base", "-1000 to 1000"),
    ("--cpu-shares -1 base", "a number of 0 or more expected"),
    ("--pids-limit many base", "a number expected"),
    ("--shm-size 0 base", "a size above 0 expected"),
    ("--stop-signal HELLO base", "--stop-signal 'HELLO'"),
    ("--ulimit nofile base", "--ulimit 'nofile'"),
    ("--log-opt colour=red base", "max-size=SIZE or max-file=N expected"),
    ("--log-opt max-file=0 base", "a number of 1 or more"),
    ("--security-opt label=x base", "seccomp=FILE"),
    ("--security-opt no-new-privileges=maybe base", "true or false"),
    ("--detach-keys hello-there base", "--detach-keys 'hello-there'"),
    ("--env-file absent base", "cannot open absent: No such file or directory"),
    ("--security-opt seccomp=absent base", "cannot open absent"),
    ("--pull sometimes base", "missing, never or always expected"),
    ("--pull always base", "cannot pull it: cannot reach the registry"),
    ("--pull never absent", "no such image: absent (pull it: dockpy pull absent)"),
    ("-e =x base", "NAME=value or NAME expected"),
    ("-l =x base", "key=value expected"),
    ("-h a_b base", "letters, digits"),
    ("absent ls", "no such image: absent (cannot pull it: cannot reach the registry)"),
    ("base", "no command given"),
]


@pytest.mark.parametrize(("words", "expected"), REFUSALS, ids=[words for words, _ in REFUSALS])
def test_a_refusal_is_one_line_and_125(
    words: str, expected: str, caller: Caller, engine: FakeEngine
) -> None:
    code, output, errors = caller("run", *words.split())
    assert (code, output) == (125, "")
    assert errors.startswith("dockpy: ")
    assert errors.count("\n") == 1
    assert expected in errors
    assert engine.containers == []


def test_usage_errors_name_the_help_of_the_verb(caller: Caller) -> None:
    assert caller("run", "--bogus")[2].endswith("; see 'dockpy run --help'\n")


@pytest.mark.parametrize("verb", ["run", "create"])
def test_the_id_file_holds_the_id_and_is_never_overwritten(
    verb: str, caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    assert caller(verb, "--cidfile", "id", "base", "ls")[0] == 0
    assert (tmp_path / "id").read_text() == engine.containers[0].id
    code, _, errors = caller(verb, "--cidfile", "id", "base", "ls")
    assert (code, len(engine.containers)) == (125, 1)
    assert "--cidfile id exists already" in errors
    caller(verb, "--cidfile", "other", "absent", "ls")
    assert not (tmp_path / "other").exists()


def test_create_prints_the_id_and_starts_nothing(caller: Caller, engine: FakeEngine) -> None:
    code, output, _ = caller("create", "--name", "box", "base", "ls")
    assert (code, output) == (0, f"{engine.containers[0].id}\n")
    assert engine.containers[0].name == "box"
    assert engine.containers[0].calls == []


def test_run_in_the_background_prints_the_id(caller: Caller, engine: FakeEngine) -> None:
    code, output, _ = caller("run", "-d", "base", "ls")
    assert (code, output) == (0, f"{engine.containers[0].id}\n")
    assert engine.containers[0].calls == [("start",)]
    assert engine.containers[0].attachments == []


@pytest.mark.parametrize("code", [0, 1, 42, 137, 255])
def test_run_leaves_with_the_programs_exit_code(
    code: int, caller: Caller, engine: FakeEngine
) -> None:
    engine.behave = lambda container: container.end(code)
    assert caller("run", "base", "ls") == (code, "", "")


def test_run_connects_both_outputs_and_stdin_only_when_asked(
    caller: Caller, engine: FakeEngine
) -> None:
    caller.stdin = 77
    caller("run", "base", "ls")
    caller("run", "-i", "base", "ls")
    caller("run", "-a", "stderr", "base", "ls")
    found = [one.attachments[0].streams for one in engine.containers]
    assert [one.stdin for one in found] == [-1, 77, -1]
    assert [one.stdout >= 0 for one in found] == [True, True, False]
    assert [one.stderr >= 0 for one in found] == [True, True, True]
    assert [one.detach_keys for one in found] == [b"", b"", b""]


def test_stdin_alone_prints_the_id_as_nothing_else_tells_it(
    caller: Caller, engine: FakeEngine
) -> None:
    code, output, _ = caller("run", "-a", "stdin", "base", "cat")
    assert (code, output) == (0, f"{engine.containers[0].id}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandNotFound("no program /bin/nope in the container"), 127),
        (CannotExecute("/etc is a directory"), 126),
        (KernelError("mount /proc", 1), 125),
    ],
)
def test_a_container_that_cannot_start_is_taken_back(
    error: Any, code: int, caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.start_error = error
    assert caller("run", "--cidfile", "id", "base", "x") == (code, "", f"dockpy: {error}\n")
    assert engine.containers == []
    assert not (tmp_path / "id").exists()


# -- terminals -------------------------------------------------------------------------------------


def test_a_pipe_is_not_a_terminal(caller: Caller, engine: FakeEngine) -> None:
    code, _, errors = caller("run", "-it", "base", "sh")
    assert code == 125
    assert errors.startswith("dockpy: the input device is not a TTY")
    assert engine.containers == []


def test_a_terminal_is_raw_while_connected_and_tells_its_size(
    caller: Caller, engine: FakeEngine
) -> None:
    caller.stdin, caller.stdin_tty, caller.window = 77, True, (50, 120)

    def behave(container: FakeContainer) -> None:
        assert caller.session is not None
        assert caller.raw == [True]
        assert container.sized.wait(10)
        caller.session.events.resize(30, 90)
        container.end(3)

    engine.behave = behave
    assert caller("run", "-it", "base", "sh")[0] == 3
    assert caller.raw == [True, False]
    container = engine.containers[0]
    assert container.sizes == [(50, 120), (30, 90)]
    streams = container.attachments[0].streams
    assert (streams.stdin, streams.stderr, streams.detach_keys) == (77, -1, b"\x10\x11")


def test_the_terminal_is_put_back_when_the_start_fails(caller: Caller, engine: FakeEngine) -> None:
    caller.stdin, caller.stdin_tty = 77, True
    engine.start_error = CommandNotFound("no such program")
    assert caller("run", "-it", "base", "sh")[0] == 127
    assert caller.raw == [True, False]


def test_output_alone_needs_no_terminal_and_sets_none_raw(
    caller: Caller, engine: FakeEngine
) -> None:
    assert caller("run", "-t", "base", "ls")[0] == 0
    assert caller.raw == []


def test_detach_keys_leave_it_running_without_a_word(caller: Caller, engine: FakeEngine) -> None:
    caller.stdin, caller.stdin_tty = 77, True
    engine.behave = lambda container: container.attachments[0].finish(AttachmentEnd.DETACHED)
    assert caller("run", "-it", "--detach-keys", "ctrl-a", "base", "sh") == (0, "", "")
    assert engine.containers[0].state.running
    assert engine.containers[0].attachments[0].streams.detach_keys == b"\x01"
    assert caller.raw == [True, False]


# -- signals ---------------------------------------------------------------------------------------


def test_signals_of_the_caller_reach_the_program(caller: Caller, engine: FakeEngine) -> None:
    def behave(container: FakeContainer) -> None:
        assert caller.session is not None
        caller.session.events.signal(signal.SIGUSR1)
        caller.session.events.signal(signal.SIGTERM)

    engine.behave = behave
    engine.on_kill = lambda container, number: container.end(143) if number == 15 else None
    assert caller("run", "base", "sh")[0] == 143
    assert engine.containers[0].calls[1:] == [("kill", signal.SIGUSR1), ("kill", signal.SIGTERM)]
    assert caller.left == []


def test_signals_that_come_before_the_start_are_passed_on_after_it(
    caller: Caller, engine: FakeEngine
) -> None:
    engine.behave = lambda _container: None
    engine.on_kill = lambda container, _number: container.end(130)
    with caller.opened() as session:
        session.events.signal(signal.SIGINT)
        assert main.run(session, ["run", "base", "sh"]) == 130
    assert engine.containers[0].calls == [("start",), ("kill", signal.SIGINT)]


def test_without_the_proxy_a_signal_ends_the_caller_alone(
    caller: Caller, engine: FakeEngine
) -> None:
    def behave(_container: FakeContainer) -> None:
        assert caller.session is not None
        caller.session.events.signal(signal.SIGWINCH)
        caller.session.events.signal(signal.SIGINT)

    engine.behave = behave
    assert caller("run", "--sig-proxy=false", "base", "sh")[0] == 130
    assert engine.containers[0].state.running
    assert engine.containers[0].calls == [("start",)]


def test_a_signal_for_a_program_that_has_just_ended_is_no_error(
    caller: Caller, engine: FakeEngine
) -> None:
    def behave(container: FakeContainer) -> None:
        assert caller.session is not None
        container.state = container.state.__class__()
        caller.session.events.signal(signal.SIGTERM)
        container.end(0)

    engine.behave = behave
    assert caller("run", "base", "sh") == (0, "", "")


def test_the_end_of_the_client_leaves_the_container_running(
    caller: Caller, engine: FakeEngine
) -> None:
    def behave(_container: FakeContainer) -> None:
        assert caller.session is not None
        caller.session.events.hang_up()

    engine.behave = behave
    assert caller("run", "base", "sh")[0] == 141
    assert engine.containers[0].state.running


def test_a_broken_output_ends_the_caller_as_sigpipe_would(
    caller: Caller, engine: FakeEngine
) -> None:
    engine.behave = lambda container: container.attachments[0].finish(AttachmentEnd.BROKEN)
    assert caller("run", "base", "yes") == (141, "", "")


def test_many_callers_at_once_do_not_meet(tmp_path: Path) -> None:
    outcomes: dict[int, tuple[int, str, str]] = {}

    def one(number: int) -> None:
        directory = tmp_path / str(number)
        os.mkdir(directory)
        engine = FakeEngine(behave=lambda container: container.end(number))
        words = ["-e", f"N={number}"] * number
        outcomes[number] = Caller(engine, directory)("run", "--rm", *words, "base", "ls")
        assert engine.containers[0].config.env == ((f"N={number}",) if number else ())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert outcomes == {number: (number, "", "") for number in range(16)}


@pytest.mark.parametrize("words", ["", "-i", "-a stdin", "-a=false"])
def test_a_caller_with_all_streams_closed_gets_the_exit_code(
    words: str, engine: FakeEngine
) -> None:
    engine.behave = lambda container: container.end(5)
    cwd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session = Session(runtime=engine, cwd=cwd, uid=0, gid=0)
        assert main.run(session, ["run", *words.split(), "base", "ls"]) == 5
    finally:
        os.close(cwd)
    assert engine.containers[0].attachments == []


def test_a_caller_with_all_streams_closed_can_leave(engine: FakeEngine) -> None:
    engine.behave = lambda _container: None
    cwd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session = Session(runtime=engine, cwd=cwd, uid=0, gid=0)
        session.events.hang_up()
        assert main.run(session, ["run", "base", "ls"]) == 141
    finally:
        os.close(cwd)
    assert engine.containers[0].state.running
