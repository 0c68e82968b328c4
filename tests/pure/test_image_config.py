from __future__ import annotations

import hashlib
import json

import pytest

from dockpy.errors import BadArchive, UsageError
from dockpy.image_config import (
    HistoryEntry,
    ImageConfig,
    chain_ids,
    dump,
    format_time,
    go_architecture,
    parse,
    parse_time,
)
from dockpy.model import Config

A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_chain_ids_follow_the_specification() -> None:
    second = hashlib.sha256(f"sha256:{A} sha256:{B}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} sha256:{C}".encode()).hexdigest()
    assert chain_ids([A, B, C]) == (A, second, third)
    assert chain_ids([]) == ()


def test_values_survive_the_way_to_bytes_and_back() -> None:
    image = ImageConfig(
        created=1_700_000_000.25,
        author="somebody",
        architecture="arm64",
        config=Config(
            cmd=("sh", "-c", "echo é"),
            entrypoint=("/init",),
            env=("A=1", "B="),
            user="worker:crew",
            working_dir="/srv",
            labels={"a": "b"},
            exposed_ports=("80/tcp", "53/udp", "8000-8010"),
            volumes=("/data",),
            stop_signal="SIGINT",
        ),
        diff_ids=(A, B),
        history=(HistoryEntry(created=1.0, created_by="x", comment="y", empty_layer=True),),
    )
    assert parse(dump(image)) == image
    assert dump(parse(dump(image))) == dump(image)


@pytest.mark.parametrize("entrypoint", [None, (), ("a",)])
def test_no_entrypoint_and_an_empty_one_are_told_apart(entrypoint: tuple[str, ...] | None) -> None:
    image = ImageConfig(config=Config(entrypoint=entrypoint))
    assert parse(dump(image)).config.entrypoint == entrypoint


def test_what_go_writes_as_null_is_absent() -> None:
    data = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": None, "Env": None, "Labels": None, "Volumes": None, "OnBuild": None},
        "rootfs": {"type": "layers", "diff_ids": None},
        "history": None,
    }
    parsed = parse(json.dumps(data).encode())
    assert parsed.config == Config()
    assert parse(json.dumps(data | {"config": None}).encode()).config == Config()


GOOD: dict[str, object] = {"rootfs": {"type": "layers", "diff_ids": []}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rootfs": None}, "rootfs"),
        ({"rootfs": {"type": "tar"}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:../../etc"]}}, "rootfs.diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": [f"sha256:{A}\n"]}}, "rootfs.diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": "x"}}, "rootfs.diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": [f"sha256:{A}"] * 10_001}}, "rootfs.diff_ids"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2024-13-01T00:00:00Z"}, "created"),
        ({"created": 5}, "created"),
        ({"author": ["x"]}, "author"),
        ({"config": []}, None),
        ({"config": ["x"]}, "config"),
        ({"config": {"Cmd": "sh"}}, "config.Cmd"),
        ({"config": {"Cmd": [1]}}, "config.Cmd"),
        ({"config": {"Env": ["A=\0"]}}, "config.Env"),
        ({"config": {"Env": ["A=" + "x" * (200 << 10)]}}, "config.Env"),
        ({"config": {"User": {}}}, "config.User"),
        ({"config": {"Labels": {"a": 1}}}, "config.Labels"),
        ({"config": {"Volumes": ["/a"]}}, "config.Volumes"),
        ({"config": {"ExposedPorts": {"80/xyz": {}}}}, "config.ExposedPorts"),
        ({"config": {"ExposedPorts": {"99999": {}}}}, "config.ExposedPorts"),
        ({"history": [5]}, "history"),
        ({"history": [{"empty_layer": "yes"}]}, "history.empty_layer"),
    ],
    ids=str,
)
def test_a_hostile_configuration_is_refused_by_field(
    change: dict[str, object], field: str | None
) -> None:
    data = json.dumps(GOOD | change).encode()
    if field is None:
        assert parse(data).config == Config()
        return
    with pytest.raises(BadArchive) as caught:
        parse(data)
    assert f" {field}" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [b"", b"5", b"[]", b"\xff", b"[" * 100_000, b" " * (5 << 20)])
def test_bytes_that_are_no_configuration_are_refused(data: bytes) -> None:
    with pytest.raises(BadArchive, match="image configuration"):
        parse(data)


def test_text_that_is_not_unicode_cannot_go_into_an_image() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        dump(ImageConfig(config=Config(env=("A=\udcff",))))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("0001-01-01T00:00:00Z", 0.0),
        ("2024-02-29T12:00:00.5Z", 1709208000.5),
        ("2024-02-29T12:00:00.123456789+01:30", 1709202600.123456789),
        ("2024-02-29T12:00:00-02:00", 1709215200.0),
    ],
)
def test_times_of_every_zone_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds, abs=1e-6)


def test_times_are_written_in_utc() -> None:
    assert format_time(1709208000.5) == "2024-02-29T12:00:00.500000Z"
    assert format_time(0.0) == "1970-01-01T00:00:00.000000Z"


def test_architectures_have_the_names_of_go() -> None:
    assert [go_architecture(m) for m in ("x86_64", "aarch64", "riscv64")] == [
        "amd64",
        "arm64",
        "riscv64",
    ]
