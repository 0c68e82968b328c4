"""Containers and images in the shape of `docker inspect`. Pure.

Key names and their order are those of the Docker Engine API's ContainerInspect and ImageInspect, so
that users' templates and jq lines work. Values dockpy has no notion of are Docker's for "nothing".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dockpy.cli.engine import EngineContainer
from dockpy.cli.render import ZERO_TIME, json_time
from dockpy.cli.template import Map
from dockpy.model import Bind, Config, Image, State, Status
from dockpy.network.ports import binding_map, bindings, port_map
from dockpy.network.values import Endpoint, Lease

DRIVER = "overlay"
_MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READ_ONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def container_values(
    container: EngineContainer, run: Path, root: Path, lease: Lease | None = None
) -> dict[str, Any]:
    """A container; `run` and `root` are the engine's directories, `lease` its network now."""
    config = container.config
    files = run / "containers" / container.id
    directory = root / "containers" / container.id
    return {
        "Id": container.id,
        "Created": json_time(container.created),
        "Path": container.path,
        "Args": list(container.args),
        "State": state_values(container.state),
        "Image": f"sha256:{container.record.image_id}",
        "ResolvConfPath": str(files / "resolv.conf"),
        "HostnamePath": str(files / "hostname"),
        "HostsPath": str(files / "hosts"),
        "LogPath": str(directory / "container.log"),
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": DRIVER,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": host_values(config),
        "GraphDriver": {
            "Data": Map(
                UpperDir=str(directory / "upper"),
                WorkDir=str(directory / "work"),
            ),
            "Name": DRIVER,
        },
        "Mounts": [mount_values(bind) for bind in config.binds]
        + [tmpfs_values(target, options) for target, options in config.tmpfs.items()],
        "Config": config_values(config, container.image_name, container.id[:12]),
        "NetworkSettings": network_values(config, lease or Lease()),
    }


def state_values(state: State) -> dict[str, Any]:
    """The State part."""
    return {
        "Status": state.status.value,
        "Running": state.running,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": state.oom_killed,
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": json_time(state.started_at),
        "FinishedAt": json_time(state.finished_at),
    }


def host_values(config: Config) -> dict[str, Any]:
    """The HostConfig part: what the host gives and limits."""
    log = {"max-size": str(config.log_max_size)} if config.log_max_size else {}
    if config.log_max_file > 1:
        log["max-file"] = str(config.log_max_file)
    return {
        "Binds": [bind_text(bind) for bind in config.binds] or None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": Map(log)},
        "NetworkMode": config.network_mode,
        "PortBindings": Map(binding_map(bindings(config.port_specs))),
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": config.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "CapAdd": list(config.cap_add) or None,
        "CapDrop": list(config.cap_drop) or None,
        "CgroupnsMode": "private",
        "Dns": list(config.dns),
        "DnsOptions": list(config.dns_options),
        "DnsSearch": list(config.dns_search),
        "ExtraHosts": list(config.extra_hosts) or None,
        "GroupAdd": None,
        "IpcMode": "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": config.oom_score_adj,
        "PidMode": "",
        "Privileged": config.privileged,
        "PublishAllPorts": False,
        "ReadonlyRootfs": config.read_only,
        "SecurityOpt": security_values(config),
        "Tmpfs": Map(sorted(config.tmpfs.items())),
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": config.shm_size,
        "Runtime": "dockpy",
        "Isolation": "",
        "CpuShares": config.cpu_shares,
        "Memory": config.memory,
        "NanoCpus": round(config.cpus * 1_000_000_000),
        "CgroupParent": "",
        "BlkioWeight": config.blkio_weight,
        "CpuPeriod": 0,
        "CpuQuota": 0,
        "CpusetCpus": config.cpuset_cpus,
        "CpusetMems": config.cpuset_mems,
        "Devices": [device_values(text) for text in config.devices],
        "MemoryReservation": config.memory_reservation,
        "MemorySwap": config.memory_swap,
        "MemorySwappiness": None,
        "OomKillDisable": False,
        "PidsLimit": config.pids_limit,
        "Ulimits": [
            {"Name": one.name, "Hard": one.hard, "Soft": one.soft} for one in config.ulimits
        ],
        "Init": config.init,
        "MaskedPaths": None if config.privileged else list(_MASKED_PATHS),
        "ReadonlyPaths": None if config.privileged else list(_READ_ONLY_PATHS),
    }


def security_values(config: Config) -> list[str] | None:
    """The --security-opt of the container, the profile itself instead of its file's name."""
    found = []
    if config.seccomp != "default":
        found.append(f"seccomp={config.seccomp}")
    if config.no_new_privileges:
        found.append("no-new-privileges")
    return found or None


def config_values(config: Config, image: str, hostname: str) -> dict[str, Any]:
    """The Config part: what an image can preset too."""
    return {
        "Hostname": config.hostname or hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.attach_stdin,
        "AttachStdout": config.attach_stdout,
        "AttachStderr": config.attach_stderr,
        "ExposedPorts": keys(config.exposed_ports),
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": list(config.env),
        "Cmd": list(config.cmd) or None,
        "Image": image,
        "Volumes": keys(config.volumes),
        "WorkingDir": config.working_dir,
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Labels": Map(sorted(config.labels.items())),
        "StopSignal": config.stop_signal or "SIGTERM",
        "StopTimeout": config.stop_timeout,
    }


def keys(values: Sequence[str]) -> Map:
    """A set as Docker's JSON has it: an object with empty objects."""
    return Map({value: {} for value in sorted(values)})


def bind_text(bind: Bind) -> str:
    """SOURCE:TARGET[:ro]."""
    return f"{bind.source}:{bind.target}{':ro' if bind.read_only else ''}"


def mount_values(bind: Bind) -> dict[str, Any]:
    """A bind in the Mounts part."""
    return {
        "Type": "bind",
        "Source": bind.source,
        "Destination": bind.target,
        "Mode": "ro" if bind.read_only else "",
        "RW": not bind.read_only,
        "Propagation": "rprivate" if bind.recursive else "private",
    }


def tmpfs_values(target: str, options: str) -> dict[str, Any]:
    """A tmpfs in the Mounts part."""
    return {
        "Type": "tmpfs",
        "Source": "",
        "Destination": target,
        "Mode": options,
        "RW": "ro" not in options.split(","),
        "Propagation": "",
    }


def device_values(text: str) -> dict[str, str]:
    """A --device in the HostConfig part."""
    source, *rest = text.split(":")
    access = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    return {
        "PathOnHost": source,
        "PathInContainer": rest[0] if rest else source,
        "CgroupPermissions": access,
    }


def network_values(config: Config, lease: Lease) -> dict[str, Any]:
    """The NetworkSettings part: addresses and ports of the run there is."""
    networks = {one.network_name: endpoint_values(one) for one in lease.endpoints}
    if not networks:
        networks = {config.network_mode: endpoint_values(None)}
    first = next(iter(networks.values()))
    ports = port_map(lease.published, config.exposed_ports, ipv6=lease.ipv6)
    return {
        "Bridge": lease.endpoints[0].bridge if lease.endpoints else "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": Map(ports),
        **{name: value for name, value in first.items() if name not in ENDPOINT_ONLY},
        "Networks": Map(networks),
    }


ENDPOINT_ONLY = frozenset({"IPAMConfig", "Links", "Aliases", "NetworkID", "DNSNames"})
"""What an endpoint shows and the container's summary of its first one does not."""


def endpoint_values(endpoint: Endpoint | None) -> dict[str, Any]:
    """A container's place in a network; without one, what there is in none."""
    if endpoint is None:
        endpoint = Endpoint(
            network="",
            network_name="",
            bridge="",
            cable="",
            inside="",
            index=0,
            address="",
            prefix=0,
            gateway="",
            hardware="",
        )
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": list(endpoint.aliases) or None,
        "NetworkID": endpoint.network,
        "EndpointID": endpoint.cable,
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.address,
        "IPPrefixLen": endpoint.prefix,
        "IPv6Gateway": endpoint.gateway6,
        "GlobalIPv6Address": endpoint.address6,
        "GlobalIPv6PrefixLen": endpoint.prefix6,
        "MacAddress": endpoint.hardware,
        "DNSNames": list(endpoint.aliases) or None,
    }


def image_values(
    image: Image, names: Sequence[str], digests: Sequence[str], layers: Sequence[Path]
) -> dict[str, Any]:
    """An image; `names` as repository:tag, `digests` as repository@digest, `layers` top-most
    first."""
    return {
        "Id": f"sha256:{image.id}",
        "RepoTags": sorted(names),
        "RepoDigests": list(digests),
        "Parent": f"sha256:{image.parent}" if image.parent else "",
        "Comment": image.comment,
        "Created": json_time(image.created),
        "Container": image.container,
        "DockerVersion": "",
        "Author": image.author,
        "Config": config_values(image.config, "", ""),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Data": Map(layer_paths(layers)), "Name": DRIVER},
        "RootFS": {"Type": "layers", "Layers": [f"sha256:{one}" for one in image.diff_ids]},
        "Metadata": {"LastTagTime": ZERO_TIME},
    }


def layer_paths(layers: Sequence[Path]) -> Mapping[str, str]:
    """The directories of an image's files."""
    if not layers:
        return {}
    upper, *lowers = map(str, layers)
    return {"LowerDir": ":".join(lowers), "UpperDir": upper} if lowers else {"UpperDir": upper}
