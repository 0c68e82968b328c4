"""The verbs for containers that exist: what they call, print and leave with."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_engine import NOW, Caller, FakeContainer, FakeEngine
from dockpy.cli import main
from dockpy.errors import Conflict
from dockpy.model import Config, State, Status
from dockpy.supervision import AttachmentEnd


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(behave=lambda _container: None)


@pytest.fixture
def caller(engine: FakeEngine, tmp_path: Path) -> Caller:
    return Caller(engine, tmp_path)


def add(engine: FakeEngine, name: str, *, running: bool = True, **config: Any) -> FakeContainer:
    container = engine.create(Config(image="base", cmd=("sleep", "9"), **config), name)
    if running:
        container.state = State(status=Status.RUNNING, pid=7, started_at=NOW)
    return container


# -- start stop restart kill rm --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("stop one", ("stop", None)),
        ("stop -t 3 one", ("stop", 3.0)),
        ("stop -t=3 one", ("stop", 3.0)),
        ("stop --time 0 one", ("stop", 0.0)),
        ("stop --timeout -1 one", ("stop", -1.0)),
        ("stop one -t 3", ("stop", 3.0)),
        ("restart one", ("restart", None)),
        ("restart -t 5 one", ("restart", 5.0)),
        ("kill one", ("kill", signal.SIGKILL)),
        ("kill -s HUP one", ("kill", signal.SIGHUP)),
        ("kill --signal=SIGUSR1 one", ("kill", signal.SIGUSR1)),
        ("kill -s 15 one", ("kill", signal.SIGTERM)),
    ],
)
def test_a_move_reaches_the_container_and_its_name_is_printed(
    words: str, call: tuple[Any, ...], caller: Caller, engine: FakeEngine
) -> None:
    container = add(engine, "one")
    assert caller(*words.split()) == (0, "one\n", "")
    assert container.calls == [call]


def test_each_container_has_its_own_outcome_in_the_order_given(
    caller: Caller, engine: FakeEngine
) -> None:
    for name in ("one", "two", "three"):
        add(engine, name)
    code, output, errors = caller("stop", "three", "nope", "one", "other", "two")
    assert (code, output) == (1, "three\none\ntwo\n")
    assert errors == "dockpy: no such container: nope\ndockpy: no such container: other\n"


def test_several_containers_are_stopped_at_the_same_time(
    caller: Caller, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(3, timeout=10)
    monkeypatch.setattr(FakeContainer, "stop", lambda *_: meeting.wait())
    for name in ("one", "two", "three"):
        add(engine, name)
    assert caller("stop", "one", "two", "three") == (0, "one\ntwo\nthree\n", "")


def test_start_leaves_a_running_container_alone(caller: Caller, engine: FakeEngine) -> None:
    stopped, running = add(engine, "one", running=False), add(engine, "two")
    assert caller("start", "one", "two") == (0, "one\ntwo\n", "")
    assert (stopped.calls, running.calls) == ([("start",)], [])


def test_start_attached_leaves_with_the_programs_exit_code(
    caller: Caller, engine: FakeEngine
) -> None:
    container = add(engine, "one", running=False, open_stdin=True)
    engine.behave = lambda found: found.end(5)
    caller.stdin = 77
    assert caller("start", "-ai", "one") == (5, "", "")
    assert container.attachments[0].streams.stdin == 77


def test_start_attaches_to_one_container_only(caller: Caller, engine: FakeEngine) -> None:
    code, _, errors = caller("start", "-a", "one", "two")
    assert (code, errors.count("\n")) == (125, 1)
    assert "one container only" in errors


def test_start_with_stdin_needs_a_container_made_with_it(
    caller: Caller, engine: FakeEngine
) -> None:
    add(engine, "one", running=False)
    code, _, errors = caller("start", "-i", "one")
    assert code == 125
    assert "was made without -i" in errors


def test_rm_removes_stopped_containers_and_forced_running_ones(
    caller: Caller, engine: FakeEngine
) -> None:
    for name in ("one", "two"):
        add(engine, name, running=name == "two")
    assert caller("rm", "-v", "one") == (0, "one\n", "")
    code, output, errors = caller("rm", "two")
    assert (code, output) == (1, "")
    assert errors == "dockpy: container two is running; stop it first, or use rm -f\n"
    assert caller("rm", "-fv", "two")[0] == 0
    assert engine.containers == []


def test_an_interrupted_stop_goes_on_without_its_caller(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one")
    with caller.opened() as session:
        session.events.signal(signal.SIGINT)
        assert main.run(session, ["stop", "one"]) == 0
        session.events.signal(signal.SIGTERM)
        session.events.signal(signal.SIGUSR1)
    assert caller.left == [130, 143]
    assert container.calls == [("stop", None)]


# -- wait ------------------------------------------------------------------------------------------


def test_wait_prints_the_exit_codes(caller: Caller, engine: FakeEngine) -> None:
    one, two = add(engine, "one"), add(engine, "two", running=False)
    two.state = State(status=Status.EXITED, exit_code=7)
    threading.Timer(0.01, one.end, [3]).start()
    assert caller("wait", "one", "two") == (0, "3\n7\n", "")


def test_wait_knows_what_a_removed_container_left_with(caller: Caller, engine: FakeEngine) -> None:
    engine.gone["f" * 64] = 9
    code, output, errors = caller("wait", "f" * 64, "nope")
    assert (code, output, errors) == (1, "9\n", "dockpy: no such container: nope\n")


def test_wait_ends_with_the_signal_its_caller_got(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one")
    with caller.opened() as session:
        session.events.signal(signal.SIGINT)
        assert main.run(session, ["wait", "one"]) == 130
    assert container.calls == []


# -- attach ----------------------------------------------------------------------------------------


def test_attach_stays_until_the_program_ends(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one", open_stdin=True)
    caller.stdin = 77
    engine.behave = lambda found: found.end(4)
    assert caller("attach", "one") == (4, "", "")
    assert container.attachments[0].streams.stdin == 77


def test_attach_without_stdin_connects_the_outputs(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one", open_stdin=True)
    caller.stdin = 77
    engine.behave = lambda found: found.end(0)
    caller("attach", "--no-stdin", "one")
    assert container.attachments[0].streams.stdin == -1


def test_attach_to_a_terminal_has_it_drawn_anew_and_can_be_left(
    caller: Caller, engine: FakeEngine
) -> None:
    container = add(engine, "one", open_stdin=True, tty=True)
    caller.stdin, caller.stdin_tty, caller.window = 77, True, (24, 80)
    engine.behave = lambda found: found.attachments[0].finish(AttachmentEnd.DETACHED)
    assert caller("attach", "--detach-keys", "ctrl-x,x", "one") == (0, "", "")
    assert container.attachments[0].streams.detach_keys == b"\x18x"
    assert container.sizes == [(25, 81), (24, 80)]
    assert caller.raw == [True, False]
    assert container.state.running


def test_attach_to_a_stopped_container_says_what_to_do(caller: Caller, engine: FakeEngine) -> None:
    add(engine, "one", running=False)
    assert caller("attach", "one") == (
        1,
        "",
        "dockpy: container one is not running; start it first\n",
    )


# -- logs ------------------------------------------------------------------------------------------


def test_logs_go_to_the_streams_they_came_from(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one")
    assert caller("logs", "one") == (0, "out\n", "err\n")
    assert container.log_calls == [
        {
            "since": None,
            "until": None,
            "tail": None,
            "timestamps": False,
            "follow": False,
            "stop": None,
        }
    ]


@pytest.mark.parametrize(
    ("words", "selection"),
    [
        ("-n 5 one", {"tail": 5}),
        ("--tail 5 one", {"tail": 5}),
        ("--tail=all one", {"tail": None}),
        ("--tail 0 one", {"tail": 0}),
        ("-n -1 one", {"tail": None}),
        ("one -t", {"timestamps": True}),
        ("--timestamps one", {"timestamps": True}),
        ("--since 1700000000 one", {"since": 1_700_000_000.0}),
        ("--since 2026-01-02T03:04:05.5Z one", {"since": 1_767_323_045.5}),
        ("--until 1700000000.25 one", {"until": 1_700_000_000.25}),
        ("-f one", {"follow": True}),
        ("one --follow", {"follow": True}),
    ],
)
def test_the_options_of_logs_select(
    words: str, selection: dict[str, Any], caller: Caller, engine: FakeEngine
) -> None:
    container = add(engine, "one")
    assert caller("logs", *words.split())[0] == 0
    assert {name: container.log_calls[0][name] for name in selection} == selection


def test_following_a_stopped_container_ends(caller: Caller, engine: FakeEngine) -> None:
    container = add(engine, "one", running=False)
    assert caller("logs", "-f", "one")[0] == 0
    assert container.log_calls[0]["follow"] is False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_following_stops_when_the_caller_is_interrupted(
    number: int, code: int, caller: Caller, engine: FakeEngine
) -> None:
    container = add(engine, "one")

    def on_log(_container: FakeContainer, selection: dict[str, Any]) -> None:
        assert caller.session is not None
        caller.session.events.signal(number)
        assert os.eventfd_read(selection["stop"]) == 1

    engine.on_log = on_log
    assert caller("logs", "-f", "one")[0] == code
    assert container.calls == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("logs --since soon one", "--since 'soon'"),
        ("logs --since 2026-13-01 one", "--since '2026-13-01'"),
        ("logs --tail some one", "--tail 'some'"),
        ("logs", "it needs a container"),
        ("logs one two", "unexpected argument 'two'"),
        ("kill -s NOPE one", "-s 'NOPE'"),
        ("stop -t soon one", "-t 'soon': a number expected"),
        ("stop", "it needs at least one container"),
        ("ps --filter colour=red", "unknown; there are ancestor"),
        ("ps --filter status", "key=value expected"),
        ("ps --filter status=lost", "there are created, running"),
        ("ps --filter exited=x", "an exit code expected"),
        ("ps --filter name=[", "--filter '['"),
        ("ps --format {{.Nope}}", "there is no field Nope"),
        ("ps --format {{", "not closed"),
        ("ps -n x", "a number expected"),
        ("ps one", "unexpected argument 'one'"),
        ("inspect", "it needs at least one container or image"),
        ("inspect --type volume x", "container or image expected"),
        ("images --filter dangling=maybe", "true or false expected"),
        ("import", "it needs a file"),
        ("import - Bad", "it must be lower case"),
        ("import --change RUN=x - x", "is not one of CMD"),
        ("tag one", "it needs a repository"),
        ("info -f {{.X}}", "there is no field X"),
        ("version extra", "unexpected argument 'extra'"),
        ("rm --forse x", "unknown flag --forse; did you mean --force?"),
    ],
)
def test_usage_errors_are_one_line_and_125(
    words: str, expected: str, caller: Caller, engine: FakeEngine
) -> None:
    add(engine, "one")
    code, output, errors = caller(*words.split())
    assert (code, output) == (125, "")
    assert errors.startswith("dockpy: ")
    assert errors.endswith(f"; see 'dockpy {words.split(maxsplit=1)[0]} --help'\n")
    assert errors.count("\n") == 1
    assert expected in errors


# -- help, versions, unknown -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_verb_has_help_that_names_its_options(name: str, caller: Caller) -> None:
    code, output, errors = caller(name, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith(f"Usage: dockpy {name} ")
    for option in main.COMMANDS[name].options:
        assert all(spelling in output for spelling in option.opts)
        assert option.help
    assert caller("help", name) == (0, output, "")


def test_help_lists_all_verbs(caller: Caller) -> None:
    code, output, _ = caller("--help")
    assert code == 0
    assert [line[2:].split("  ")[0] for line in output.splitlines() if line.startswith("  ")][
        : len(main.COMMANDS)
    ] == sorted(main.COMMANDS)
    assert caller() == caller("help") == (0, output, "")


def test_h_is_help_where_it_has_no_other_meaning(caller: Caller) -> None:
    assert caller("ps", "-h") == caller("ps", "--help")
    assert caller("run", "-h")[0] == 125


def test_help_after_the_image_belongs_to_the_program(caller: Caller, engine: FakeEngine) -> None:
    caller("create", "base", "ls", "--help")
    assert engine.containers[0].config.cmd == ("ls", "--help")


def test_an_unknown_verb_is_one_clear_line(caller: Caller) -> None:
    assert caller("xyz") == (
        125,
        "",
        "dockpy: 'xyz' is not a dockpy command; see dockpy --help\n",
    )
    assert "did you mean stop?" in caller("stpo")[2]
    assert caller("build")[2].startswith("dockpy: 'build' is not a dockpy command")
    assert caller("--nope")[2] == "dockpy: unknown flag --nope; see dockpy --help\n"
    assert caller("help", "xyz")[0] == 125


def test_version_in_its_three_forms(caller: Caller) -> None:
    assert caller("--version") == (0, "dockpy version 0.1.0\n", "")
    assert caller("version", "--format", "{{.Server.Version}}")[1] == "0.1.0\n"
    assert caller("version")[1].startswith("Client: dockpy\n Version:        0.1.0\n")


def test_info_tells_what_the_engine_looks_after(caller: Caller) -> None:
    output = caller("info")[1]
    for line in ("Containers: 3", " Running: 1", "Images: 2", "CPUs: 2", "WARNING: a warning"):
        assert f"{line}\n" in output
    assert caller("info", "-f", "{{.ContainersStopped}}")[1] == "2\n"
    assert caller("info", "-f", "json")[1].startswith('{"Containers":3,')


def test_the_daemon_verb_never_starts_one_inside_another(caller: Caller) -> None:
    for words in (("daemon",), ("-d",), ("-d=true",)):
        code, _, errors = caller(*words)
        assert code == 1
        assert f"the daemon with pid {os.getpid()} serves /var/lib/dockpy already" in errors


# -- failures nobody foresaw -----------------------------------------------------------------------


def test_an_unforeseen_failure_is_one_line_and_a_traceback_in_the_log(
    caller: Caller,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(engine, "list", explode)
    assert caller("ps") == (
        125,
        "",
        "dockpy: internal error: ValueError: two lines; the daemon's log says more\n",
    )
    assert "in explode" in caplog.text


def test_an_engine_error_of_many_lines_becomes_one(
    caller: Caller, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Conflict("a\nb")

    monkeypatch.setattr(engine, "list", refuse)
    assert caller("ps") == (1, "", "dockpy: a b\n")


def test_a_caller_without_streams_still_gets_the_exit_code(engine: FakeEngine) -> None:
    from dockpy.cli.session import Session

    cwd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session = Session(runtime=engine, cwd=cwd, uid=0, gid=0)
        assert main.run(session, ["ps"]) == 0
        assert main.run(session, ["nope"]) == 125
    finally:
        os.close(cwd)


def test_a_reader_that_went_away_ends_the_command_quietly(
    caller: Caller, engine: FakeEngine
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with caller.opened() as session:
        assert main.run(replace_stdout(session, writer), ["ps"]) == 141
    os.close(writer)


def replace_stdout(session: Any, descriptor: int) -> Any:
    return replace(session, stdout=descriptor)


def test_a_full_pipe_is_waited_for_also_when_it_does_not_block(
    caller: Caller, engine: FakeEngine
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = "x" * (1 << 20)
    received: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            received.append(chunk)

    thread = threading.Thread(target=read)
    with caller.opened() as session:
        thread.start()
        replace_stdout(session, writer).write(text)
    os.close(writer)
    thread.join(10)
    os.close(reader)
    assert b"".join(received).decode() == text
