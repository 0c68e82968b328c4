"""Challenges and credentials: who is asked what, and what nobody gets."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import pytest

from dockpy.errors import RequestError
from dockpy.registry.auth import ANONYMOUS, Credentials
from dockpy.registry.challenges import Challenge, parse, scopes_of
from dockpy.registry.credentials import forget, keep, look_up
from dockpy.registry.settings import DEFAULT_CREDENTIALS, DEFAULT_REGISTRY

SOMEBODY = Credentials("somebody", "a pass:word")
PACKED = base64.b64encode(b"somebody:a pass:word").decode()


CHALLENGES = [
    (
        ['Bearer realm="https://t.example/token",service="a \\"b\\"",scope="x:y:pull z:w:push"'],
        [
            Challenge(
                "bearer",
                {
                    "realm": "https://t.example/token",
                    "service": 'a "b"',
                    "scope": "x:y:pull z:w:push",
                },
            )
        ],
    ),
    (
        ['basic Realm=here, charset="UTF-8"'],
        [Challenge("basic", {"realm": "here", "charset": "UTF-8"})],
    ),
    (
        ['Basic realm="a", Bearer realm="b"'],
        [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})],
    ),
    (
        ["Negotiate", 'Basic realm="a"'],
        [Challenge("negotiate"), Challenge("basic", {"realm": "a"})],
    ),
    (["", '"', "=,="], []),
]


@pytest.mark.parametrize(("headers", "expected"), CHALLENGES)
def test_challenges_are_understood_as_far_as_they_can_be(
    headers: list[str], expected: list[Challenge]
) -> None:
    assert parse(headers) == expected


def test_scopes_of_a_challenge() -> None:
    assert scopes_of(Challenge("bearer", {"scope": "a b"})) == ("a", "b")
    assert scopes_of(Challenge("bearer")) == ()


@dataclass
class FakeKeeper:
    """A config.json in memory, and helpers that are dictionaries."""

    text: str = ""
    helpers: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    place: str = "config.json"

    def read(self) -> str:
        return self.text

    def write(self, text: str) -> None:
        self.text = text

    def run(self, program: str, action: str, text: str) -> tuple[int, str]:
        if program not in self.helpers:
            raise RequestError(f"{program} is not in your PATH")
        secrets = self.helpers[program]
        if action == "store":
            values = json.loads(text)
            secrets[values["ServerURL"]] = values["Username"], values["Secret"]
            return 0, ""
        if text not in secrets:
            return 1, "credentials not found in native keychain"
        if action == "erase":
            del secrets[text]
            return 0, ""
        return 0, json.dumps({"Username": secrets[text][0], "Secret": secrets[text][1]})


@pytest.mark.parametrize(
    "key", ["r.example", "https://r.example", "https://r.example/v1/", "http://r.example/v2/"]
)
def test_an_entry_is_found_by_every_name_docker_gave_it(key: str) -> None:
    keeper = FakeKeeper(json.dumps({"auths": {key: {"auth": PACKED}}}))
    assert look_up(keeper, "r.example") == SOMEBODY
    assert look_up(keeper, "r.example:5000") is ANONYMOUS
    assert look_up(keeper, "other.example") is ANONYMOUS


def test_what_is_kept_is_found_again_and_nothing_else_is_touched() -> None:
    keeper = FakeKeeper(json.dumps({"psFormat": "x", "auths": {"o.example": {"auth": PACKED}}}))
    assert keep(keeper, "r.example", SOMEBODY) == "unencrypted in config.json"
    assert look_up(keeper, "r.example") == SOMEBODY
    assert forget(keeper, "r.example")
    assert not forget(keeper, "r.example")
    assert json.loads(keeper.text) == {"psFormat": "x", "auths": {"o.example": {"auth": PACKED}}}


def test_the_default_registry_has_the_name_docker_gives_it() -> None:
    keeper = FakeKeeper()
    keep(keeper, DEFAULT_REGISTRY, SOMEBODY)
    assert list(json.loads(keeper.text)["auths"]) == [DEFAULT_CREDENTIALS]
    assert look_up(keeper, DEFAULT_REGISTRY) == SOMEBODY


def test_an_identity_token_takes_the_passwords_place() -> None:
    keeper = FakeKeeper(json.dumps({"auths": {"r.example": {"identitytoken": "t"}}}))
    assert look_up(keeper, "r.example").identity_token == "t"
    keeper = FakeKeeper(
        json.dumps({"credsStore": "s"}), {"docker-credential-s": {"r.example": ("<token>", "t")}}
    )
    assert look_up(keeper, "r.example") == Credentials(identity_token="t")


def test_a_registrys_helper_is_asked_before_the_store_and_the_store_before_the_file() -> None:
    keeper = FakeKeeper(
        json.dumps(
            {
                "credHelpers": {"a.example": "one"},
                "credsStore": "two",
                "auths": {"b.example": {"auth": PACKED}},
            }
        ),
        {
            "docker-credential-one": {"a.example": ("a", "1"), "b.example": ("wrong", "1")},
            "docker-credential-two": {"a.example": ("wrong", "2")},
        },
    )
    assert look_up(keeper, "a.example") == Credentials("a", "1")
    assert look_up(keeper, "b.example") is ANONYMOUS


def test_a_missing_helper_is_an_error_and_no_other_secret_takes_its_place() -> None:
    keeper = FakeKeeper(
        json.dumps({"credHelpers": {"r.example": "gone"}, "auths": {"r.example": {"auth": PACKED}}})
    )
    with pytest.raises(RequestError, match="docker-credential-gone"):
        look_up(keeper, "r.example")
    with pytest.raises(RequestError, match="docker-credential-gone"):
        keep(keeper, "r.example", SOMEBODY)


def test_a_helper_keeps_the_secret_and_the_file_only_the_name() -> None:
    keeper = FakeKeeper(json.dumps({"credsStore": "s"}), {"docker-credential-s": {}})
    assert keep(keeper, "r.example", SOMEBODY) == "with docker-credential-s"
    assert keeper.helpers["docker-credential-s"] == {"r.example": ("somebody", "a pass:word")}
    assert json.loads(keeper.text)["auths"] == {"r.example": {}}
    assert forget(keeper, "r.example")
    assert keeper.helpers["docker-credential-s"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"r.example": {"auth": "@@"}}}',
        '{"auths": {"r.example": {"auth": "bm9jb2xvbg=="}}}',
        '{"credsStore": "../../bin/sh"}',
        '{"credHelpers": {"r.example": 7}}',
    ],
)
def test_a_file_that_makes_no_sense_is_told_by_its_name_without_its_content(text: str) -> None:
    with pytest.raises(RequestError, match=r"config\.json") as caught:
        look_up(FakeKeeper(text), "r.example")
    assert "nocolon" not in str(caught.value)
