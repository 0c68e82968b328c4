"""Seccomp profiles in Docker's JSON form: read, checked, and reduced to what holds here. Pure.

The form is that of Docker's published default profile and of `--security-opt seccomp=FILE`. What
it means (Docker's documentation "Seccomp security profiles", the OCI runtime specification,
"Seccomp", and seccomp_rule_add(3) of libseccomp):

- A call gets the action of a rule that names it and whose arguments fit; the default action
  otherwise. All arguments of a rule must fit, one of several rules is enough. When one rule names
  an argument twice, each of its conditions is a rule of its own.
- A rule without arguments settles a call; rules with arguments do not count beside it. Where two
  such rules want different actions, and where conditions of two rules with different actions fit,
  the one that was written first wins. A rule whose action is the default one is no rule.
- `includes` and `excludes` narrow a rule to capabilities (of the bounding set: all of `includes`,
  none of `excludes`), machines and kernel versions.
- Names nobody knows are passed over: they belong to other machines or to newer kernels.
- Arguments are compared as unsigned 64-bit numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dockpy.bpf import Condition, Operator
from dockpy.capabilities import NAMES as CAPABILITIES
from dockpy.errors import UsageError

TEXT_LIMIT: Final = 1 << 20
"""Characters of a profile. The published one has 14 thousand."""

KILL_PROCESS: Final = 0x80000000
KILL_THREAD: Final = 0x00000000
TRAP: Final = 0x00030000
ERRNO: Final = 0x00050000
TRACE: Final = 0x7FF00000
LOG: Final = 0x7FFC0000
ALLOW: Final = 0x7FFF0000
"""What a filter returns (linux/seccomp.h). ERRNO and TRACE carry a number in the low 16 bits."""
ACTION_BITS: Final = 0xFFFF0000

_ACTIONS: Final = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
}
_LARGEST_ERRNO: Final = 4095
"""MAX_ERRNO; the kernel cuts larger ones down to it."""
_EPERM: Final = 1

_COMPARE: Final = "SCMP_CMP_"
_COMPARISONS: Final = frozenset(_COMPARE + each.name for each in Operator)
_LARGEST_ARGUMENT: Final = (1 << 64) - 1

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""What profiles call the machine that `uname -m` names."""
_ARCHITECTURE_NAMES: Final = (
    "NATIVE X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC "
    "PPC64 PPC64LE S390 S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB"
)
_ARCHITECTURES: Final = frozenset(f"SCMP_ARCH_{each}" for each in _ARCHITECTURE_NAMES.split())
_FLAGS: Final = frozenset(
    f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
)


@dataclass(frozen=True, slots=True)
class Rule:
    """An action for some calls, by name, when all conditions fit."""

    names: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as it holds for one machine, kernel and set of capabilities.

    `architectures` are the conventions it speaks about, the machine's own always among them.
    """

    default: int
    architectures: frozenset[str]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What `includes` and `excludes` ask about. `machine` as in `uname -m`."""

    capabilities: int
    machine: str
    kernel: tuple[int, int]


def parse_text(text: str) -> Mapping[str, object]:
    """The JSON object a profile file holds. UsageError."""
    if len(text) > TEXT_LIMIT:
        raise UsageError(f"seccomp profile: more than {TEXT_LIMIT} characters")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"seccomp profile: not JSON: {error.msg} in line {error.lineno} column {error.colno}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise UsageError("seccomp profile: not JSON that can be read: too deep or long") from error
    if not isinstance(found, dict):
        raise UsageError("seccomp profile: a JSON object is needed")
    return found


def parse(profile: Mapping[str, object], here: Circumstances) -> Profile:
    """Check all of a profile and keep the rules that hold `here`. UsageError with the place."""
    if here.machine not in _MACHINES:
        known = " and ".join(_MACHINES)
        raise UsageError(f"seccomp: known are {known}, not {here.machine}; use seccomp=unconfined")
    root = _Node(profile, "")
    if "listenerPath" in profile or "listenerMetadata" in profile:
        raise root.at("listenerPath").error("notifications are not supported")
    for flag in root.at("flags").elements():
        flag.one_of(_FLAGS, "flag")
    rules: list[Rule] = []
    default = _action(root, "defaultAction", "defaultErrnoRet")
    for node in root.at("syscalls").elements():
        read = tuple(_rules(node))
        if _holds(node, here):
            rules.extend(rule for rule in read if rule.action != default)
    return Profile(default, _architectures(root, here.machine), tuple(rules))


class _Node:
    """A value inside a profile, and the path to it for errors."""

    def __init__(self, value: object, path: str) -> None:
        self.value = value
        self.path = path

    def error(self, text: str) -> UsageError:
        return UsageError(f"seccomp profile{', ' if self.path else ''}{self.path}: {text}")

    def at(self, key: str) -> _Node:
        """The value of a key; None when the key is not there."""
        if not isinstance(self.value, Mapping):
            raise self.error("an object is needed")
        return _Node(self.value.get(key), f"{self.path}.{key}" if self.path else key)

    def elements(self) -> Iterator[_Node]:
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.error("a list is needed")
        for index, each in enumerate(self.value):
            yield _Node(each, f"{self.path}[{index}]")

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error("a text is needed")
        return self.value

    def number(self, largest: int, default: int | None = None) -> int:
        value = default if self.value is None else self.value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise self.error(f"a whole number from 0 to {largest} is needed")
        return value

    def one_of(self, known: frozenset[str], what: str) -> str:
        text = self.text()
        if text not in known:
            raise self.error(f"unknown {what} {text!r}")
        return text


def _action(node: _Node, key: str, number_key: str) -> int:
    place = node.at(key)
    name = place.text()
    if name == "SCMP_ACT_NOTIFY":
        raise place.error("SCMP_ACT_NOTIFY is not supported")
    if name not in _ACTIONS:
        raise place.error(f"unknown action {name!r}")
    action = _ACTIONS[name]
    number = node.at(number_key)
    if action == ERRNO:
        return action | number.number(_LARGEST_ERRNO, _EPERM)
    if action == TRACE:
        return action | number.number(0xFFFF, _EPERM)
    return action


def _rules(node: _Node) -> Iterator[Rule]:
    """The rules one entry stands for: one, or one for each condition."""
    name, names = node.at("name"), node.at("names")
    if name.value and names.value:
        raise node.error("name and names together; use names")
    called = (name.text(),) if name.value else tuple(each.text() for each in names.elements())
    if not called:
        raise node.error("no names")
    action = _action(node, "action", "errnoRet")
    conditions = tuple(_condition(each) for each in node.at("args").elements())
    if len({each.index for each in conditions}) < len(conditions):
        for condition in conditions:
            yield Rule(called, action, (condition,))
    else:
        yield Rule(called, action, conditions)


def _condition(node: _Node) -> Condition:
    test = node.at("op").one_of(_COMPARISONS, "comparison").removeprefix(_COMPARE)
    index = node.at("index").number(5)
    value = node.at("value").number(_LARGEST_ARGUMENT, 0)
    second = node.at("valueTwo").number(_LARGEST_ARGUMENT, 0)
    operator = Operator[test]
    if operator is Operator.MASKED_EQ:
        return Condition(index, operator, second, mask=value)
    return Condition(index, operator, value)


def _holds(node: _Node, here: Circumstances) -> bool:
    """Whether includes and excludes let the entry count. Checks both wholly."""
    included = _answers(node.at("includes"), here)
    excluded = _answers(node.at("excludes"), here)
    return all(map(all, included)) and not any(map(any, excluded))


def _answers(node: _Node, here: Circumstances) -> list[list[bool]]:
    """For each filter that is there, whether what it names is so here."""
    if node.value is None:
        return []
    found = [[_has(each, here.capabilities) for each in node.at("caps").elements()]]
    machines = [each.text() for each in node.at("arches").elements()]
    if machines:
        found.append([_MACHINES[here.machine] in machines])
    least = node.at("minKernel")
    if least.value not in (None, ""):
        version = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", least.text(), re.ASCII)
        if not version:
            raise least.error("a version such as 4.8 is needed")
        found.append([here.kernel >= (int(version[1]), int(version[2]))])
    return found


def _has(node: _Node, capabilities: int) -> bool:
    name = node.text()
    if not name.startswith("CAP_") or name[4:] not in CAPABILITIES:
        raise node.error(f"unknown capability {name!r}")
    return bool(capabilities >> CAPABILITIES.index(name[4:]) & 1)


def _architectures(root: _Node, machine: str) -> frozenset[str]:
    listed = [each.one_of(_ARCHITECTURES, "name") for each in root.at("architectures").elements()]
    mapped: set[str] = set()
    native = f"SCMP_ARCH_{machine.upper()}"
    any_mapped = False
    for each in root.at("archMap").elements():
        any_mapped = True
        name = each.at("architecture").one_of(_ARCHITECTURES, "name")
        inner = [
            sub.one_of(_ARCHITECTURES, "name") for sub in each.at("subArchitectures").elements()
        ]
        if name == native:
            mapped.update(inner)
    if listed and any_mapped:
        raise root.at("archMap").error("architectures and archMap together; use archMap")
    return frozenset({native, *listed, *mapped})
