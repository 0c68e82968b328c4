"""Answers to a registry's challenges: Basic, and Bearer tokens of a token server.

Source: the distribution project's "Token Authentication" and "OAuth2 Token Authentication". A token
server is another host as a rule, named by the registry itself; credentials go there because that
is the protocol, but over TLS only when the registry was reached by TLS. What is secret is kept in
objects whose repr does not show it, and never gets into a message.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from dockpy.errors import RegistryError, Unauthorized
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.challenges import Challenge, scopes_of
from dockpy.registry.connecting import Origin, shown
from dockpy.registry.passing import PASSING, Passing, retry_after, too_many
from dockpy.registry.settings import RegistrySettings
from dockpy.registry.transport import Response, Transport

CLIENT_ID = "dockpy"
_TOKEN_LIMIT = 1 << 20
_EARLY = 10.0
"""Seconds a token is renewed before it ends."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who the caller is at a registry. `identity_token` replaces the password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token)


ANONYMOUS = Credentials()


def basic(credentials: Credentials) -> str:
    """The value of an Authorization header."""
    secret = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(secret).decode()}"


class Authorizer:
    """One caller at one registry: headers learned from its challenges. Thread-safe."""

    def __init__(
        self,
        host: str,
        credentials: Credentials,
        transport: Transport,
        settings: RegistrySettings,
    ) -> None:
        self.host = host
        self.credentials = credentials
        self._transport = transport
        self._settings = settings
        self._lock = threading.Lock()
        self._expected = ""
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    def header(self, scopes: Sequence[str]) -> str:
        """The Authorization header to begin with, "" when no challenge is known yet."""
        with self._lock:
            expected = self._expected
            token, until = self._tokens.get(tuple(scopes), ("", 0.0))
        if expected == "basic":
            return basic(self.credentials) if self.credentials.username else ""
        return f"Bearer {token}" if token and time.monotonic() < until else ""

    def expect(self, asked: Sequence[Challenge]) -> None:
        """The registry has said what it will ask for: Basic is answered before it does."""
        schemes = [one.scheme for one in asked]
        if "bearer" not in schemes and "basic" in schemes:
            with self._lock:
                self._expected = "basic"

    def answer(
        self,
        challenges: Sequence[Challenge],
        origin: Origin,
        scopes: Sequence[str],
        cancellation: Cancellation,
        *,
        verify: bool,
    ) -> str:
        """The Authorization header a challenge asks for. Unauthorized: there is none to give."""
        known = {one.scheme: one for one in reversed(challenges)}
        if "bearer" in known:
            challenge = known["bearer"]
            token, until = self._fetch(challenge, origin, scopes, cancellation, verify)
            with self._lock:
                self._tokens[tuple(scopes)] = (token, until)
            return f"Bearer {token}"
        if "basic" in known:
            if not self.credentials.username:
                raise Unauthorized(
                    f"{self.host} wants to know who you are: dockpy login {self.host}"
                )
            with self._lock:
                self._expected = "basic"
            return basic(self.credentials)
        names = ", ".join(sorted(known))[:80] or "no way at all"
        raise Unauthorized(
            f"{self.host} offers {names} to authenticate; Basic and Bearer are known"
        )

    def _fetch(
        self,
        challenge: Challenge,
        origin: Origin,
        scopes: Sequence[str],
        cancellation: Cancellation,
        verify: bool,
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm, origin)
        wanted = tuple(dict.fromkeys((*scopes, *(() if scopes else scopes_of(challenge)))))
        service = challenge.parameters.get("service", "")
        began = time.monotonic()
        with self._ask(realm, service, wanted, cancellation, verify) as response:
            if response.status in (400, 401, 403):
                who = self.credentials.username
                raise Unauthorized(
                    f"{self.host} does not accept the credentials of {who!r}: "
                    f"dockpy login {self.host}"
                    if self.credentials
                    else f"{self.host} does not give this to strangers: dockpy login {self.host}"
                )
            if response.status in PASSING:
                wait = retry_after(response.header("Retry-After"), time.time())
                if response.status == 429:
                    raise too_many(shown(realm), "", wait)
                told = f"{shown(realm)}: the token server answers {response.status}"
                raise Passing(told, wait)
            if response.status != 200:
                raise RegistryError(f"{shown(realm)}: the token server answers {response.status}")
            values = read_token(response.read(_TOKEN_LIMIT), realm)
        token = values.get("token") or values.get("access_token")
        if (
            not isinstance(token, str)
            or not token
            or not token.isascii()
            or not token.isprintable()
        ):
            raise RegistryError(f"{shown(realm)}: the token server's answer has no token")
        seconds = values.get("expires_in")
        lasts = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 60.0
        return token, began + max(lasts - _EARLY, lasts / 2)

    def _check_realm(self, realm: str, origin: Origin) -> None:
        target = Origin.of(realm)
        if origin.scheme == "https" and target.scheme != "https" and self.credentials:
            raise Unauthorized(
                f"{self.host} sends us to {shown(realm)} for a token, and that is not encrypted; "
                "no credentials go there"
            )

    def _ask(
        self,
        realm: str,
        service: str,
        scopes: Sequence[str],
        cancellation: Cancellation,
        verify: bool,
    ) -> Response:
        headers = {"Accept": "application/json"}
        verify = verify or not self._settings.is_insecure(Origin.of(realm).address)
        if self.credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self.credentials.identity_token,
                "service": service,
                "client_id": CLIENT_ID,
                "scope": " ".join(scopes),
            }
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(form).encode()
            return self._transport.request(
                "POST", realm, cancellation, headers=headers, body=body, verify=verify
            )
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if self.credentials:
            query.append(("account", self.credentials.username))
            headers["Authorization"] = basic(self.credentials)
        joiner = "&" if urlsplit(realm).query else "?"
        url = f"{realm}{joiner}{urlencode(query)}" if query else realm
        return self._transport.request("GET", url, cancellation, headers=headers, verify=verify)


def read_token(data: bytes, realm: str) -> Mapping[str, object]:
    """The token server's JSON object. RegistryError, without a word of what it holds."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise RegistryError(f"{shown(realm)}: the token server's answer is not JSON")
    return values
