"""ps, images, inspect, import, tag, rmi: columns, filters, shapes."""

from __future__ import annotations

import http.server
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_engine import NOW, Caller, FakeContainer, FakeEngine, make_image
from dockpy.cli import images as images_module
from dockpy.cli import listing
from dockpy.model import Bind, Config, State, Status, Ulimit


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands at NOW."""

    class Clock:
        time = staticmethod(lambda: NOW)

    monkeypatch.setattr(listing, "time", Clock)
    monkeypatch.setattr(images_module, "time", Clock)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def caller(engine: FakeEngine, tmp_path: Path) -> Caller:
    return Caller(engine, tmp_path)


@pytest.fixture
def three(engine: FakeEngine) -> list[FakeContainer]:
    """Made in this order: exited two hours ago, running for three minutes, created."""
    exited = engine.create(
        Config(image="base", cmd=("/bin/sh", "-c", 'echo "hello world" again')), "old"
    )
    exited.record = replace_created(exited, NOW - 7200)
    exited.state = State(status=Status.EXITED, exit_code=3, finished_at=NOW - 7200)
    running = engine.create(
        Config(image="base:latest", cmd=("sleep", "9"), labels={"tier": "web", "b": "1"}), "web"
    )
    running.record = replace_created(running, NOW - 200)
    running.state = State(status=Status.RUNNING, pid=7, started_at=NOW - 180)
    created = engine.create(
        Config(image="1" * 64, cmd=("true",), binds=(Bind("/srv", "/data"),)), "new"
    )
    created.record = replace_created(created, NOW - 30)
    return [exited, running, created]


def replace_created(container: FakeContainer, created: float) -> Any:
    from dataclasses import replace

    return replace(container.record, created=created)


# -- ps --------------------------------------------------------------------------------------------


def test_ps_shows_running_containers_in_dockers_columns(
    caller: Caller, three: list[FakeContainer]
) -> None:
    code, output, _ = caller("ps")
    assert code == 0
    assert output == (
        "CONTAINER ID   IMAGE         COMMAND     CREATED         STATUS         PORTS     NAMES\n"
        'bbbbbbbbbbbb   base:latest   "sleep 9"   3 minutes ago   Up 3 minutes             web\n'
    )


def test_ps_of_all_shows_every_state_newest_first(
    caller: Caller, three: list[FakeContainer]
) -> None:
    lines = caller("ps", "-a")[1].splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["new", "web", "old"]
    assert '"true"' in lines[1]
    assert "   Created   " in lines[1]
    assert "111111111111" in lines[1]
    assert "Exited (3) 2 hours ago" in lines[3]
    assert '"/bin/sh -c echo \\"he…"' in lines[3]


def test_ps_without_containers_shows_the_heads(caller: Caller) -> None:
    assert caller("ps")[1] == (
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    )


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["web"]),
        ("-a=true", ["new", "web", "old"]),
        ("-l", ["new"]),
        ("-n 2", ["new", "web"]),
        ("-n=0", ["web"]),
        ("--last 2", ["new", "web"]),
        ("-f status=exited", ["old"]),
        ("--filter status=exited --filter status=created", ["new", "old"]),
        ("-f exited=3", ["old"]),
        ("-f exited=0", []),
        ("-a -f name=e", ["new", "web"]),
        ("-a -f name=^old$", ["old"]),
        ("-a -f id=bbb", ["web"]),
        ("-f label=tier", ["web"]),
        ("-f label=tier=web -f label=b=1", ["web"]),
        ("-f label=tier=db", []),
        ("-a -f ancestor=base", ["new", "web", "old"]),
        ("-a -f ancestor=1111", ["new", "web", "old"]),
        ("-a -f ancestor=nope", []),
        ("-a -f before=web", ["old"]),
        ("-a -f since=old", ["new", "web"]),
        ("-a -f volume=/data", ["new"]),
        ("-f network=bridge", ["web"]),
        ("-a -f network=host", []),
    ],
)
def test_ps_selects(
    words: str, names: list[str], caller: Caller, three: list[FakeContainer]
) -> None:
    code, output, errors = caller("ps", *words.split(), "--format", "{{.Names}}")
    assert (code, errors) == (0, "")
    assert output.split() == names


def test_ps_before_an_unknown_container_says_so(caller: Caller) -> None:
    assert caller("ps", "-f", "before=nope") == (1, "", "dockpy: no such container: nope\n")


def test_ps_finds_containers_of_descendants_of_an_image(
    caller: Caller, engine: FakeEngine, three: list[FakeContainer]
) -> None:
    child = make_image(3, parent="1" * 64)
    engine.graph.images[child.id] = child
    engine.tags.names["child:latest"] = child.id
    engine.create(Config(image="child", cmd=("ls",)), "kid")
    found = caller("ps", "-aq", "-f", "ancestor=base")[1]
    assert len(found.split()) == 4
    assert caller("ps", "-a", "-f", "ancestor=child", "--format", "{{.Names}}")[1] == "kid\n"


def test_ps_quiet_prints_ids_short_or_whole(caller: Caller, three: list[FakeContainer]) -> None:
    assert caller("ps", "-q")[1] == "b" * 12 + "\n"
    assert caller("ps", "-q", "--no-trunc")[1] == "b" * 64 + "\n"
    assert caller("ps", "-aq")[1].split() == ["c" * 12, "b" * 12, "a" * 12]


def test_ps_by_template_table_and_json(caller: Caller, three: list[FakeContainer]) -> None:
    assert caller("ps", "--format", r"table {{.Names}}\t{{.State}}")[1] == (
        "NAMES     STATE\nweb       running\n"
    )
    assert caller("ps", "--format", '{{.Names}}:{{.Label "tier"}}:{{.Labels}}')[1] == (
        "web:web:b=1,tier=web\n"
    )
    found = json.loads(caller("ps", "--format", "json")[1])
    assert found["ID"] == "b" * 12
    assert found["Command"] == '"sleep 9"'
    assert list(found) == sorted(found)
    assert json.loads(caller("ps", "--format", "{{json .}}")[1]) == found


def test_ps_without_truncation_shows_whole_commands(
    caller: Caller, three: list[FakeContainer]
) -> None:
    output = caller("ps", "-a", "--no-trunc", "--format", "{{.Command}} {{.ID}}")[1]
    assert f'"/bin/sh -c echo \\"hello world\\" again" {"a" * 64}\n' in output


# -- images ----------------------------------------------------------------------------------------


@pytest.fixture
def images(engine: FakeEngine) -> FakeEngine:
    engine.tags.names |= {"base:old": "1" * 64, "team/app:v1": "2" * 64}
    for image in (
        make_image(2, config=Config(labels={"a": "1"})),
        make_image(3),
        make_image(4, parent="5" * 64),
        make_image(5),
    ):
        engine.graph.images[image.id] = image
    return engine


def test_images_shows_dockers_columns_newest_first(caller: Caller, images: FakeEngine) -> None:
    assert caller("images")[1] == (
        "REPOSITORY   TAG       IMAGE ID       CREATED             SIZE\n"
        "base         latest    111111111111   About an hour ago   117MB\n"
        "base         old       111111111111   About an hour ago   117MB\n"
        "team/app     v1        222222222222   2 hours ago         117MB\n"
        "<none>       <none>    333333333333   3 hours ago         117MB\n"
        "<none>       <none>    444444444444   4 hours ago         117MB\n"
    )


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("-q", "1234"),
        ("-aq", "12345"),
        ("-q base", "1"),
        ("-q base:old", "1"),
        ("-q nope", ""),
        ("-q team/app", "2"),
        ("-q -f dangling=true", "34"),
        ("-q -f dangling=false", "12"),
        ("-q -f reference=ba*", "1"),
        ("-q -f reference=*:v1", ""),
        ("-q -f reference=*/*:v1", "2"),
        ("-q -f label=a=1", "2"),
        ("-q -f before=base", "234"),
        ("-q -f since=333", "12"),
    ],
)
def test_images_selects(words: str, ids: str, caller: Caller, images: FakeEngine) -> None:
    code, output, errors = caller("images", *words.split())
    assert (code, errors) == (0, "")
    assert output.split() == [digit * 12 for digit in ids]


def test_images_without_truncation_and_by_template(caller: Caller, images: FakeEngine) -> None:
    assert caller("images", "-q", "--no-trunc", "base")[1] == f"sha256:{'1' * 64}\n"
    assert caller("images", "--format", "{{.Repository}}:{{.Tag}}", "base:old")[1] == "base:old\n"
    assert json.loads(caller("images", "--format", "json", "team/app")[1])["Size"] == "117MB"


def test_tag_names_an_image_and_moves_names(caller: Caller, images: FakeEngine) -> None:
    assert caller("tag", "base", "mine:v2") == (0, "", "")
    assert caller("tag", "333", "mine", "v2") == (0, "", "")
    assert caller("tag", "-f", "base", "other") == (0, "", "")
    assert images.tags.names["mine:v2"] == "3" * 64
    assert images.tags.names["other:latest"] == "1" * 64
    assert caller("tag", "nope", "x")[0] == 1


def test_rmi_takes_names_one_by_one_and_the_image_with_the_last(
    caller: Caller, images: FakeEngine
) -> None:
    assert caller("rmi", "base:old") == (0, "Untagged: base:old\n", "")
    assert caller("rmi", "base") == (
        0,
        f"Untagged: base:latest\nDeleted: sha256:{'1' * 64}\n",
        "",
    )
    assert "1" * 64 not in images.graph.images


def test_rmi_by_id_wants_force_for_several_names(caller: Caller, images: FakeEngine) -> None:
    code, _, errors = caller("rmi", "111", "nope")
    assert code == 1
    assert "has 2 names" in errors
    assert "no such image: nope" in errors
    assert caller("rmi", "-f", "111")[0] == 0
    assert [name for name in images.tags.names if name.startswith("base")] == []


def test_rmi_keeps_what_containers_and_images_need(caller: Caller, images: FakeEngine) -> None:
    container = images.create(Config(image="team/app:v1", cmd=("ls",)), "one")
    assert "used by stopped container aaaaaaaaaaaa" in caller("rmi", "team/app:v1")[2]
    container.state = State(status=Status.RUNNING)
    assert "used by running container aaaaaaaaaaaa" in caller("rmi", "team/app:v1")[2]
    assert "used by running container aaaaaaaaaaaa" in caller("rmi", "-f", "222")[2]
    assert "1 images made from it" in caller("rmi", "555")[2]
    assert {"2" * 64, "5" * 64} <= set(images.graph.images)


# -- import ----------------------------------------------------------------------------------------


def test_import_reads_a_file_and_presets_a_configuration(
    caller: Caller, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "root.tar").write_bytes(b"archive")
    code, output, errors = caller(
        *("import", "-m", "my root", "-c", 'CMD ["/bin/sh"]', "--change=ENV A=1 B='x y'"),
        *("root.tar", "team/app:v1"),
    )
    assert (code, output, errors) == (0, f"sha256:{'2' * 64}\n", "")
    assert engine.imported == [
        (
            b"archive",
            "team/app",
            "v1",
            Config(cmd=("/bin/sh",), env=("A=1", "B=x y")),
            "my root",
        )
    ]


def test_import_reads_stdin_and_takes_the_old_form_of_a_tag(
    caller: Caller, engine: FakeEngine
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"piped")
    os.close(writer)
    caller.stdin = reader
    assert caller("import", "-", "app", "v2")[0] == 0
    os.close(reader)
    assert engine.imported == [(b"piped", "app", "v2", Config(), "Imported from -")]


def test_import_refuses_a_terminal_a_closed_stdin_and_a_missing_file(caller: Caller) -> None:
    assert "stdin is closed" in caller("import", "-")[2]
    caller.stdin, caller.stdin_tty = 0, True
    assert "stdin is a terminal" in caller("import", "-")[2]
    assert caller("import", "absent.tar") == (
        1,
        "",
        "dockpy: cannot open absent.tar: No such file or directory\n",
    )


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/root.tar" else 404)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"web")

        def log_message(self, *_arguments: object) -> None:
            pass

    web = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()
    thread.join(10)


def test_import_reads_a_url(caller: Caller, engine: FakeEngine, server: str) -> None:
    assert caller("import", f"{server}/root.tar", "app")[0] == 0
    assert engine.imported[0][:3] == (b"web", "app", "")
    code, _, errors = caller("import", f"{server}/nope")
    assert (code, errors.count("\n")) == (1, 1)
    assert "404" in errors


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_has_dockers_keys(caller: Caller, three: list[FakeContainer]) -> None:
    code, output, _ = caller("inspect", "web")
    assert code == 0
    assert output.startswith('[\n    {\n        "Id": "bbbb')
    (found,) = json.loads(output)
    assert list(found)[:13] == [
        *("Id", "Created", "Path", "Args", "State", "Image", "ResolvConfPath", "HostnamePath"),
        *("HostsPath", "LogPath", "Name", "RestartCount", "Driver"),
    ]
    assert list(found["State"]) == [
        *("Status", "Running", "Paused", "Restarting", "OOMKilled", "Dead", "Pid", "ExitCode"),
        *("Error", "StartedAt", "FinishedAt"),
    ]
    assert (found["Name"], found["Path"], found["Args"]) == ("/web", "sleep", ["9"])
    assert (found["State"]["Status"], found["State"]["Pid"]) == ("running", 7)
    assert found["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert found["Image"] == f"sha256:{'1' * 64}"
    assert found["Config"]["Labels"] == {"b": "1", "tier": "web"}
    assert found["Config"]["Hostname"] == "b" * 12
    assert found["LogPath"] == f"/var/lib/dockpy/containers/{'b' * 64}/container.log"
    assert found["NetworkSettings"]["Networks"].keys() == {"bridge"}


def test_inspect_shows_every_limit_where_docker_does(caller: Caller, engine: FakeEngine) -> None:
    engine.create(
        Config(
            image="base",
            cmd=("ls",),
            memory=1 << 20,
            cpus=1.5,
            ulimits=(Ulimit("nofile", 1, 2),),
            binds=(Bind("/a", "/b", read_only=True),),
            tmpfs={"/run": "size=1m"},
            devices=("/dev/null:/dev/x:r",),
            cap_add=("SYS_TIME",),
            no_new_privileges=True,
            log_max_size=1000,
            log_max_file=3,
            pids_limit=5,
        ),
        "one",
    )
    (found,) = json.loads(caller("inspect", "one")[1])
    host = found["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (1 << 20, 1_500_000_000, 5)
    assert host["Ulimits"] == [{"Name": "nofile", "Hard": 2, "Soft": 1}]
    assert host["Binds"] == ["/a:/b:ro"]
    assert host["Tmpfs"] == {"/run": "size=1m"}
    assert host["Devices"] == [
        {"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}
    ]
    assert host["CapAdd"] == ["SYS_TIME"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "1000", "max-file": "3"},
    }
    assert [(one["Type"], one["Destination"], one["RW"]) for one in found["Mounts"]] == [
        ("bind", "/b", False),
        ("tmpfs", "/run", True),
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.State.Running}} {{.State.Pid}}", "true 7"),
        ("{{.Name}}", "/web"),
        ("{{json .Config.Cmd}}", '["sleep","9"]'),
        ('{{index .Config.Labels "tier"}}', "web"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "b=1;tier=web;"),
        ("{{.Config.Labels.nope}}", "<no value>"),
        ("{{range .NetworkSettings.Networks}}[{{.IPAddress}}]{{end}}", "[]"),
        ("{{.Id}}", "b" * 64),
    ],
)
def test_inspect_by_template(
    template: str, expected: str, caller: Caller, three: list[FakeContainer]
) -> None:
    assert caller("inspect", "--format", template, "web") == (0, f"{expected}\n", "")
    assert caller("inspect", "-f", template, "bbb") == (0, f"{expected}\n", "")


def test_inspect_of_several_shows_what_there_is_and_names_what_is_not(
    caller: Caller, three: list[FakeContainer]
) -> None:
    code, output, errors = caller("inspect", "web", "nope", "base")
    assert (code, errors) == (1, "dockpy: no such object: nope\n")
    container, image = json.loads(output)
    assert container["Name"] == "/web"
    assert image["RepoTags"] == ["base:latest"]
    assert image["RootFS"] == {"Type": "layers", "Layers": [f"sha256:{'1' * 64}"]}
    assert caller("inspect", "nope") == (1, "", "dockpy: no such object: nope\n")


def test_inspect_looks_for_one_type_only_when_told(
    caller: Caller, three: list[FakeContainer]
) -> None:
    assert "no such container: base" in caller("inspect", "--type", "container", "base")[2]
    assert "no such image: web" in caller("inspect", "--type=image", "web")[2]
    assert caller("inspect", "--type", "image", "-f", "{{.Os}}", "base")[1] == "linux\n"


def test_inspect_of_a_missing_field_is_an_error_with_its_place(
    caller: Caller, three: list[FakeContainer]
) -> None:
    code, output, errors = caller("inspect", "-f", "{{.State.Nope}}", "web")
    assert (code, output) == (125, "")
    assert "column 9: there is no field Nope" in errors


def test_the_stream_of_an_import_is_closed_after_use(
    caller: Caller, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = io.BytesIO(b"data")
    monkeypatch.setattr(images_module, "open_url", lambda _url: body)
    assert caller("import", "http://example.invalid/x")[0] == 0
    assert body.closed
