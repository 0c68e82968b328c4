"""Names of images: `[host[:port]/]path[:tag][@digest]`. Pure.

The grammar is the one of the distribution project (`reference` package, "Grammar" comment): path
components are lower case letters and digits with single `.`, one or two `_`, or any number of `-`
between them; a tag has up to 128 of letters, digits, `_`, `.` and `-`; name and host together have
at most 255 characters. The first component is a host when it has a `.` or a `:`, is `localhost`,
or has upper case letters. Names stay as typed: `base` is not `docker.io/library/base` here; that
equation belongs to the modules that know registries, and to `tags`, which asks them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dockpy.errors import UsageError

NAME_LIMIT = 255
_SEPARATED = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_COMPONENT = re.compile(_SEPARATED, re.ASCII)
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+")
DIGEST_SIZES = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Algorithm to the number of its hexadecimal digits."""
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A name taken apart. `domain` may be "", `tag` and `digest` are "" when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Host and path, as typed."""
        return f"{self.domain}/{self.path}" if self.domain else self.path

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse(text: str) -> Reference:
    """Take a name apart. Raises UsageError that says which part is wrong."""
    if not text:
        raise UsageError("the image name is empty")
    rest, at, digest = text.partition("@")
    if at:
        _check_digest(text, digest)
    name, colon, tag = rest.rpartition(":")
    if colon and "/" not in tag:
        check_tag(tag)
    else:
        name, tag = rest, ""
    domain, path = _split_domain(name)
    _check_name(text, name, domain, path)
    return Reference(domain, path, tag, digest)


def parse_repository(text: str) -> Reference:
    """A name without tag and digest. Raises UsageError."""
    reference = parse(text)
    if reference.tag or reference.digest:
        raise UsageError(f"invalid repository name {text!r}: it must not have a tag or a digest")
    return reference


def check_tag(tag: str) -> str:
    """The tag itself when it is valid. Raises UsageError."""
    if not tag:
        raise UsageError("the tag is empty")
    if len(tag) > 128:
        raise UsageError(f"invalid tag {tag[:20]!r}...: it has more than 128 characters")
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"invalid tag {tag!r}: letters, digits, '_', '.' and '-' are allowed, "
            "and it must not begin with '.' or '-'"
        )
    return tag


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return first, rest
    return "", name


def _check_name(text: str, name: str, domain: str, path: str) -> None:
    if not path:
        raise UsageError(f"invalid image name {text!r}: the name is empty")
    if len(name) > NAME_LIMIT:
        raise UsageError(f"invalid image name {text[:20]!r}...: more than {NAME_LIMIT} characters")
    if domain and not _HOST.fullmatch(domain):
        raise UsageError(f"invalid image name {text!r}: {domain!r} is not a host name")
    if not domain and _IMAGE_ID.fullmatch(path):
        raise UsageError(f"invalid image name {text!r}: it looks like an image id")
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if not component:
            raise UsageError(f"invalid image name {text!r}: it has an empty part between slashes")
        if component != component.lower() and _COMPONENT.fullmatch(component.lower()):
            raise UsageError(f"invalid image name {text!r}: it must be lower case")
        raise UsageError(
            f"invalid image name {text!r}: {component!r} may have lower case letters and digits, "
            "with '.', '_', '__' or '-' between them"
        )


def _check_digest(text: str, digest: str) -> None:
    algorithm, _, value = digest.partition(":")
    size = DIGEST_SIZES.get(algorithm)
    if size is None or len(value) != size or not _HEX.fullmatch(value):
        raise UsageError(
            f"invalid digest in {text[:80]!r}: expected for example sha256:<64 hex digits>"
        )
