"""Whether rank 0 can be found: its name, and a free port that takes connections."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from resscale.cluster.doctor.finding import Finding
from resscale.cluster.ranks import HeldPort

NAME = "address"
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class AddressFacts:
    """What this machine says of itself.

    Args:
        name: what the other nodes would call it.
        addresses: what that name resolves to here.
        port: a free one that was listened on; None where there was none.
        why_not: why no connection to name and port came about; "" where one did.
    """

    name: str
    addresses: tuple[str, ...]
    port: int | None
    why_not: str = ""


def check_address(facts: AddressFacts, num_nodes: int, has_met: bool) -> list[Finding]:
    """Judge whether other ranks can reach this machine.

    Args:
        facts: what it says of itself.
        num_nodes: nodes that are to find it.
        has_met: ranks of other nodes have found it just now.
    """
    if not facts.addresses:
        return [
            Finding(
                NAME,
                "fail",
                f"this machine's name {facts.name} has no address ({facts.why_not})",
                "enter it in the name service or in /etc/hosts, or set MASTER_ADDR to an address",
            )
        ]
    known = f"{facts.name} is {', '.join(facts.addresses)}"
    if facts.addresses == (facts.name,):
        known = facts.name
    if facts.port is None:
        return [
            Finding(
                NAME,
                "fail",
                f"{known}, and no port is free ({facts.why_not})",
                "end what holds them (ss -tan), or widen net.ipv4.ip_local_port_range",
            )
        ]
    if facts.why_not:
        return [
            Finding(
                NAME,
                "fail",
                f"{known}, and port {facts.port} there takes no connection ({facts.why_not})",
                f"open ports between the nodes in the firewall, and see that {facts.name} is this "
                f"machine",
            )
        ]
    loopback = all(ipaddress.ip_address(address).is_loopback for address in facts.addresses)
    if num_nodes > 1 and loopback and not has_met:
        return [
            Finding(
                NAME,
                "warn",
                f"{known}, which no other machine can reach",
                "remove the name's 127.0.x.x line from /etc/hosts, or set MASTER_ADDR to the "
                "address that the other nodes know",
            )
        ]
    return [Finding(NAME, "ok", f"{known}; a free port takes connections")]


def probe_address(name: str) -> AddressFacts:
    """Listen on a free port and connect to it by this machine's name.

    Args:
        name: what the other nodes would call it.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return AddressFacts(name, (), None, getattr(error, "strerror", None) or str(error))
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    try:
        held = HeldPort()
    except OSError as error:
        return AddressFacts(name, addresses, None, error.strerror or str(error))
    with socket.socket() as listener:
        # As torch's store does on a port that rank 0 holds.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", held.number))
            listener.listen()
            with socket.create_connection((name, held.number), timeout=_TIMEOUT_S):
                pass
        except OSError as error:
            return AddressFacts(name, addresses, held.number, error.strerror or str(error))
        finally:
            held.close()
    return AddressFacts(name, addresses, held.number)
