"""exec: one more program in a container that runs."""

from __future__ import annotations

from dockpy.cli import options
from dockpy.cli.command import Command, Operand, Switch
from dockpy.cli.foreground import require_terminal, start_connected, stay, streams
from dockpy.cli.request import Caller, environment
from dockpy.cli.session import Session
from dockpy.errors import UsageError
from dockpy.model import Exec


def exec_command(
    session: Session,
    *,
    container: str,
    words: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive: bool,
    privileged: bool,
    sig_proxy: bool,
    tty: bool,
    user: str,
    workdir: str,
) -> int:
    """Start it and stay connected to it, or with -d leave it alone."""
    if not words[0]:
        raise UsageError("the program's name is empty")
    caller = Caller(session.env, session.directory, session.read_file)
    execution = session.runtime.get(container).execute(
        Exec(
            cmd=words,
            env=environment(env_file, env, caller),
            user=user,
            working_dir=workdir,
            tty=tty,
            open_stdin=interactive and not detach,
            privileged=privileged,
        )
    )
    if detach:
        execution.start()
        return 0
    outputs = ("stdout", "stderr")
    wanted = ("stdin", *outputs) if interactive else outputs
    require_terminal(session, execution.config, wanted)
    ends = streams(session, execution.config, wanted, detach_keys)
    return stay(
        session,
        execution,
        lambda: start_connected(execution, execution.start, ends),
        wanted,
        sig_proxy=sig_proxy,
        lasting=False,
    )


exec_ = Command(
    "exec",
    "Start one more program in a running container.\n\n"
    "Options end at the container; everything after its name belongs to the program, which gets "
    "the container's isolation and limits and ends with it. The exit code is the program's own; "
    "125: dockpy could not do it, 126: not executable, 127: no such program.",
    exec_command,
    [
        Switch("-d", "--detach", help="Do not stay connected"),
        options.detach_keys(),
        options.environment(),
        options.env_file(),
        Switch("-i", "--interactive", help="Keep its stdin open and connect to it"),
        Switch("--privileged", help="All capabilities, no seccomp filter"),
        options.sig_proxy(),
        Switch("-t", "--tty", help="Give it a terminal"),
        options.user(),
        options.workdir(),
        Operand("container", "container"),
        Operand("words", "program or argument", many=True),
    ],
    interspersed=False,
    failure=None,
    interruptible=True,
)
