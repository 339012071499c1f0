"""Which network interface this process's connections go over, and what else there is."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resscale.cluster.doctor.finding import Finding

NAME = "links"
_ESTABLISHED = "01"
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of <linux/sockios.h>
# A faster one must be worth the change.
_FASTER = 1.5


@dataclass(frozen=True)
class Connection:
    """An established TCP connection: its local address, and its socket's number in the kernel."""

    local: str
    inode: int


def parse_connections(table: str) -> list[Connection]:
    """Return the established connections of /proc/net/tcp or /proc/net/tcp6.

    Args:
        table: the file's text.
    """
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _ESTABLISHED:
            found.append(Connection(_address(words[1].partition(":")[0]), int(words[9])))
    return found


def own_connections() -> set[Connection]:
    """Return this process's established TCP connections."""
    numbers = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are enough
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - no path, a name
        except OSError:
            continue
        if target.startswith("socket:["):
            numbers.add(int(target[8:-1]))
    tables = [Path("/proc/self/net") / kind for kind in ("tcp", "tcp6")]
    return {
        connection
        for table in tables
        if table.is_file()
        for connection in parse_connections(table.read_text())
        if connection.inode in numbers
    }


def interface_of(address: str, known: Mapping[str, str]) -> str:
    """Return the interface that an address belongs to; the address itself where none is known.

    Args:
        address: of this machine.
        known: address -> interface.
    """
    if address in known:
        return known[address]
    return "lo" if ipaddress.ip_address(address).is_loopback else address


def addresses_here() -> dict[str, str]:
    """Return the main address of each interface, address -> name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asker.fileno(), _GET_ADDRESS, request)
            except OSError:
                continue
            found[socket.inet_ntoa(answer[20:24])] = name
    table = Path("/proc/self/net/if_inet6")
    for line in table.read_text().splitlines() if table.is_file() else []:
        words = line.split()
        found[str(ipaddress.IPv6Address(bytes.fromhex(words[0])))] = words[-1]
    return found


def speeds_here(folder: Path = Path("/sys/class/net")) -> dict[str, int]:
    """Return the interfaces that are up and say how fast they are, name -> Mbit/s.

    Args:
        folder: where the kernel lists them.
    """
    found = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            is_up = (entry / "operstate").read_text().strip() == "up"
            speed = int((entry / "speed").read_text())
        except (OSError, ValueError):
            continue
        if is_up and speed > 0:
            found[entry.name] = speed
    return found


def check_interface(used: Iterable[str], speeds: Mapping[str, int]) -> list[Finding]:
    """Warn where a faster interface than the one in use is up.

    Args:
        used: names of the interfaces that ranks have talked over.
        speeds: of those that are up, Mbit/s.
    """
    names = sorted(set(used) & set(speeds))
    if not names:
        return []
    slowest = min(names, key=lambda name: speeds[name])
    fastest = max(speeds, key=lambda name: speeds[name])
    if speeds[fastest] < _FASTER * speeds[slowest]:
        return []
    return [
        Finding(
            NAME,
            "warn",
            f"ranks talk over {slowest} ({speeds[slowest]:,} Mbit/s), and {fastest} "
            f"({speeds[fastest]:,} Mbit/s) is up",
            f"if it joins the nodes, export NCCL_SOCKET_IFNAME={fastest} "
            f"GLOO_SOCKET_IFNAME={fastest}",
        )
    ]


def _address(text: str) -> str:
    """Return the address that the kernel writes as words of the machine's byte order."""
    raw = bytes.fromhex(text)
    ordered = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    address = ipaddress.ip_address(ordered)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
