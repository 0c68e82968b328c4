"""run and create: a new container from an image."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Unpack

from dockpy.cli import flags, options
from dockpy.cli.command import Command, Operand, Option, Switch
from dockpy.cli.engine import EngineAttachment, EngineContainer
from dockpy.cli.foreground import require_terminal, start_connected, stay, streams
from dockpy.cli.registry import pull_for_run
from dockpy.cli.request import Caller, RunValues, absolute_source, attached_streams, make_config
from dockpy.cli.session import Session
from dockpy.errors import DockpyError, NoSuchImage, RequestError
from dockpy.model import Config
from dockpy.network.ports import parse_expose, parse_publish
from dockpy.signals import parse_signal
from dockpy.supervision import Streams
from dockpy.trace import DAEMON
from dockpy.ulimits import parse as parse_ulimit
from dockpy.volumes import parse_mount, parse_tmpfs, parse_volume

log = logging.getLogger(__name__)


def run_command(session: Session, **values: Unpack[RunValues]) -> int:
    """Start a new container and stay connected to it, or with -d print its id."""
    session.show_trace |= values["trace"]
    config = config_of(session, values)
    wanted = attached_streams(values)
    if not values["detach"]:
        require_terminal(session, config, wanted)
    ends = streams(session, config, wanted, values["detach_keys"])
    container = make(session, values, config)

    def start(attach: Sequence[Streams] = ()) -> Sequence[EngineAttachment]:
        try:
            return container.start(attach, trace=session.trace)
        except BaseException:
            discard(session, container, values["cidfile"])
            raise

    if values["detach"]:
        start()
        session.write(f"{container.id}\n")
        return 0
    if "stdout" not in wanted and "stderr" not in wanted:
        session.write(f"{container.id}\n")
    return stay(
        session,
        container,
        lambda: start_connected(container, start, ends),
        wanted,
        sig_proxy=values["sig_proxy"],
    )


def create_command(session: Session, **values: Unpack[RunValues]) -> int:
    """Make a container and print its id."""
    session.show_trace |= values["trace"]
    config = config_of(session, values)
    session.write(f"{make(session, values, config).id}\n")
    return 0


def config_of(session: Session, values: RunValues) -> Config:
    """The container asked for, with the caller's files and directory at hand."""
    binds = tuple(
        parse_volume(absolute_source(text, session.directory)) for text in values["volume"]
    )
    caller = Caller(session.env, session.directory, session.read_file)
    return make_config(values, caller, binds)


def make(session: Session, values: RunValues, config: Config) -> EngineContainer:
    """A new container, its id in the --cidfile."""
    with id_file(session, values["cidfile"]) as descriptor:
        container = create_pulled(session, values, config)
        if descriptor >= 0:
            os.write(descriptor, container.id.encode())
    return container


def create_pulled(session: Session, values: RunValues, config: Config) -> EngineContainer:
    """The engine's container, its image pulled first as --pull says."""
    image, name, policy = values["image"], values["name"], values["pull"]
    if policy != "always":
        try:
            return session.runtime.create(config, name, trace=session.trace)
        except NoSuchImage as error:
            if policy == "never":
                hint = f"pull it: dockpy pull {image}"
                raise NoSuchImage(image, hint) from error
    pulled = pull_for_run(session, image, quiet=values["quiet"])
    session.trace.mark(DAEMON, "image pulled")
    return session.runtime.create(config.with_(image=pulled), name, trace=session.trace)


def discard(session: Session, container: EngineContainer, cidfile: str | None) -> None:
    """Take back a container that could not be started: it never ran and holds nothing."""
    try:
        session.runtime.destroy(container, force=True)
    except DockpyError:
        log.exception("container %s did not start and cannot be removed", container.id)
    if cidfile is not None:
        session.unlink(cidfile)


@contextlib.contextmanager
def id_file(session: Session, path: str | None) -> Iterator[int]:
    """A new file for the id (-1: not asked for); removed again when the container is not made."""
    if path is None:
        yield -1
        return
    try:
        descriptor = session.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except RequestError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise RequestError(f"--cidfile {path} exists already; remove it first") from error
        raise
    try:
        yield descriptor
    except BaseException:
        session.unlink(path)
        raise
    finally:
        os.close(descriptor)


def parse_published(text: str) -> str:
    """The text itself, when it says which ports."""
    parse_publish(text)
    return text


def parse_stop_signal(text: str) -> str:
    """The text itself, when it names a signal."""
    parse_signal(text)
    return text


def make_options() -> list[Option | Operand]:
    """The options of run and create."""
    return [
        Option(
            "--add-host",
            help="Add a line to /etc/hosts",
            parse=flags.parse_host_entry,
            metavar="NAME:ADDRESS",
            multiple=True,
        ),
        Option(
            "-a",
            "--attach",
            help="Connect stdin, stdout or stderr (repeatable; default: both outputs)",
            parse=flags.parse_streams,
            metavar="STREAM",
            multiple=True,
        ),
        Option(
            "--blkio-weight",
            help="Block IO weight, 10 to 1000",
            parse=flags.parse_count,
            metavar="N",
            default=0,
        ),
        Option("--cap-add", help="Add a capability, or ALL", metavar="NAME", multiple=True),
        Option("--cap-drop", help="Drop a capability, or ALL", metavar="NAME", multiple=True),
        Option("--cidfile", help="Write the container's id to a new file", metavar="FILE"),
        Option(
            "-c",
            "--cpu-shares",
            help="CPU weight, 2 to 262144 (1024 is normal)",
            parse=flags.parse_count,
            metavar="N",
            default=0,
        ),
        Option(
            "--cpus",
            help="Number of CPUs, such as 0.5",
            parse=flags.parse_cpus,
            metavar="N",
            default=0.0,
        ),
        Option(
            "--cpuset-cpus",
            help="CPUs to run on, such as 0-2,5",
            parse=flags.parse_cpu_list,
            metavar="LIST",
            default="",
        ),
        Option(
            "--cpuset-mems",
            help="Memory nodes to use, such as 0,1",
            parse=flags.parse_cpu_list,
            metavar="LIST",
            default="",
        ),
        Switch("-d", "--detach", help="Leave it running in the background and print its id"),
        options.detach_keys(),
        Option(
            "--device",
            help="Give it a device of the host",
            metavar="PATH[:PATH][:rwm]",
            multiple=True,
        ),
        Option(
            "--dns",
            help="Address of a name server",
            parse=flags.parse_address,
            metavar="ADDRESS",
            multiple=True,
        ),
        Option(
            "--dns-opt",
            "--dns-option",
            "dns_opt",
            help="Option of /etc/resolv.conf, such as ndots:2",
            metavar="OPTION",
            multiple=True,
        ),
        Option("--dns-search", help="Domain to search names in", metavar="DOMAIN", multiple=True),
        Option(
            "--domainname",
            help="Domain name of the container",
            parse=flags.parse_hostname,
            metavar="NAME",
            default="",
        ),
        Option(
            "--entrypoint",
            help="Program to run instead of the image's entry point (empty: none)",
            metavar="PROGRAM",
        ),
        options.environment(),
        options.env_file(),
        Option(
            "--expose",
            help="Name a port that -P publishes",
            parse=parse_expose,
            metavar="PORT[/PROTOCOL]",
            multiple=True,
        ),
        Option(
            "-h",
            "--hostname",
            help="Host name of the container (default: its short id)",
            parse=flags.parse_hostname,
            metavar="NAME",
            default="",
        ),
        Switch("--cgroup-view", help="Show it its own cgroups, read-only, on cgroup v1 too"),
        Switch("--init", help="Run a small init as process 1 that reaps orphans"),
        Option(
            "--ip",
            help="Its IPv4 address, in a network you made",
            parse=flags.parse_address4,
            metavar="ADDRESS",
            default="",
        ),
        Switch("-i", "--interactive", help="Keep stdin open, and connect it unless -d or -a"),
        Option(
            "-l",
            "--label",
            help="Set a label",
            parse=flags.parse_label,
            metavar="KEY[=VALUE]",
            multiple=True,
        ),
        Option(
            "--link",
            help="Find another container by a name of your choice",
            parse=flags.parse_link,
            metavar="NAME[:ALIAS]",
            multiple=True,
        ),
        Option("--label-file", help="Read labels from a file", metavar="FILE", multiple=True),
        Option(
            "--log-opt",
            help="max-size=SIZE (rotate the log) or max-file=N",
            parse=flags.parse_log_option,
            metavar="KEY=VALUE",
            multiple=True,
        ),
        Option(
            "--mac-address",
            help="The address of its link",
            parse=flags.parse_hardware,
            metavar="ADDRESS",
            default="",
        ),
        Option(
            "-m",
            "--memory",
            help="Memory limit, such as 512m",
            parse=flags.parse_memory,
            metavar="SIZE",
            default=0,
        ),
        Option(
            "--memory-reservation",
            help="Memory it keeps when memory is short",
            parse=flags.parse_memory,
            metavar="SIZE",
            default=0,
        ),
        Option(
            "--memory-swap",
            help="Limit of memory and swap together (-1: no limit)",
            parse=flags.parse_memory_or_unlimited,
            metavar="SIZE",
            default=0,
        ),
        Option(
            "--mount",
            help="As --volume or --tmpfs, in words: type=bind,source=/A,target=/B[,readonly]",
            parse=parse_mount,
            metavar="WORDS",
            multiple=True,
        ),
        Option("--name", help="Name of the container (default: a random one)", metavar="NAME"),
        Option(
            "--net",
            "--network",
            "network",
            help="bridge (default), none, host, container:NAME, or a network you made",
            parse=flags.parse_network,
            metavar="NETWORK",
            default="bridge",
        ),
        Option(
            "--network-alias",
            "--net-alias",
            "network_alias",
            help="One more name for it in its network",
            parse=flags.parse_alias,
            metavar="NAME",
            multiple=True,
        ),
        Option(
            "--oom-score-adj",
            help="OOM preference, -1000 to 1000",
            parse=flags.parse_oom_score,
            metavar="N",
            default=0,
        ),
        Option(
            "--pids-limit",
            help="Most processes and threads it may have (-1: no limit)",
            parse=int,
            metavar="N",
        ),
        Option(
            "-p",
            "--publish",
            help="Let a port of the host lead to one of the container, such as 8080:80",
            parse=parse_published,
            metavar="[ADDRESS:][PORT:]PORT[/PROTOCOL]",
            multiple=True,
        ),
        Switch("-P", "--publish-all", help="Publish every exposed port on a free one of the host"),
        Switch("--privileged", help="Give it nearly all rights of the host's root"),
        Option(
            "--pull",
            help="missing, never or always (default: missing)",
            parse=flags.parse_pull,
            metavar="WHEN",
            default="missing",
        ),
        Switch("-q", "--quiet", help="Show no progress of a pull"),
        Switch("--read-only", help="Make its root file system read-only"),
        Switch("--rm", help="Remove it when its program ends"),
        Option(
            "--security-opt",
            help="seccomp=FILE|unconfined or no-new-privileges[=true|false]",
            parse=flags.parse_security_option,
            metavar="KEY=VALUE",
            multiple=True,
        ),
        Option(
            "--shm-size",
            help="Size of /dev/shm (default 64m)",
            parse=flags.parse_shm_size,
            metavar="SIZE",
            default=Config().shm_size,
        ),
        options.sig_proxy(),
        Option(
            "--stop-signal",
            help="Signal that asks it to stop (default TERM)",
            parse=parse_stop_signal,
            metavar="SIGNAL",
            default="",
        ),
        Option(
            "--stop-timeout",
            help="Seconds 'stop' waits before it kills (default 10)",
            parse=flags.parse_seconds,
            metavar="SECONDS",
        ),
        Option(
            "--tmpfs",
            help="Mount an empty file system in memory",
            parse=parse_tmpfs,
            metavar="PATH[:OPTIONS]",
            multiple=True,
        ),
        Switch("--trace", help="Tell on standard error when each step of the start was done"),
        Switch("-t", "--tty", help="Give it a terminal"),
        Option(
            "--ulimit",
            help="Resource limit, such as nofile=1024:2048",
            parse=parse_ulimit,
            metavar="NAME=SOFT[:HARD]",
            multiple=True,
        ),
        options.user(),
        Option(
            "-v",
            "--volume",
            help="Show a file or directory of the host inside",
            metavar="SOURCE:TARGET[:ro]",
            multiple=True,
        ),
        options.workdir(),
        Operand("image", "image"),
        Operand("words", "program or argument", many=True, required=False),
    ]


run = Command(
    "run",
    "Start a program in a new container.\n\n"
    "Options end at the image; everything after it belongs to the program. The exit code is the "
    "program's own; 125: dockpy could not do it, 126: not executable, 127: no such program.",
    run_command,
    make_options(),
    interspersed=False,
    failure=None,
    interruptible=True,
)
create = Command(
    "create",
    "Make a container without starting it.\n\nThe options are those of run.",
    create_command,
    make_options(),
    interspersed=False,
    failure=None,
)
