"""Names of images: repository and tag to image id, in one record."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dockpy.errors import Conflict, NoSuchImage, TornRecord, UsageError
from dockpy.graph import Finding, Graph
from dockpy.model import DEFAULT_TAG, Image
from dockpy.records import Flusher, read_json, set_aside, write
from dockpy.references import DIGEST_SIZES, Reference, check_tag, parse, parse_repository

_ID = re.compile(r"[0-9a-f]{64}")


class TagStore:
    """`<root>/repositories.json`: {"repository": {"tag": "image id"}}. Thread-safe.

    A change is in the file when the call returns, and on the disk soon after (`Flusher.flush` is
    the barrier).
    """

    def __init__(self, root: Path, graph: Graph, flusher: Flusher) -> None:
        """Load the names. A torn record is set aside and told in `findings`."""
        self._path = root / "repositories.json"
        self._graph = graph
        self._flusher = flusher
        self._lock = threading.RLock()
        self._names: dict[str, dict[str, str]] = {}
        self._encoded: dict[str, str] = {}
        """Repositories as they are in the record, as far as they did not change since."""
        self.findings: list[Finding] = []
        self.by_digest: Callable[[str], Image | None] = lambda _name: None
        """Finds an image by the digest a registry gave it, `name@sha256:...`."""
        self.familiar: Callable[[Reference], str] = lambda reference: reference.repository
        """What people call a repository, without the default registry's host."""
        try:
            self.reload()
        except TornRecord as torn:
            aside = set_aside(self._path)
            self.findings.append(Finding(self._path, str(torn), f"set aside as {aside.name}"))

    # -- asking --------------------------------------------------------------------------------

    def kept(self, repository: str) -> str:
        """The name under which a repository is kept here: the short one, unless there are names
        under the long one only, as an earlier default registry left them. UsageError."""
        return self._kept(parse_repository(repository))

    def get(self, repository: str) -> dict[str, str]:
        """Tag to image id; empty when there is no such repository. UsageError for a bad name."""
        name = self.kept(repository)
        with self._lock:
            return dict(self._names.get(name, {}))

    def get_image(self, repository: str, tag: str = DEFAULT_TAG) -> Image:
        """The image with that name. NoSuchImage, UsageError."""
        image_id = self.get(repository).get(check_tag(tag))
        if image_id is None:
            raise NoSuchImage(f"{repository}:{tag}")
        return self._graph.get(image_id)

    def lookup_image(self, name: str) -> Image:
        """By name (tag `latest` unless given), or by id, unique prefix or `sha256:` id.

        A name wins over a prefix that looks the same. NoSuchImage, AmbiguousPrefix, and UsageError
        for what can be neither.
        """
        try:
            reference = parse(name)
        except UsageError:
            if _ID.fullmatch(name.removeprefix("sha256:")):
                return self._graph.get(name)
            raise
        with self._lock:
            tags = self._names.get(self._kept(reference), {})
            image_id = tags.get(reference.tag or DEFAULT_TAG)
        if reference.digest:
            image = self.by_digest(name) or self._graph.get(reference.digest)
            if reference.tag and image_id != image.id:
                raise NoSuchImage(name)
            return image
        if image_id is not None:
            return self._graph.get(image_id)
        return self._graph.get(name)

    def image_name(self, image_id: str) -> str:
        """The first of the image's names as `repository:tag`, or its short id."""
        names = self.by_id().get(image_id)
        return names[0] if names else image_id[:12]

    def by_id(self) -> dict[str, list[str]]:
        """Image id to its names as `repository:tag`, sorted."""
        found: dict[str, list[str]] = {}
        with self._lock:
            for repository, tags in self._names.items():
                for tag, image_id in tags.items():
                    found.setdefault(image_id, []).append(f"{repository}:{tag}")
        for names in found.values():
            names.sort()
        return found

    def repositories(self) -> dict[str, dict[str, str]]:
        """Everything: repository to tag to image id."""
        with self._lock:
            return {repository: dict(tags) for repository, tags in self._names.items()}

    # -- changing ------------------------------------------------------------------------------

    def set(self, repository: str, tag: str, reference: str, force: bool = False) -> None:
        """Give the image found by `reference` (name or id) a name; tag "" is `latest`.

        Conflict when the name belongs to another image, unless `force` moves it. UsageError for a
        repository that is called as a digest's algorithm: `sha256:...` is an id.
        """
        name = self.kept(repository)
        if name in DIGEST_SIZES:
            raise UsageError(f"invalid image name {name!r}: with a tag it would look like an id")
        tag = check_tag(tag or DEFAULT_TAG)
        with self._lock:
            image = self.lookup_image(reference)
            owner = self._names.get(name, {}).get(tag)
            if owner == image.id:
                return
            if owner is not None and not force:
                raise Conflict(f"{name}:{tag} is image {owner[:12]} already; force moves the name")
            with self._saved(name):
                self._names.setdefault(name, {})[tag] = image.id

    def delete(self, repository: str, tag: str = "") -> list[str]:
        """Take a name away, or with tag "" every name of the repository; gives what was removed.

        The image stays. NoSuchImage when there is no such name.
        """
        name = self.kept(repository)
        with self._lock:
            tags = self._names.get(name, {})
            gone = [check_tag(tag)] if tag else sorted(tags)
            if not gone or any(one not in tags for one in gone):
                raise NoSuchImage(f"{name}:{tag}" if tag else name)
            with self._saved(name):
                for one in gone:
                    del tags[one]
                if not tags:
                    del self._names[name]
        return [f"{name}:{one}" for one in gone]

    def save(self) -> None:
        """Write the record. KernelError leaves the old one in place."""
        with self._lock:
            entries = ",".join(self._encode(name) for name in sorted(self._names))
            write(self._path, f"{{{entries}}}".encode(), self._flusher)

    def reload(self) -> None:
        """Read the record again. TornRecord leaves the names as they were."""
        with self._lock:
            try:
                values = read_json(self._path)
            except FileNotFoundError:
                values = {}
            if not _is_record(values):
                raise TornRecord(str(self._path), "not a record of repositories and tags")
            self._names = values
            self._encoded.clear()

    def _kept(self, reference: Reference) -> str:
        short, typed = self.familiar(reference), reference.repository
        with self._lock:
            return typed if typed in self._names and short not in self._names else short

    def _encode(self, name: str) -> str:
        text = self._encoded.get(name)
        if text is None:
            tags = json.dumps(self._names[name], sort_keys=True, separators=(",", ":"))
            text = self._encoded[name] = f"{json.dumps(name)}:{tags}"
        return text

    @contextmanager
    def _saved(self, name: str) -> Iterator[None]:
        """What the block does to one repository is in the file afterwards, or undone."""
        before = dict(self._names.get(name, {}))
        self._encoded.pop(name, None)
        try:
            yield
            self.save()
        except BaseException:
            self._names.pop(name, None)
            self._encoded.pop(name, None)
            if before:
                self._names[name] = before
            raise


def _is_record(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(repository, str)
        and isinstance(tags, dict)
        and all(
            isinstance(tag, str) and isinstance(image_id, str) and _ID.fullmatch(image_id)
            for tag, image_id in tags.items()
        )
        for repository, tags in values.items()
    )
