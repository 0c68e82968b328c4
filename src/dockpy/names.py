"""Identifiers and names of containers. Pure, but for the randomness."""

from __future__ import annotations

import os
import re

from dockpy.errors import UsageError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}\Z")
_ID = re.compile(r"[0-9a-f]{64}\Z")

_ADJECTIVES = (
    "amber brave calm clear cosy eager early fair fleet fond gentle glad grand happy hardy "
    "honest humble jolly keen kind light lively lucky mellow merry mild neat nimble noble "
    "patient plain polite proud quick quiet rapid ready silent sharp shiny smart snug solid "
    "steady still sunny sure swift tender tidy trusty vivid warm wise witty young zesty"
)
_NOUNS = (
    "anchor badger barge beacon birch brook buoy canal cedar cliff cloud comet coral crane delta "
    "dune eagle ember fern ferry finch fjord flint gale gannet glade grove gull harbor hazel "
    "heron island jetty kelp kite lagoon larch lark lantern maple marlin meadow minnow oak "
    "osprey otter pebble petrel pier pine plover puffin quay raven reef ridge robin rowan "
    "schooner seal shoal spruce starling stone swan tern thistle tide trout wharf willow wren"
)
_LEFT, _RIGHT = _ADJECTIVES.split(), _NOUNS.split()


def generate_id() -> str:
    """64 random hex digits; never all decimal in the first twelve, so no shell reads a number."""
    while (identifier := os.urandom(32).hex())[:12].isdigit():
        pass
    return identifier


def validate_id(identifier: str) -> str:
    """The identifier itself; UsageError when it is not 64 hex digits."""
    if not _ID.match(identifier):
        raise UsageError(f"{identifier[:80]!r} is not an id: 64 lower-case hex digits are needed")
    return identifier


def truncate_id(identifier: str) -> str:
    """The first twelve digits, as people see ids."""
    return identifier[:12]


def random_name() -> str:
    """A name a person can remember; about five thousand of them, then a number is added."""
    left, right, number = os.urandom(3)
    name = f"{_LEFT[left % len(_LEFT)]}_{_RIGHT[right % len(_RIGHT)]}"
    return name if number < 224 else f"{name}{os.urandom(2).hex()}"


def validate_name(name: str) -> str:
    """The name itself; UsageError when it is not allowed."""
    if not _NAME.match(name):
        raise UsageError(
            f"bad container name {name[:80]!r}: use 2 to 255 letters, digits, _ . and -, "
            "beginning with a letter or digit"
        )
    return name
