"""The OCI image configuration: bytes to checked values and back. Pure.

Source: OCI image specification, config.md. The bytes come from anywhere, so every type and bound
is checked; fields this engine does not know are left alone (the bytes are kept as they are).
"""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dockpy.errors import BadArchive, UsageError
from dockpy.model import Config

SIZE_LIMIT = 4 << 20  # bytes
_TEXT_LIMIT = 128 << 10  # characters; the kernel's limit for one argument (MAX_ARG_STRLEN)
_COUNT_LIMIT = 10_000
_DIFF_ID = re.compile(r"sha256:([0-9a-f]{64})")
_PORT = re.compile(r"([0-9]{1,5})(-[0-9]{1,5})?(/(tcp|udp|sctp))?", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

_GO_NAMES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """How a layer, or a change without one, came to be. `created`: seconds since the epoch."""

    created: float = 0.0
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image's configuration says. `diff_ids`: hex sha256, lowest layer first."""

    created: float = 0.0
    author: str = ""
    architecture: str = ""
    os: str = "linux"
    config: Config = field(default_factory=Config)
    diff_ids: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()


def go_architecture(machine: str) -> str:
    """The name OCI images use (Go's) for what uname(2) calls `machine`."""
    return _GO_NAMES.get(machine, machine)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Chain id of each layer of a stack, lowest first. Source: config.md, "Layer ChainID"."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else "", diff_id))
    return tuple(chain)


def chain_id(parent: str, diff_id: str) -> str:
    """Chain id of a layer put on the stack with chain id `parent` ("" for none); all hex."""
    if not parent:
        return diff_id
    return hashlib.sha256(f"sha256:{parent} sha256:{diff_id}".encode()).hexdigest()


def parse(data: bytes, *, history: bool = True) -> ImageConfig:
    """Check and take apart. Raises BadArchive that names the field at fault.

    Without `history` that part is neither read nor checked: for bytes that were checked before.
    """
    if len(data) > SIZE_LIMIT:
        raise BadArchive(f"image configuration: more than {SIZE_LIMIT} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as reason:
        raise BadArchive(f"image configuration: not JSON ({reason})") from reason
    top = _Fields(values, "")
    rootfs = _Fields(top.get("rootfs"), "rootfs.")
    if rootfs.text("type") != "layers":
        raise BadArchive("image configuration: rootfs.type is not 'layers'")
    diff_ids = []
    for one in rootfs.texts("diff_ids"):
        found = _DIFF_ID.fullmatch(one)
        if not found:
            raise BadArchive(f"image configuration: rootfs.diff_ids: {one[:80]!r} is not a sha256")
        diff_ids.append(found[1])
    return ImageConfig(
        created=top.time("created"),
        author=top.text("author"),
        architecture=top.text("architecture"),
        os=top.text("os"),
        config=_config(_Fields(top.get("config") or {}, "config.")),
        diff_ids=tuple(diff_ids),
        history=tuple(
            HistoryEntry(
                created=entry.time("created"),
                created_by=entry.text("created_by"),
                author=entry.text("author"),
                comment=entry.text("comment"),
                empty_layer=entry.flag("empty_layer"),
            )
            for entry in (top.objects("history") if history else ())
        ),
    )


def _config(fields: _Fields) -> Config:
    entrypoint = fields.get("Entrypoint")
    ports = fields.keys("ExposedPorts")
    for port in ports:
        found = _PORT.fullmatch(port)
        if not found or int(found[1]) > 65535:
            raise BadArchive(f"image configuration: config.ExposedPorts: {port[:80]!r} is no port")
    return Config(
        cmd=fields.texts("Cmd"),
        entrypoint=None if entrypoint is None else fields.texts("Entrypoint"),
        env=fields.texts("Env"),
        user=fields.text("User"),
        working_dir=fields.text("WorkingDir"),
        labels=fields.mapping("Labels"),
        exposed_ports=ports,
        volumes=fields.keys("Volumes"),
        stop_signal=fields.text("StopSignal"),
    )


def dump(image: ImageConfig) -> bytes:
    """The same bytes for the same values. Raises UsageError for text that is not Unicode."""
    config = image.config
    presets: dict[str, object] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Volumes": {volume: {} for volume in config.volumes},
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
    }
    values: dict[str, object] = {
        "created": format_time(image.created),
        "author": image.author,
        "architecture": image.architecture,
        "os": image.os,
        "config": {
            key: value
            for key, value in presets.items()
            if value or (value == [] and key == "Entrypoint")
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one}" for one in image.diff_ids]},
        "history": [_history(entry) for entry in image.history],
    }
    if not image.author:
        del values["author"]
    try:
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as reason:
        text = reason.object[max(reason.start - 20, 0) : reason.end + 20]
        raise UsageError(f"text in an image must be UTF-8: {text!r}") from reason


def _history(entry: HistoryEntry) -> dict[str, object]:
    values: dict[str, object] = {
        "created": format_time(entry.created),
        "created_by": entry.created_by,
        "author": entry.author,
        "comment": entry.comment,
        "empty_layer": entry.empty_layer,
    }
    return {key: value for key, value in values.items() if value}


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    micros = round(seconds * 1_000_000)
    whole, micros = divmod(micros, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{micros:06d}Z"


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0.0 for times before. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 time")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 time")
    if year < 1970:
        return 0.0
    seconds = float(calendar.timegm((year, month, day, hour, minute, second)))
    seconds += float(found[7] or 0)
    zone = found[8]
    if zone not in ("Z", "z"):
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return max(seconds, 0.0)


class _Fields:
    """A JSON object of unknown origin; each getter checks the type. Go writes absent as null."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise BadArchive(f"image configuration: {where[:-1] or 'the whole'} is not an object")
        self._values = values
        self._where = where

    def get(self, key: str) -> object:
        return self._values.get(key)

    def _wrong(self, key: str, wanted: str) -> BadArchive:
        return BadArchive(f"image configuration: {self._where}{key} is not {wanted}")

    def _checked(self, key: str, value: object) -> str:
        if not isinstance(value, str) or "\0" in value or len(value) > _TEXT_LIMIT:
            raise self._wrong(key, "a text without NUL of reasonable size")
        return value

    def text(self, key: str) -> str:
        value = self._values.get(key)
        return "" if value is None else self._checked(key, value)

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def time(self, key: str) -> float:
        text = self.text(key)
        try:
            return parse_time(text) if text else 0.0
        except ValueError as reason:
            raise self._wrong(key, "a time") from reason

    def _list(self, key: str) -> list[object]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > _COUNT_LIMIT:
            raise self._wrong(key, "a list of reasonable size")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._checked(key, one) for one in self._list(key))

    def objects(self, key: str) -> list[_Fields]:
        return [_Fields(one, f"{self._where}{key}.") for one in self._list(key)]

    def mapping(self, key: str) -> Mapping[str, str]:
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > _COUNT_LIMIT:
            raise self._wrong(key, "an object of reasonable size")
        return {self._checked(key, name): self._checked(key, one) for name, one in value.items()}

    def keys(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict) or len(value) > _COUNT_LIMIT:
            raise self._wrong(key, "an object of reasonable size")
        return tuple(self._checked(key, name) for name in value)
