"""Which network interface connections go over."""

import socket
import subprocess
import sys
from pathlib import Path

from resscale.cluster.doctor.interfaces import (
    Connection,
    addresses_here,
    check_interface,
    interface_of,
    own_connections,
    parse_connections,
    speeds_here,
)

# As Linux writes them on a machine of little-endian words; 01 is established, 0A listens.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0
   1: 0B004D7F:9C42 0C004D7F:9C43 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st ...
   0: 0000000000000000FFFF00000B004D7F:9C42 0000000000000000FFFF00000C004D7F:9C43 01 \
00000000:00000000 00:00000000 00000000     0        0 13 1 0
   1: 00000000000000000000000001000000:9C42 00000000000000000000000001000000:9C43 01 \
00000000:00000000 00:00000000 00000000     0        0 14 1 0
"""


def test_established_connections_are_read_from_the_kernel_s_table() -> None:
    assert parse_connections(TCP) == [Connection("127.77.0.11", 12)]
    assert parse_connections(TCP6) == [Connection("127.77.0.11", 13), Connection("::1", 14)]


def test_this_process_s_own_connections_are_found_and_no_others() -> None:
    before = own_connections()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
            with accepted:
                new = own_connections() - before
        assert [connection.local for connection in new] == ["127.0.0.1", "127.0.0.1"]
    assert own_connections() == before


def test_connections_of_other_processes_are_not_this_one_s() -> None:
    program = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "there = socket.create_connection(listener.getsockname()[:2])\n"
        "here, _ = listener.accept()\n"
        "print('connected', flush=True)\n"
        "input()\n"
    )
    before = own_connections()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "connected\n"
        assert own_connections() == before
        other.communicate("\n", timeout=60)


def test_an_address_is_that_of_its_interface() -> None:
    known = {"10.0.0.1": "eth0", "127.0.0.1": "lo"}
    assert interface_of("10.0.0.1", known) == "eth0"
    # The whole network 127.0.0.0/8 is the loopback's.
    assert interface_of("127.0.0.11", known) == "lo"
    assert interface_of("10.0.0.9", known) == "10.0.0.9"


def test_the_interfaces_of_this_machine_are_listed() -> None:
    assert addresses_here()["127.0.0.1"] == "lo"


def test_the_speeds_of_interfaces_that_are_up_are_read(tmp_path: Path) -> None:
    for name, state, speed in [
        ("eth0", "up", "1000"),
        ("ib0", "up", "200000"),
        ("eth1", "down", "10000"),
        ("eth2", "up", "-1"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(state + "\n")
        (tmp_path / name / "speed").write_text(speed + "\n")
    (tmp_path / "lo").mkdir()
    assert speeds_here(tmp_path) == {"eth0": 1000, "ib0": 200_000}
    assert speeds_here(tmp_path / "missing") == {}


def test_a_faster_interface_than_the_one_in_use_is_warned_of() -> None:
    (found,) = check_interface(["eth0"], {"eth0": 1000, "ib0": 200_000})
    assert found.level == "warn"
    assert found.text == "ranks talk over eth0 (1,000 Mbit/s), and ib0 (200,000 Mbit/s) is up"
    assert "NCCL_SOCKET_IFNAME=ib0" in found.remedy


def test_the_fastest_interface_in_use_is_well() -> None:
    assert check_interface(["ib0"], {"eth0": 1000, "ib0": 200_000}) == []
    assert check_interface(["lo"], {"eth0": 1000}) == []
    assert check_interface([], {}) == []
