"""Who the caller is at which registry, as Docker's `config.json` tells it. Pure but for `Keeper`.

    {"auths": {"registry.example": {"auth": "<base64 of name:password>"}},
     "credHelpers": {"registry.example": "pass"}, "credsStore": "secretservice"}

A helper named X is the program docker-credential-X: it gets one word as its argument (get, store
or erase), a server or a JSON object on its standard input, and answers with JSON on its output.
Source: Docker's documentation, `docker login`, "Credential stores", "Credential helper protocol".
A registry's helper, or the store, is asked for that registry and for nothing else, and when it is
missing or fails that is an error: no other secret takes its place.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dockpy.errors import RequestError
from dockpy.registry.auth import ANONYMOUS, Credentials
from dockpy.registry.settings import DEFAULT_ALIASES, DEFAULT_CREDENTIALS, DEFAULT_REGISTRY

IDENTITY_USER = "<token>"
"""The user name that says: the secret is an identity token."""
_NOT_FOUND = "credentials not found"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Configuration = dict[str, Any]
Asking = Callable[[str], Credentials]
"""Gives the caller's credentials for a registry's host."""


class Keeper(Protocol):
    """The caller's file and programs, used with the caller's rights."""

    @property
    def place(self) -> str:
        """What the file is called, for messages."""
        ...

    def read(self) -> str:
        """The file's text; "" when there is none. RequestError."""
        ...

    def write(self, text: str) -> None:
        """Replace the file, for nobody but the caller to read. RequestError."""
        ...

    def run(self, program: str, action: str, text: str) -> tuple[int, str]:
        """Run a helper: its exit status and its output. RequestError when it cannot be run."""
        ...


def load(keeper: Keeper) -> Configuration:
    """The caller's configuration. RequestError names the file when it makes no sense."""
    text = keeper.read()
    try:
        values = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as failure:
        raise RequestError(f"{keeper.place}: not JSON; correct it or remove it") from failure
    if not isinstance(values, dict):
        raise RequestError(f"{keeper.place}: not an object; correct it or remove it")
    for name in ("auths", "credHelpers"):
        if not isinstance(values.get(name), dict | None):
            raise RequestError(f"{keeper.place}: {name} is not an object")
    return values


def look_up(keeper: Keeper, host: str) -> Credentials:
    """The caller's credentials for a registry, ANONYMOUS when there are none. RequestError."""
    values = load(keeper)
    helper = helper_of(values, host, keeper.place)
    if helper:
        return ask_helper(keeper, helper, host)
    entries: Mapping[str, Any] = values.get("auths") or {}
    for key in keys_of(host):
        if isinstance(entries.get(key), dict):
            return decode(entries[key], key, keeper.place)
    for key, entry in entries.items():
        if hostname(key) == host and isinstance(entry, dict):
            return decode(entry, key, keeper.place)
    return ANONYMOUS


def keep(keeper: Keeper, host: str, credentials: Credentials) -> str:
    """Keep credentials for a registry; in words, where."""
    values = load(keeper)
    helper = helper_of(values, host, keeper.place)
    key = keys_of(host)[0]
    if helper:
        message = {
            "ServerURL": key,
            "Username": IDENTITY_USER if credentials.identity_token else credentials.username,
            "Secret": credentials.identity_token or credentials.password,
        }
        status, _ = keeper.run(f"docker-credential-{helper}", "store", json.dumps(message))
        if status != 0:
            raise RequestError(
                f"docker-credential-{helper} does not take the credentials (status {status})"
            )
        entry: Configuration = {}
        told = f"with docker-credential-{helper}"
    else:
        entry = encode(credentials)
        told = f"unencrypted in {keeper.place}"
    values["auths"] = {**(values.get("auths") or {}), key: entry}
    keeper.write(json.dumps(values, indent="\t") + "\n")
    return told


def forget(keeper: Keeper, host: str) -> bool:
    """Forget the credentials for a registry; False when there were none."""
    values = load(keeper)
    helper = helper_of(values, host, keeper.place)
    entries = values.get("auths") or {}
    keys = [key for key in entries if key in keys_of(host) or hostname(key) == host]
    if helper:
        status, text = keeper.run(f"docker-credential-{helper}", "erase", keys_of(host)[0])
        if status != 0 and _NOT_FOUND not in text:
            raise RequestError(f"docker-credential-{helper} cannot erase (status {status})")
    if keys:
        values["auths"] = {key: entry for key, entry in entries.items() if key not in keys}
        keeper.write(json.dumps(values, indent="\t") + "\n")
    return bool(keys)


def helper_of(values: Configuration, host: str, place: str) -> str:
    """The helper that keeps a registry's credentials; "" for the file itself. RequestError."""
    helpers = values.get("credHelpers") or {}
    name = next((helpers[key] for key in keys_of(host) if key in helpers), None)
    if name is None:
        name = values.get("credsStore") or ""
    if not isinstance(name, str) or (name and not _HELPER.fullmatch(name)):
        raise RequestError(f"{place}: {str(name)[:80]!r} is not the name of a credential helper")
    return name


def ask_helper(keeper: Keeper, helper: str, host: str) -> Credentials:
    """What a helper keeps for a registry. RequestError, without a word of what it said."""
    program = f"docker-credential-{helper}"
    for key in keys_of(host):
        status, text = keeper.run(program, "get", key)
        if status == 0:
            try:
                values = json.loads(text)
                name, secret = str(values["Username"]), str(values["Secret"])
            except (ValueError, LookupError, TypeError) as failure:
                raise RequestError(f"{program} answers what makes no sense") from failure
            if name == IDENTITY_USER:
                return Credentials(identity_token=secret)
            return Credentials(name, secret)
        if _NOT_FOUND not in text:
            raise RequestError(
                f"{program} cannot tell the credentials for {host} (status {status})"
            )
    return ANONYMOUS


def keys_of(host: str) -> tuple[str, ...]:
    """The names a registry's entry may have, the one to write first."""
    if host == DEFAULT_REGISTRY:
        return (DEFAULT_CREDENTIALS, DEFAULT_REGISTRY, *DEFAULT_ALIASES)
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/")


def hostname(key: str) -> str:
    """The host an entry's name is for."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def decode(entry: Mapping[str, Any], key: str, place: str) -> Credentials:
    """An entry of `auths`. RequestError names it when it makes no sense."""
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(str(entry.get("username", "")), "", token)
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            name, colon, secret = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as failure:
            raise RequestError(f"{place}: the entry {key!r} makes no sense") from failure
        if not colon or not name:
            raise RequestError(f"{place}: the entry {key!r} has no name and password")
        return Credentials(name, secret.rstrip("\0"))
    user, password = entry.get("username"), entry.get("password")
    if isinstance(user, str) and isinstance(password, str) and user:
        return Credentials(user, password)
    return ANONYMOUS


def encode(credentials: Credentials) -> Configuration:
    """An entry of `auths`."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    entry: Configuration = {"auth": base64.b64encode(pair).decode()}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    return entry
