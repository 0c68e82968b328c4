from __future__ import annotations

import json

import pytest

from dockpy.errors import RequestError
from dockpy.model import Bind, Config, Ulimit
from dockpy.settings import command, environment, from_json, merge, merge_environment, to_json

IMAGE = Config(
    cmd=("/bin/serve",),
    entrypoint=("/entry",),
    env=("PATH=/app", "MODE=image"),
    user="www",
    working_dir="/srv",
    labels={"by": "image", "tier": "web"},
    stop_signal="QUIT",
)


def test_image_presets_fill_what_the_user_left_out() -> None:
    merged = merge(IMAGE, Config(image="web"))
    assert command(merged) == ("/entry", "/bin/serve")
    assert (merged.user, merged.working_dir, merged.stop_signal) == ("www", "/srv", "QUIT")


def test_users_command_replaces_the_images_but_keeps_its_entrypoint() -> None:
    assert command(merge(IMAGE, Config(cmd=("a", "b")))) == ("/entry", "a", "b")


def test_users_entrypoint_discards_the_images_command() -> None:
    assert command(merge(IMAGE, Config(entrypoint=("/mine",)))) == ("/mine",)


def test_empty_entrypoint_of_the_user_clears_the_images() -> None:
    assert command(merge(IMAGE, Config(entrypoint=(), cmd=("sh",)))) == ("sh",)


def test_labels_are_joined_and_the_users_win() -> None:
    merged = merge(IMAGE, Config(labels={"tier": "db"}))
    assert dict(merged.labels) == {"by": "image", "tier": "db"}


def test_environment_of_the_user_replaces_by_name_in_place() -> None:
    assert merge_environment(("A=1", "B=2"), ("A=3", "C=4")) == ("A=3", "B=2", "C=4")


def test_no_command_anywhere_is_refused_in_one_line() -> None:
    with pytest.raises(RequestError) as caught:
        command(Config())
    assert "\n" not in str(caught.value)


def test_environment_has_path_hostname_home_and_term_only_with_a_terminal() -> None:
    plain = dict(entry.split("=", 1) for entry in environment(Config(), "box", "/root"))
    assert plain["HOSTNAME"] == "box"
    assert plain["HOME"] == "/root"
    assert "PATH" in plain
    assert "TERM" not in plain
    assert "TERM=xterm" in environment(Config(tty=True), "box", "/root")


def test_configured_environment_wins_over_the_defaults() -> None:
    found = environment(Config(env=("HOME=/h", "PATH=/p")), "box", "/root")
    assert "HOME=/h" in found
    assert "PATH=/p" in found
    assert "HOME=/root" not in found


def test_name_without_value_is_left_out_of_the_environment() -> None:
    assert not [e for e in environment(Config(env=("HOME",)), "b", "/") if e.startswith("HOME")]


def test_json_round_trip_gives_the_same_configuration() -> None:
    config = Config(
        image="base",
        cmd=("a",),
        env=("X=1",),
        labels={"k": "v"},
        tmpfs={"/t": "size=1m"},
        binds=(Bind("/a", "/b", True, False),),
        ulimits=(Ulimit("nofile", 1, 2),),
        memory=1 << 30,
        pids_limit=7,
        entrypoint=(),
        auto_remove=True,
    )
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_defaults_are_not_stored() -> None:
    assert to_json(Config()) == {}


def test_names_of_a_later_version_are_ignored() -> None:
    assert from_json({"image": "x", "from_the_future": 1}) == Config(image="x")
