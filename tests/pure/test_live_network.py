from __future__ import annotations

import threading
import time

import pytest

from dockpy.network.addresses import PoolExhausted, Segment
from dockpy.network.bridges import BridgeLink
from dockpy.network.live import LiveNetwork
from dockpy.network.values import Network, Wish


def test_starts_that_find_a_bridge_full_at_once_open_one_more_and_not_one_each() -> None:
    opened: list[str] = []

    def slowly(segment: Segment) -> BridgeLink:
        time.sleep(0.02)
        opened.append(segment.bridge)
        return BridgeLink(len(opened), 1500)

    network = Network(id="n" * 64, name="wide", bridge="br", subnet="10.9.0.0/22")
    live = LiveNetwork(network, slowly)
    for _ in range(253):
        live.place(Wish(), "eth0", 2)
    assert opened == ["br"]
    together, places = threading.Barrier(8), list[str]()

    def start() -> None:
        together.wait()
        places.append(live.place(Wish(), "eth0", 2).address)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert opened == ["br", "br.1"]
    assert len(set(places)) == 8


def test_the_last_address_of_the_last_bridge_is_given_and_then_none() -> None:
    network = Network(id="n" * 64, name="pair", bridge="br", subnet="10.9.0.0/23")
    live = LiveNetwork(network, lambda _: BridgeLink(1, 1500))
    given = {live.place(Wish(), "eth0", 2).address for _ in range(live.capacity)}
    assert len(given) == live.capacity == 506
    with pytest.raises(PoolExhausted, match=r"network pair: every address of 10\.9\.0\.0/23"):
        live.place(Wish(), "eth0", 2)
