"""One repository of one registry: requests that are authorized, redirected and tried again.

Source: OCI distribution specification 1.1. What may be repeated is repeated while `Patience` lasts:
connections that broke, 5xx, and 429 with the wait its Retry-After asks for (RFC 9110 10.2.3).
An Authorization header goes to the registry's own origin and to nobody else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote, urljoin

from dockpy.errors import NotInRegistry, RegistryError, Unauthorized
from dockpy.registry import challenges
from dockpy.registry.auth import Authorizer
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.connecting import Broken, Origin, shown
from dockpy.registry.names import Endpoint
from dockpy.registry.passing import PASSING, Passing, retry_after, too_many
from dockpy.registry.settings import Patience, RegistrySettings
from dockpy.registry.transport import Response, Source, Transport

T = TypeVar("T")
_REDIRECTS = (301, 302, 303, 307, 308)
_ERROR_LIMIT = 64 << 10


class RegistryClient:
    """Talks to one endpoint about one repository, as one caller. Thread-safe."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        authorizer: Authorizer,
        transport: Transport,
        settings: RegistrySettings,
        cancellation: Cancellation,
        *,
        actions: str = "pull",
        also: Sequence[str] = (),
    ) -> None:
        self.endpoint = endpoint
        self.path = path
        self.cancellation = cancellation
        self.settings = settings
        self.scopes = (f"repository:{path}:{actions}", *also) if path else ()
        self._authorizer = authorizer
        self._transport = transport
        self._scheme = endpoint.schemes[0]

    def under(self, cancellation: Cancellation) -> RegistryClient:
        """The same client, given up by another cancellation."""
        clone = object.__new__(RegistryClient)
        clone.__dict__.update(self.__dict__)
        clone.cancellation = cancellation
        return clone

    def url(self, *parts: str, query: str = "") -> str:
        """A URL below the repository's place."""
        path = "/".join(quote(one, safe="/:") for one in (self.path, *parts) if one)
        return f"{self.root}{path}" + (f"?{query}" if query else "")

    def connect(self) -> None:
        """Find out how the registry is spoken to: its scheme, and what it wants to be shown.

        One request. TLS comes first where plain HTTP is allowed at all. Raises Broken.
        """
        refused: Broken | None = None
        for scheme in self.endpoint.schemes:
            self._scheme = scheme
            try:
                response = self._exchange("GET", self.root, {}, None, None)
            except Broken as failure:
                if failure.sent or scheme == self.endpoint.schemes[-1]:
                    if refused is not None:  # tells more than what came of plain HTTP after it
                        raise refused from failure
                    raise
                refused = failure if failure.final else None
                continue
            with response:
                if response.status == 401:
                    asked = challenges.parse(response.headers.get_all("WWW-Authenticate", []))
                    self._authorizer.expect(asked)
                if response.status < 500:
                    response.read(_ERROR_LIMIT)
            return

    @property
    def root(self) -> str:
        """The URL that tells whether there is a registry."""
        return f"{self._scheme}://{self.endpoint.address}{self.endpoint.prefix}/v2/"

    def repeat(self, action: Callable[[], T]) -> T:
        """Do what `action` does until it does not fail for a passing reason. RegistryError."""
        patience = self.settings.patience
        for attempt in range(1, patience.attempts + 1):
            try:
                return action()
            except Broken as failure:
                if attempt == patience.attempts:
                    raise
                self.pause(failure, attempt)
        raise AssertionError("attempts is at least 1")

    def pause(self, failure: Broken, attempt: int) -> None:
        """Wait before the next attempt (`attempt`: how many failed so far). Cancelled.

        The failure itself, when the server wants us to wait for too long, or waiting is no use.
        """
        if failure.final:
            raise failure
        patience = self.settings.patience
        wait = backoff(patience, attempt)
        if isinstance(failure, Passing) and failure.wait is not None:
            if failure.wait > patience.retry_after_limit:
                raise failure
            wait = max(wait, failure.wait)
        self.cancellation.sleep(wait)

    def get(self, url: str, headers: Mapping[str, str] | None = None, *ok: int) -> Response:
        """GET with redirects; tried again. The answer has one of the statuses `ok` (200)."""
        return self.repeat(lambda: self.send("GET", url, headers or {}, ok=ok or (200,)))

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | Callable[[], Source] | None = None,
        length: int | None = None,
        ok: Sequence[int] = (200,),
    ) -> Response:
        """One attempt, with as many exchanges as challenges and redirects need.

        `body`: bytes, or a function that gives the body from its beginning. Raises Broken and
        Passing when trying again may help, Unauthorized, NotInRegistry, RegistryError.
        """
        home = Origin.of(self.root)
        authorization = self._authorizer.header(self.scopes)
        answered = redirected = 0
        while True:
            origin = Origin.of(url)
            ours = {**headers, "Authorization": authorization} if authorization else dict(headers)
            if origin != home:
                ours.pop("Authorization", None)
            response = self._exchange(method, url, ours, body, length)
            if response.status in ok:
                return response
            with response:
                if response.status == 401 and origin == home and answered < 2:
                    answered += 1
                    if authorization and not authorization.startswith("Bearer "):
                        raise Unauthorized(
                            f"{self.endpoint.host} does not accept the credentials of "
                            f"{self._authorizer.credentials.username!r}: dockpy login "
                            f"{self.endpoint.host}"
                        )
                    asked = challenges.parse(response.headers.get_all("WWW-Authenticate", []))
                    authorization = self._authorizer.answer(
                        asked, origin, self.scopes, self.cancellation, verify=self.endpoint.verify
                    )
                elif response.status in _REDIRECTS and method in ("GET", "HEAD"):
                    redirected += 1
                    if redirected > self.settings.limits.redirects:
                        raise RegistryError(f"{shown(url)}: redirected in circles")
                    url = self.location(response)
                else:
                    raise self.refusal(response)

    def location(self, response: Response, named: str = "") -> str:
        """Where an answer sends us: its Location, or what it named. RegistryError also for a step
        down from TLS."""
        text = named or response.header("Location")
        if not text:
            raise RegistryError(f"{shown(response.url)}: a redirection without a target")
        target = urljoin(response.url, text)
        origin = Origin.of(target)
        if (
            response.url.startswith("https:")
            and origin.scheme == "http"
            and not self.settings.may_be_plain(origin.address)
        ):
            raise RegistryError(
                f"{shown(response.url)} sends us to {shown(target)}, which is not encrypted; "
                f"if that is meant, {self.settings.how_to_trust}"
            )
        return target

    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Callable[[], Source] | None,
        length: int | None,
    ) -> Response:
        source = body() if callable(body) else body
        origin = Origin.of(url)
        verify = self.endpoint.verify
        if origin.address != self.endpoint.address:
            verify = not self.settings.is_insecure(origin.address)
        return self._transport.request(
            method,
            url,
            self.cancellation,
            headers=headers,
            body=source,
            length=length,
            verify=verify,
        )

    def refusal(self, response: Response) -> RegistryError:
        """What an answer means that nobody wanted."""
        code, text = told(response)
        where = f"{self.endpoint.host}/{self.path}" if self.path else self.endpoint.host
        said = f": {text}" if text else ""
        if response.proxy is not None and not code and response.status in (403, *PASSING):
            # No registry's error: most likely the proxy's own page.
            target = Origin.of(response.url).address
            told_by = response.proxy.refusal(response.status, target)
            return Broken(told_by, sent=True, final=response.status == 403)
        match response.status:
            case 401 | 403:
                return Unauthorized(
                    f"{where}: access denied{said}; dockpy login {self.endpoint.host}, "
                    "and see that the name is right"
                )
            case 404:
                return NotInRegistry(f"{where}: not found{said}")
            case 429:
                wait = retry_after(response.header("Retry-After"), time.time())
                return too_many(where, said, wait)
            case status if status in PASSING:
                wait = retry_after(response.header("Retry-After"), time.time())
                return Passing(f"{where}: the registry answers {status}{said}", wait)
            case status:
                return RegistryError(f"{where}: the registry answers {status}{said or code}")


def backoff(patience: Patience, attempt: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(patience.backoff * 2.0 ** (attempt - 1), patience.backoff_limit)


def told(response: Response) -> tuple[str, str]:
    """The first code and message of an error answer (distribution specification, "Error Codes")."""
    try:
        data = json.loads(response.read(_ERROR_LIMIT))
        first = data["errors"][0]
        code, message = str(first.get("code", "")), str(first.get("message", ""))
    except (RegistryError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", ""
    text = " ".join(f"{code}: {message}".split()).strip(": ")
    return code[:80], "".join(one if one.isprintable() else "?" for one in text)[:300]
