"""Compiled filters against the plain reading of a profile, call by call."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dockpy.capabilities import ALL, DEFAULT, mask_of, names
from dockpy.errors import UsageError
from dockpy.seccomp import (
    CONVENTIONS,
    Convention,
    FilterCache,
    compile_profile,
    default_profile,
    kernel_version,
)
from dockpy.syscalls import X32_BIT
from reference.bpf_vm import Filter
from reference.profile import answer, architectures

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
X86_64, I386 = 0xC000003E, 0x40000003
KERNEL = (6, 18)
MACHINES = ("x86_64", "aarch64")
MANY_CAPABILITIES = {
    "none": 0,
    "default": DEFAULT,
    "all": ALL,
    "admin": mask_of(["SYS_ADMIN"]),
    "others": mask_of(["SYS_PTRACE", "SYS_TIME", "SYSLOG", "BPF", "PERFMON", "SYS_BOOT"]),
    "rare": mask_of(["DAC_READ_SEARCH", "SYS_MODULE", "SYS_PACCT", "SYS_RAWIO", "SYS_NICE"]),
}


def filter_of(
    profile: Mapping[str, object],
    capabilities: int = DEFAULT,
    *,
    machine: str = "x86_64",
    kernel: tuple[int, int] = KERNEL,
) -> Filter:
    return Filter(compile_profile(profile, capabilities, machine=machine, kernel=kernel))


def profile_of(*rules: dict[str, object], **more: object) -> dict[str, object]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **more}


def allow(*called: str, **more: object) -> dict[str, object]:
    return {"names": list(called), "action": "SCMP_ACT_ALLOW", **more}


def compare(index: int, test: str, value: int, second: int = 0) -> dict[str, object]:
    return {"index": index, "op": f"SCMP_CMP_{test}", "value": value, "valueTwo": second}


def calls(convention: Convention) -> Iterator[tuple[int, list[str], bool]]:
    """Numbers with their names, and whether they lie beyond all that have one."""
    by_number: dict[int, list[str]] = {}
    for name, number in convention.numbers.items():
        by_number.setdefault(number, []).append(name)
    edges = {X32_BIT - 1} if not convention.base else {0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF}
    wanted = {convention.base + offset for offset in range(601)} | set(by_number) | edges
    for number in sorted(wanted):
        found = by_number.get(number, [])
        yield number, found, number > convention.last and not found


def with_sets(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The same profile, quicker to look names up in."""
    entries = [
        {**each, "names": frozenset(each.get("names") or ())} for each in profile["syscalls"]
    ]
    return {**profile, "syscalls": entries}


def assert_same(
    compiled: Filter,
    profile: Mapping[str, Any],
    arguments: Sequence[Sequence[int]],
    *,
    capabilities: int,
    machine: str,
    kernel: tuple[int, int] = KERNEL,
) -> None:
    """Every call by every convention has the answer the plain reading has."""
    plain = with_sets(profile)
    held = frozenset(f"CAP_{name}" for name in names(capabilities))
    spoken = architectures(profile, machine)
    compared = {name for each in plain["syscalls"] if each.get("args") for name in each["names"]}
    for convention in CONVENTIONS[machine]:
        for number, called, beyond in calls(convention):
            for wide in arguments if compared.intersection(called) else arguments[-1:]:
                is_64_bit = convention.audit & 0x80000000
                values = wide if is_64_bit else [each & 0xFFFFFFFF for each in wide]
                taken_back = number == 0xFFFFFFFF  # by a tracer; x86_64's, whatever its top bits
                expected = answer(
                    plain,
                    CONVENTIONS[machine][0].name if taken_back else convention.name,
                    called,
                    values,
                    beyond=beyond and not (taken_back and convention.name not in spoken),
                    capabilities=held,
                    machine=machine,
                    kernel=kernel,
                )
                found = compiled.run(convention.audit, number, values)
                assert found == expected, (convention.name, number, called, values)


INTERESTING = [
    [0] * 6,
    [38] * 6,
    [39] * 6,
    [40] * 6,
    [41, 0x10000, 1, 1, 1, 1],
    [0xFFFFFFFF] * 6,
    [0x20008, 0x7E020000, 0, 0, 0, 0],
    [0x00020000, 0, 0, 0, 0, 0],
    [0x1_0000_0026, 0, 0, 0, 0, 0],
    [0x10000011, 0, 0, 0, 0, 0],
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("capabilities", MANY_CAPABILITIES.values(), ids=MANY_CAPABILITIES)
def test_default_filter_is_the_plain_reading_of_its_profile(
    capabilities: int, machine: str
) -> None:
    profile = default_profile()
    compiled = filter_of(profile, capabilities, machine=machine)
    assert_same(compiled, profile, INTERESTING, capabilities=capabilities, machine=machine)


@pytest.mark.needs("docker_profile")
@pytest.mark.parametrize("kernel", [(4, 7), (4, 8), (6, 18)])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("capabilities", MANY_CAPABILITIES.values(), ids=MANY_CAPABILITIES)
def test_default_filter_answers_every_call_as_the_published_profile(
    capabilities: int, machine: str, kernel: tuple[int, int], docker_profile: Path
) -> None:
    published = json.loads(docker_profile.read_text())
    compiled = filter_of(default_profile(), capabilities, machine=machine, kernel=kernel)
    assert_same(
        compiled,
        published,
        INTERESTING[:7],
        capabilities=capabilities,
        machine=machine,
        kernel=kernel,
    )


@pytest.mark.needs("docker_profile")
def test_default_profile_has_the_published_rules_and_no_others(docker_profile: Path) -> None:
    def rules(profile: Mapping[str, Any]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for entry in profile["syscalls"]:
            rest = {key: entry[key] for key in entry if key not in ("names", "comment")}
            found.setdefault(json.dumps(rest, sort_keys=True), set()).update(entry["names"])
        return found

    published = json.loads(docker_profile.read_text())
    assert rules(default_profile()) == rules(published)


def random_profile(chance: random.Random, machine: str) -> dict[str, Any]:
    numbers = [name for each in CONVENTIONS[machine] for name in each.numbers]
    actions = ["ALLOW", "ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "TRAP", "TRACE", "LOG"]
    tests = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]
    entries: list[dict[str, Any]] = []
    for _ in range(chance.randrange(1, 60)):
        entry: dict[str, Any] = {
            "names": [*chance.sample(numbers, chance.randrange(1, 12)), "no_such_call"],
            "action": f"SCMP_ACT_{chance.choice(actions)}",
        }
        if chance.random() < 0.2:
            entry["errnoRet"] = chance.randrange(4096)
        if chance.random() < 0.6:
            entry["args"] = [
                compare(chance.randrange(6), chance.choice(tests), value(chance), value(chance))
                for _ in range(chance.randrange(1, 4))
            ]
        if chance.random() < 0.3:
            side = chance.choice(["includes", "excludes"])
            entry[side] = chance.choice(
                [
                    {"caps": ["CAP_KILL", "CAP_SYS_ADMIN"]},
                    {"caps": ["CAP_SETUID"]},
                    {"arches": ["amd64", "x86"]},
                    {"arches": ["s390x"]},
                    {"minKernel": chance.choice(["4.8", "6.18", "6.19", "10.0"])},
                ]
            )
        entries.append(entry)
    default = chance.choice(actions)
    profile: dict[str, Any] = {"defaultAction": f"SCMP_ACT_{default}", "syscalls": entries}
    if chance.random() < 0.5:
        profile["architectures"] = chance.sample([c.name for c in CONVENTIONS[machine]], 2)
    elif chance.random() < 0.7:
        profile["archMap"] = default_profile()["archMap"]
    return profile


def value(chance: random.Random) -> int:
    return chance.choice(
        [0, 1, 2, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1, 0xFF00, chance.getrandbits(64)]
    )


@pytest.mark.parametrize("seed", range(16))
def test_random_profiles_compile_to_their_plain_reading(seed: int) -> None:
    chance = random.Random(seed)
    machine = chance.choice(MACHINES)
    profile = random_profile(chance, machine)
    near = [
        each["value"] + step
        for entry in profile["syscalls"]
        for each in entry.get("args", [])
        for step in (-1, 0, 1)
    ]
    arguments = [[chance.choice([*near, 0]) & (1 << 64) - 1 for _ in range(6)] for _ in range(4)]
    compiled = filter_of(profile, machine=machine)
    assert_same(compiled, profile, arguments, capabilities=DEFAULT, machine=machine)


@pytest.mark.parametrize("test", ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"])
def test_arguments_are_compared_as_unsigned_64_bit_numbers(test: str) -> None:
    edges = [0, 1, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 2 << 32, 1 << 63, (1 << 64) - 1]
    for limit in edges:
        profile = profile_of(allow("read", args=[compare(5, test, limit, limit)]))
        compiled = filter_of(profile)
        for seen in edges:
            expected = {
                "EQ": seen == limit,
                "NE": seen != limit,
                "LT": seen < limit,
                "LE": seen <= limit,
                "GT": seen > limit,
                "GE": seen >= limit,
                "MASKED_EQ": seen & limit == limit,
            }[test]
            found = compiled.run(X86_64, 0, [0, 0, 0, 0, 0, seen])
            assert found == (ALLOW if expected else EPERM), (test, limit, seen)


def test_conditions_of_one_rule_must_all_fit_and_one_of_several_rules_is_enough() -> None:
    both = allow("read", args=[compare(0, "EQ", 1), compare(1, "EQ", 2)])
    other = allow("read", args=[compare(2, "EQ", 3)])
    compiled = filter_of(profile_of(both, other))
    assert compiled.run(X86_64, 0, [1, 2]) == ALLOW
    assert compiled.run(X86_64, 0, [1, 0]) == EPERM
    assert compiled.run(X86_64, 0, [0, 0, 3]) == ALLOW


def test_an_argument_named_twice_in_a_rule_needs_only_one_of_its_conditions() -> None:
    rule = allow("read", args=[compare(0, "EQ", 1), compare(0, "EQ", 2)])
    compiled = filter_of(profile_of(rule))
    assert [compiled.run(X86_64, 0, [each]) for each in range(4)] == [EPERM, ALLOW, ALLOW, EPERM]


def test_a_rule_without_arguments_settles_a_call() -> None:
    compiled = filter_of(
        profile_of(
            {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [compare(0, "EQ", 1)]},
            allow("read"),
        )
    )
    assert compiled.run(X86_64, 0, [1]) == ALLOW


def test_socket_families_alg_and_vsock_are_refused_and_their_neighbours_not() -> None:
    compiled = filter_of(default_profile(), ALL)
    numbers = {each.audit | each.base: each for each in CONVENTIONS["x86_64"]}
    for convention in numbers.values():
        number = convention.numbers["socket"]
        answers = [compiled.run(convention.audit, number, [each]) for each in range(64)]
        refused = [family for family, each in enumerate(answers) if each == EPERM]
        assert refused == [38, 40]


@pytest.mark.parametrize("family", [38, 40])
def test_upper_half_of_a_socket_family_does_not_open_what_is_refused(family: int) -> None:
    compiled = filter_of(default_profile())
    assert compiled.run(X86_64, 41, [1 << 32 | family]) == EPERM
    assert compiled.run(X86_64, 41, [1 << 63 | family]) == EPERM
    assert compiled.run(X86_64, 41, [1 << 32 | 2]) == ALLOW


def test_clone_is_allowed_for_threads_and_refused_for_namespaces() -> None:
    compiled = filter_of(default_profile())
    thread = 0x3D0F00
    assert compiled.run(X86_64, 56, [thread]) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert compiled.run(X86_64, 56, [thread | 1 << bit]) == EPERM
    assert compiled.run(X86_64, 435) == ENOSYS


def test_socketcall_of_i386_is_allowed_as_in_the_published_profile() -> None:
    assert filter_of(default_profile()).run(I386, 102, [1]) == ALLOW


def test_numbers_nobody_named_look_like_calls_of_a_newer_kernel() -> None:
    compiled = filter_of(default_profile())
    beyond = {each.name: each.last + 1 for each in CONVENTIONS["x86_64"]}
    assert compiled.run(X86_64, beyond["SCMP_ARCH_X86_64"]) == ENOSYS
    assert compiled.run(I386, beyond["SCMP_ARCH_X86"]) == ENOSYS
    assert compiled.run(X86_64, beyond["SCMP_ARCH_X32"]) == ENOSYS
    assert compiled.run(X86_64, 400) == EPERM, "a gap in the list is no newer call"


def test_a_profile_that_kills_by_default_kills_for_unnamed_numbers_too() -> None:
    profile = {"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [allow("read")]}
    assert filter_of(profile).run(X86_64, 5000) == KILL_PROCESS


def test_conventions_the_profile_leaves_out_end_the_process() -> None:
    compiled = filter_of(profile_of(allow("read")))
    assert compiled.run(X86_64, 0) == ALLOW
    assert compiled.run(X86_64, X32_BIT) == KILL_PROCESS
    assert compiled.run(X86_64, 0xFFFFFFFF) == EPERM, "a call that a tracer took back"
    assert compiled.run(I386, 3) == KILL_PROCESS
    assert compiled.run(0xC00000B7, 63) == KILL_PROCESS


def test_the_tree_is_shallow() -> None:
    compiled = filter_of(default_profile())
    steps = []
    for convention in CONVENTIONS["x86_64"]:
        for number, _, _ in calls(convention):
            compiled.run(convention.audit, number, [1 << 32])
            steps.append(compiled.steps)
    assert max(steps) <= 24
    assert sum(steps) / len(steps) <= 12


def test_jumps_beyond_their_reach_get_there() -> None:
    """Every call its own errno and conditions: far more than 255 instructions apart."""
    numbers = CONVENTIONS["x86_64"][0].numbers
    rules: list[dict[str, object]] = [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": number + 2,
            "args": [compare(0, "GT", number << 20)],
        }
        for name, number in numbers.items()
    ]
    profile = profile_of(*rules)
    compiled = filter_of(profile)
    assert len(compiled.code) > 2000
    for number in numbers.values():
        assert compiled.run(X86_64, number, [(number << 20) + 1]) == ERRNO | number + 2
        assert compiled.run(X86_64, number, [number << 20]) == EPERM


def test_a_filter_that_does_not_fit_is_refused_in_one_line() -> None:
    rules = [
        allow("read", args=[compare(index, "EQ", value)])
        for index in range(6)
        for value in range(300)
    ]
    with pytest.raises(UsageError, match="does not fit the kernel: more than 4096") as caught:
        filter_of(profile_of(*rules))
    assert "\n" not in str(caught.value)


GOOD_RULE = allow("read")
BAD_PROFILES: list[tuple[dict[str, Any], str]] = [
    ({}, "defaultAction: a text"),
    ({"defaultAction": "SCMP_ACT_MAYBE"}, "defaultAction: unknown action 'SCMP_ACT_MAYBE'"),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY is not supported"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}, "defaultErrnoRet: a whole"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": True}, "defaultErrnoRet: a whole"),
    (profile_of(listenerPath="/run/x"), "listenerPath: notifications are not"),
    (profile_of(flags=["SECCOMP_FILTER_FLAG_NEW"]), r"flags\[0\]: unknown flag"),
    (profile_of(architectures=["amd64"]), r"architectures\[0\]: unknown name 'amd64'"),
    (profile_of(architectures="SCMP_ARCH_X86"), "architectures: a list"),
    (
        profile_of(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86_64"}]),
        "architectures and archMap together",
    ),
    (profile_of(syscalls={}), "syscalls: a list"),
    (profile_of(syscalls=[7]), r"syscalls\[0\]: an object"),
    (profile_of({"action": "SCMP_ACT_ALLOW"}), r"syscalls\[0\]: no names"),
    (profile_of(GOOD_RULE, allow("read", name="write")), r"syscalls\[1\]: name and names"),
    (profile_of(allow("read", names=[1])), r"syscalls\[0\].names\[0\]: a text"),
    (profile_of({"names": ["read"]}), r"syscalls\[0\].action: a text"),
    (profile_of(allow("read", args=[{"index": 0}])), r"args\[0\].op: a text"),
    (profile_of(allow("read", args=[compare(6, "EQ", 0)])), r"args\[0\].index: a whole"),
    (profile_of(allow("read", args=[compare(0, "EQ", 1 << 64)])), r"args\[0\].value: a whole"),
    (profile_of(allow("read", args=[compare(0, "EQ", -1)])), r"args\[0\].value: a whole"),
    (profile_of(allow("read", args=[compare(0, "LIKE", 0)])), "unknown comparison"),
    (profile_of(allow("read", includes={"caps": ["KILL"]})), "unknown capability 'KILL'"),
    (profile_of(allow("read", excludes={"minKernel": "new"})), "excludes.minKernel: a version"),
    (profile_of(allow("read", includes=[])), r"syscalls\[0\].includes: an object"),
]


@pytest.mark.parametrize(("profile", "message"), BAD_PROFILES, ids=[m for _, m in BAD_PROFILES])
def test_a_profile_that_cannot_be_understood_is_named_with_its_place(
    profile: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        filter_of(profile)
    assert str(caught.value).startswith("seccomp profile")
    assert "\n" not in str(caught.value)


def test_an_entry_that_does_not_hold_here_is_checked_all_the_same() -> None:
    rule = allow("read", includes={"arches": ["s390x"]}, args=[compare(9, "EQ", 0)])
    with pytest.raises(UsageError, match="index"):
        filter_of(profile_of(rule))


def test_machines_without_tables_are_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="not riscv64; use seccomp=unconfined"):
        filter_of(default_profile(), machine="riscv64")


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "7", '"default"', "{", "[" * 100_000, '{"a":' * 100_000, "9" * 10_000],
    ids=lambda text: f"{text[:6]} x{len(text)}",
)
def test_text_that_is_no_profile_is_a_usage_error_of_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="seccomp profile") as caught:
        FilterCache(machine="x86_64", kernel=KERNEL).get(text, DEFAULT)
    assert "\n" not in str(caught.value)


def test_endless_text_is_refused_unread() -> None:
    with pytest.raises(UsageError, match="more than 1048576 characters"):
        FilterCache(machine="x86_64", kernel=KERNEL).get(" " * ((1 << 20) + 1), DEFAULT)


def test_cache_gives_the_same_program_and_none_for_unconfined() -> None:
    cache = FilterCache(machine="x86_64", kernel=KERNEL)
    first = cache.get("default", DEFAULT)
    assert first is not None
    assert cache.get("default", DEFAULT) is first
    assert cache.get("default", ALL) != first
    assert cache.get("unconfined", DEFAULT) is None
    assert len(cache) == 2


def test_cache_keeps_a_bounded_number_and_the_ones_in_use() -> None:
    cache = FilterCache(machine="x86_64", kernel=KERNEL)
    texts = [json.dumps(profile_of(allow("read"), comment=each)) for each in range(80)]
    first = cache.get(texts[0], 0)
    for text in texts:
        cache.get(text, 0)
        assert cache.get(texts[0], 0) is first
    assert len(cache) == 64


def test_cache_compiles_once_for_threads_that_ask_at_the_same_time() -> None:
    cache = FilterCache(machine="x86_64", kernel=KERNEL)
    begin = threading.Barrier(8, timeout=10)

    def get(_: int) -> int:
        begin.wait()
        return id(cache.get("default", DEFAULT))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(get, range(8)))) == 1


def test_a_profile_that_is_refused_is_not_kept() -> None:
    cache = FilterCache(machine="x86_64", kernel=KERNEL)
    for _ in range(2):
        with pytest.raises(UsageError):
            cache.get("{}", DEFAULT)
    assert len(cache) == 0


def test_cache_asks_this_host_for_machine_and_kernel() -> None:
    assert FilterCache().get("default", DEFAULT)


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-x", (6, 18)), ("4.8", (4, 8)), ("5.10.0-9-amd64", (5, 10)), ("odd", (0, 0))],
)
def test_kernel_version_is_the_first_two_numbers(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version
