"""What a seccomp profile in Docker's JSON form says about one call, read slowly and plainly.

The differences to the bare text of a profile are the ones dockpy.seccomp names in its docstring:
numbers beyond the known lists, the family of socket(2), conventions the profile leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ENOSYS = 38
GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


def action_of(name: str, errno: int | None) -> int:
    carries = name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
    return ACTIONS[name] | ((1 if errno is None else errno) if carries else 0)


def counts(
    entry: Mapping[str, Any], capabilities: frozenset[str], machine: str, kernel: tuple[int, int]
) -> bool:
    """Whether includes and excludes let an entry count."""
    wants = entry.get("includes") or {}
    shuns = entry.get("excludes") or {}
    for capability in wants.get("caps") or []:
        if capability not in capabilities:
            return False
    for capability in shuns.get("caps") or []:
        if capability in capabilities:
            return False
    if wants.get("arches") and GO_NAMES[machine] not in wants["arches"]:
        return False
    if GO_NAMES[machine] in (shuns.get("arches") or []):
        return False
    if wants.get("minKernel") and kernel < version(wants["minKernel"]):
        return False
    return not (shuns.get("minKernel") and kernel >= version(shuns["minKernel"]))


def version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def fits(argument: Mapping[str, Any], values: Sequence[int], name: str) -> bool:
    index, value, second = argument["index"], argument["value"], argument.get("valueTwo", 0)
    seen = values[index]
    if (name, index) == ("socket", 0):
        seen &= 0xFFFFFFFF
    found: dict[str, bool] = {
        "SCMP_CMP_EQ": seen == value,
        "SCMP_CMP_NE": seen != value,
        "SCMP_CMP_LT": seen < value,
        "SCMP_CMP_LE": seen <= value,
        "SCMP_CMP_GT": seen > value,
        "SCMP_CMP_GE": seen >= value,
        "SCMP_CMP_MASKED_EQ": seen & value == second,
    }
    return found[argument["op"]]


def architectures(profile: Mapping[str, Any], machine: str) -> set[str]:
    found = {NATIVE[machine], *(profile.get("architectures") or [])}
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == NATIVE[machine]:
            found.update(entry["subArchitectures"] or [])
    return found


def answer(
    profile: Mapping[str, Any],
    convention: str,
    names: Sequence[str],
    arguments: Sequence[int],
    *,
    beyond: bool,
    capabilities: frozenset[str],
    machine: str,
    kernel: tuple[int, int],
) -> int:
    """The filter's answer to a call that has these names in this convention.

    `beyond`: its number is above all that have a name.
    """
    if convention not in architectures(profile, machine):
        return KILL_PROCESS
    default = action_of(profile["defaultAction"], profile.get("defaultErrnoRet"))
    conditional: list[int] = []
    for entry in profile["syscalls"]:
        called = [entry["name"]] if entry.get("name") else entry["names"]
        if not any(name in called for name in names):
            continue
        if not counts(entry, capabilities, machine, kernel):
            continue
        action = action_of(entry["action"], entry.get("errnoRet"))
        for name in names:
            if name not in called or action == default:
                continue
            conditions = entry.get("args") or []
            if not conditions:
                return action
            fitting = [fits(each, arguments, name) for each in conditions]
            indexes = [each["index"] for each in conditions]
            alone = len(set(indexes)) < len(indexes)
            if any(fitting) if alone else all(fitting):
                conditional.append(action)
    if conditional:
        return conditional[0]
    if beyond and default & 0xFFFF0000 == ERRNO:
        return ERRNO | ENOSYS
    return default
