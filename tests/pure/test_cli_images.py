"""images and rmi: digests, the family of an image, and what goes along with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_engine import Caller, FakeEngine, make_image
from dockpy.model import Config


@pytest.fixture
def engine() -> FakeEngine:
    """`base` (1) is below `team/app:v1` (2), which is below 3; 3 is below 4, called `top`."""
    engine = FakeEngine()
    for image in (
        make_image(1, created=100.0),
        make_image(2, created=200.0, parent="1" * 64),
        make_image(3, created=300.0, parent="2" * 64),
        make_image(4, created=400.0, parent="3" * 64),
    ):
        engine.graph.images[image.id] = image
    engine.tags.names |= {"team/app:v1": "2" * 64, "top:latest": "4" * 64}
    return engine


@pytest.fixture
def caller(engine: FakeEngine, tmp_path: Path) -> Caller:
    return Caller(engine, tmp_path)


def left(engine: FakeEngine) -> str:
    return "".join(sorted(image_id[0] for image_id in engine.graph.images))


def test_digests_are_those_of_the_repository_an_image_is_named_by(caller: Caller) -> None:
    lines = caller("images", "--digests")[1].splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "DIGEST", "IMAGE", "ID", "CREATED", "SIZE"]
    digests = {line.split()[0]: line.split()[2] for line in lines[1:]}
    assert digests == {"top": "<none>", "team/app": f"sha256:{'2' * 64}", "base": "<none>"}
    form = caller("images", "--format", "{{.Repository}} {{.Digest}}", "team/app")[1]
    assert form == f"team/app sha256:{'2' * 64}\n"


def test_inspect_tells_the_digests_registries_know_an_image_by(caller: Caller) -> None:
    form = ("inspect", "-f", "{{json .RepoTags}} {{json .RepoDigests}}")
    known = f'["team/app:v1"] ["team/app@sha256:{"2" * 64}"]\n'
    assert caller(*form, "team/app:v1") == (0, known, "")
    assert caller(*form, "base")[1] == '["base:latest"] []\n'


def test_rmi_by_name_takes_along_what_has_no_name_and_no_use_left(
    caller: Caller, engine: FakeEngine
) -> None:
    assert caller("rmi", "top") == (
        0,
        f"Untagged: top:latest\nDeleted: sha256:{'4' * 64}\nDeleted: sha256:{'3' * 64}\n",
        "",
    )
    assert left(engine) == "12"


def test_images_and_rmi_take_the_long_name_of_a_repository(
    caller: Caller, engine: FakeEngine
) -> None:
    asked = ("images", "--format", "{{.Repository}}:{{.Tag}}")
    assert caller(*asked, "default.example/team/app")[1] == "team/app:v1\n"
    assert caller(*asked, "other.example/team/app")[1] == ""
    assert caller(*asked, f"team/app@sha256:{'2' * 64}")[1] == "team/app:v1\n"
    assert caller(*asked, f"team/app@sha256:{'3' * 64}")[1] == ""
    engine.tags.names["more:v2"] = "2" * 64
    assert caller("rmi", "default.example/more:v2") == (0, "Untagged: more:v2\n", "")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("t*", "top:latest"), ("team/*", "team/app:v1"), ("*:v?", ""), ("*/*:v[0-9]", "team/app:v1")],
)
def test_a_name_may_be_a_pattern(caller: Caller, pattern: str, expected: str) -> None:
    shown = caller("images", "--format", "{{.Repository}}:{{.Tag}}", pattern)[1]
    assert shown.split() == expected.split()


def test_rmi_no_prune_leaves_what_it_was_made_from(caller: Caller, engine: FakeEngine) -> None:
    assert caller("rmi", "--no-prune", "top")[0] == 0
    assert left(engine) == "123"


def test_rmi_keeps_an_image_below_that_a_container_was_made_from(
    caller: Caller, engine: FakeEngine
) -> None:
    engine.create(Config(image="3" * 64, cmd=("ls",)), "one")
    assert caller("rmi", "top")[0] == 0
    assert left(engine) == "123"


def test_rmi_by_name_of_what_others_are_made_from_takes_the_name_only(
    caller: Caller, engine: FakeEngine
) -> None:
    assert caller("rmi", "team/app:v1") == (0, "Untagged: team/app:v1\n", "")
    assert left(engine) == "1234"
    assert caller("rmi", "222")[0] == 1
    assert caller("rmi", "-f", "222")[0] == 1
    assert left(engine) == "1234"


def test_rmi_of_what_a_container_uses_takes_the_name_only_by_force(
    caller: Caller, engine: FakeEngine
) -> None:
    engine.create(Config(image="top", cmd=("ls",)), "one")
    code, output, errors = caller("rmi", "top")
    assert (code, output) == (1, "")
    assert "used by stopped container aaaaaaaaaaaa; remove it first" in errors
    assert caller("rmi", "-f", "top") == (0, "Untagged: top:latest\n", "")
    assert left(engine) == "1234"
    assert "used by stopped container" in caller("rmi", "-f", "444")[2]


def test_an_image_that_is_gone_already_stops_no_other(caller: Caller, engine: FakeEngine) -> None:
    code, output, errors = caller("rmi", "nope", "top", "top", "Bad")
    assert code == 1
    assert "Untagged: top:latest" in output
    assert errors.count("\n") == 3
    assert left(engine) == "12"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_tree_shows_every_image_once_also_without_its_parent(
    lost: int, caller: Caller, engine: FakeEngine
) -> None:
    del engine.graph.images[f"{lost + 1}" * 64]
    engine.tags.names = {
        name: image_id
        for name, image_id in engine.tags.names.items()
        if image_id in engine.graph.images
    }
    lines = caller("images", "--tree")[1].splitlines()
    assert len(lines) == 3
    for image in engine.graph.images.values():
        assert sum(image.short_id in line for line in lines) == 1
