"""Hostile images and hostile programs against a whole engine: none of them reaches the host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dockpy import Bind, Config
from dockpy.errors import DockpyError
from patience import patient
from roots import pack

if TYPE_CHECKING:
    from dockpy import Container, Runtime

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

Hostile = Callable[[Callable[[Path], None]], str]


@pytest.fixture
def engine(module_engine: Runtime) -> Runtime:
    """One engine for all attacks: the second must not find a door the first one opened."""
    return module_engine


@pytest.fixture
def hostile(engine: Runtime, tiny_root: Path, tmp_path: Path) -> Hostile:
    """Makes an image of the tiny root with some changes; its name."""

    def make(change: Callable[[Path], None]) -> str:
        root = tmp_path / "hostile"
        shutil.copytree(tiny_root, root, symlinks=True)
        change(root)
        with open(pack(root, tmp_path / "hostile.tar"), "rb") as archive:
            engine.import_image(archive, "hostile")
        return "hostile"

    return make


def shell(engine: Runtime, script: str, image: str = "base", **settings: object) -> str:
    """What a script in a new container writes; the container is removed."""
    container = engine.create(Config(image=image, cmd=("/bin/sh", "-c", script), **settings))  # type: ignore[arg-type]
    return output(engine, container)


def output(engine: Runtime, container: Container) -> str:
    try:
        return container.output().decode(errors="replace")
    finally:
        engine.destroy(container, force=True)


def replace_with_link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_an_entrypoint_that_is_the_engines_own_program_cannot_change_a_host_file(
    engine: Runtime, hostile: Hostile
) -> None:
    def change(root: Path) -> None:
        (root / "evil").write_text("#!/proc/self/exe\n")
        (root / "evil").chmod(0o755)

    interpreter = os.path.realpath(sys.executable)
    before = digest(interpreter)
    image = hostile(change)
    for argv in (("/evil",), ("/proc/self/exe",), ("/proc/self/exe", "-c", "pass")):
        container = engine.create(Config(image=image, cmd=argv))
        try:
            with contextlib.suppress(DockpyError):
                container.start()
                assert container.wait(patient(30)) != 0
        finally:
            engine.destroy(container, force=True)
    assert digest(interpreter) == before


def test_the_engines_program_cannot_be_written_through_proc(engine: Runtime) -> None:
    # Process 1 execs the shell; its parent, the supervisor, is outside the process namespace.
    found = shell(engine, "for p in /proc/[0-9]*; do readlink $p/exe; done; echo $(ls /proc/1/fd)")
    assert "python" not in found
    assert "memfd" not in found


def test_no_working_directory_leads_out(engine: Runtime) -> None:
    script = "cat ../../../../../../../../../../etc/passwd; pwd"
    for number in range(256):
        directory = f"/proc/self/fd/{number}"
        try:
            found = shell(engine, script, working_dir=directory)
        except DockpyError:
            continue
        assert "a worker" in found, f"{directory} led to {found!r}"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("dev", "/escape"),
        ("proc", "/escape"),
        ("sys", "/escape"),
        ("etc", "/escape"),
        ("etc/resolv.conf", "/escape/file"),
        ("etc/hosts", "../../../../../../../../escape/file"),
        ("dev/null", "/escape/file"),
        ("dev/shm", "/escape"),
        ("dev/pts", "/escape"),
        ("proc", "."),
        ("tmp", "/proc/self/root/escape"),
    ],
)
def test_links_of_an_image_never_lead_a_mount_to_the_host(
    engine: Runtime, hostile: Hostile, tmp_path: Path, path: str, target: str
) -> None:
    """The target exists on the host: whatever were mounted or made there would be seen."""
    escape = tmp_path / "escape"
    escape.mkdir()
    (escape / "file").write_text("untouched\n")
    target = target.replace("/escape", str(escape))
    image = hostile(lambda root: replace_with_link(root / path, target))
    before = Path("/proc/self/mountinfo").read_text()
    config = Config(image=image, cmd=("/bin/true",), tmpfs={"/tmp": ""} if path == "tmp" else {})
    container = engine.create(config)
    try:
        with contextlib.suppress(DockpyError):  # refused is as good
            container.start()
            container.wait(patient(30))
    finally:
        engine.destroy(container, force=True)
    assert os.listdir(escape) == ["file"]
    assert (escape / "file").read_text() == "untouched\n"
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_bind_target_that_is_a_link_stays_inside(
    engine: Runtime, hostile: Hostile, tmp_path: Path
) -> None:
    escape = tmp_path / "escape"
    escape.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("bound\n")
    image = hostile(lambda root: (root / "out").symlink_to(escape))
    config = Config(
        image=image, cmd=("/bin/cat", "/out/below/file"), binds=(Bind(str(source), "/out/below"),)
    )
    with contextlib.suppress(DockpyError):
        assert output(engine, engine.create(config)) == "bound\n"
    assert os.listdir(escape) == []


def test_a_bind_target_raced_through_a_link_never_lands_on_the_host(
    engine: Runtime, tmp_path: Path
) -> None:
    """Another container swaps a directory for a link in a volume that both share."""
    shared, escape, source = tmp_path / "shared", tmp_path / "escape", tmp_path / "source"
    for directory in (shared, escape, source):
        directory.mkdir()
    (shared / "real").mkdir()
    swap = (
        f"cd /shared; mkdir a; ln -s {escape} b; "
        "while [ ! -e stop ]; do mv a target; mv target a; mv b target; mv target b; done"
    )
    racer = engine.create(
        Config(image="base", cmd=("/bin/sh", "-c", swap), binds=(Bind(str(shared), "/shared"),))
    )
    racer.start()
    binds = (Bind(str(shared), "/shared"), Bind(str(source), "/shared/target/x"))
    try:
        for _ in range(40):
            with contextlib.suppress(DockpyError):
                output(engine, engine.create(Config(image="base", cmd=("/bin/true",), binds=binds)))
            assert os.listdir(escape) == []
    finally:
        (shared / "stop").touch()
        engine.destroy(racer, force=True)


@pytest.mark.parametrize(
    "path",
    ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats"],
)
def test_masked_files_are_empty(engine: Runtime, path: str) -> None:
    assert shell(engine, f"[ ! -e {path} ] || head -c 64 {path} | wc -c").strip() in ("", "0")


@pytest.mark.parametrize("path", ["/proc/scsi", "/proc/acpi", "/sys/firmware"])
def test_masked_directories_are_empty(engine: Runtime, path: str) -> None:
    assert shell(engine, f"[ ! -e {path} ] || ls -A {path}") == ""


@pytest.mark.parametrize(
    "path", ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"]
)
def test_read_only_parts_of_proc_take_no_writes(engine: Runtime, path: str) -> None:
    assert shell(engine, f"echo x 2>/dev/null >{path} && echo written || echo no").strip() == "no"


PROBE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
static void family(const char *name, int number) {
    int fd = socket(number, SOCK_SEQPACKET, 0);
    if (fd < 0) fd = socket(number, SOCK_STREAM, 0);
    printf("%s %s\n", name, fd >= 0 ? "open" : errno == EPERM ? "refused" : "absent");
}
int main(void) {
    int open_descriptors = 0;
    for (int fd = 3; fd < 1024; fd++) open_descriptors += fcntl(fd, F_GETFD) >= 0;
    family("alg", 38);
    family("vsock", 40);
    family("unix", 1);
    printf("descriptors %d\n", open_descriptors);
    return 0;
}
"""


@pytest.mark.needs("cc", "seccomp")
def test_sockets_to_the_kernel_and_the_hypervisor_are_refused_and_no_descriptor_leaks(
    engine: Runtime, hostile: Hostile, tmp_path: Path
) -> None:
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROBE)
    subprocess.run(["cc", "-static", "-o", program, source], check=True)
    image = hostile(lambda root: shutil.copy(program, root / "bin/probe") and None)
    found = output(engine, engine.create(Config(image=image, cmd=("/bin/probe",))))
    assert found.splitlines() == ["alg refused", "vsock refused", "unix open", "descriptors 0"]
