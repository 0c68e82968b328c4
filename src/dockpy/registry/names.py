"""Names of images as registries know them. Pure.

`base` is `<default registry>/library/base`; a name whose first part is no host belongs to the
default registry. People see the short form: what was pulled as `<default registry>/library/base`
is called `base` here. Source: the distribution project's `reference` package, "normalized" names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dockpy.errors import UsageError
from dockpy.model import DEFAULT_TAG
from dockpy.references import Reference, parse
from dockpy.registry.settings import DEFAULT_ALIASES, DEFAULT_REGISTRY, OFFICIAL, RegistrySettings


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on a registry. `host` may have a port; `familiar` is what people call it."""

    host: str
    path: str
    familiar: str

    def __str__(self) -> str:
        return self.familiar


@dataclass(frozen=True, slots=True)
class Remote:
    """An image, or with neither tag nor digest a whole repository, on a registry."""

    repository: Repository
    tag: str = ""
    digest: str = ""

    @property
    def selector(self) -> str:
        """What stands in the URL of the manifest; the digest wins over a tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def familiar(self) -> str:
        """As people write it, with `:latest` when nothing else was said."""
        if self.digest:
            tag = f":{self.tag}" if self.tag else ""
            return f"{self.repository.familiar}{tag}@{self.digest}"
        return f"{self.repository.familiar}:{self.tag or DEFAULT_TAG}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a registry's protocol is spoken. `schemes`: to be tried in this order.

    `host` is the registry the endpoint stands for, `address` is where it is; for a mirror they
    differ. `prefix` goes before `/v2/`.
    """

    host: str
    address: str
    schemes: tuple[str, ...]
    verify: bool
    prefix: str = ""
    mirror: bool = False


def resolve(name: str, settings: RegistrySettings) -> Remote:
    """The image a name means on a registry. UsageError for what is no name."""
    reference = parse(name)
    return Remote(repository_of(reference, settings), reference.tag, reference.digest)


def repository_of(reference: Reference, settings: RegistrySettings) -> Repository:
    """Host and path of a name taken apart."""
    host, path = reference.domain, reference.path
    default = settings.default_registry
    if host in DEFAULT_ALIASES:
        host = DEFAULT_REGISTRY
    if host and host != default:
        return Repository(host, path, f"{host}/{path}")
    if "/" not in path and default == DEFAULT_REGISTRY:
        path = f"{OFFICIAL}/{path}"
    short = path.removeprefix(f"{OFFICIAL}/") if default == DEFAULT_REGISTRY else path
    if "/" in short and path != short:
        short = path
    return Repository(default, path, short)


def registry_host(text: str, settings: RegistrySettings) -> str:
    """The registry a user of login names: a host, a URL of one, or "" for the default one."""
    host = text.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if not host and not text:
        return settings.default_registry
    try:
        reference = parse(f"{host}/x")
    except UsageError as error:
        raise UsageError(
            f"{text!r} is not a registry; give its host, and its port if any"
        ) from error
    if reference.domain in DEFAULT_ALIASES:
        return DEFAULT_REGISTRY
    return reference.domain or host


def endpoints(host: str, settings: RegistrySettings, *, pull: bool = True) -> Sequence[Endpoint]:
    """Where to ask, in this order: the mirrors when pulling, then the registry itself."""
    found = []
    for mirror in settings.mirrors.get(host, ()) if pull else ():
        scheme, _, rest = mirror.partition("://")
        address, slash, prefix = rest.rstrip("/").partition("/")
        found.append(
            Endpoint(
                host=host,
                address=address,
                schemes=(scheme,),
                verify=not settings.is_insecure(address),
                prefix=slash + prefix,
                mirror=True,
            )
        )
    address = settings.endpoint_of(host)
    plain = settings.may_be_plain(address)
    found.append(
        Endpoint(
            host=host,
            address=address,
            schemes=("https", "http") if plain else ("https",),
            verify=not settings.is_insecure(address),
        )
    )
    return found
