def try_cable(
    host: int,
    namespace: int,
    name: bytes,
    number: int,
    master: int,
    index: int,
    inner_name: bytes,
    hardware: bytes,
    gateway_hardware: bytes,
    addresses: list[tuple[bytes, int, bytes]],
    default_route: bool,
    mtu: int,
    route_mtu: int,
    reflect: bool,
) -> tuple[int, int]: ...
def try_forget_neighbours(host: int, master: int, addresses: list[bytes]) -> int: ...
def try_remove_link(host: int, name: bytes) -> int: ...
