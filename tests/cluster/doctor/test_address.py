"""Whether rank 0 can be found."""

from resscale.cluster.doctor.address import AddressFacts, check_address, probe_address

FOUND = AddressFacts("n1", ("10.0.0.1",), 40123)


def test_a_name_that_takes_connections_is_well() -> None:
    (found,) = check_address(FOUND, 2, has_met=False)
    assert (found.level, found.text) == ("ok", "n1 is 10.0.0.1; a free port takes connections")


def test_a_name_without_an_address_fails() -> None:
    facts = AddressFacts("n1", (), None, "Name or service not known")
    (found,) = check_address(facts, 1, has_met=False)
    assert found.level == "fail"
    assert "has no address (Name or service not known)" in found.text


def test_no_free_port_fails() -> None:
    facts = AddressFacts("n1", ("10.0.0.1",), None, "Address already in use")
    (found,) = check_address(facts, 1, has_met=False)
    assert (found.level, "no port is free" in found.text) == ("fail", True)


def test_a_port_that_takes_no_connection_fails() -> None:
    facts = AddressFacts("n1", ("10.0.0.1",), 40123, "timed out")
    (found,) = check_address(facts, 1, has_met=False)
    assert found.level == "fail"
    assert "port 40123 there takes no connection (timed out)" in found.text


def test_a_loopback_name_is_warned_of_where_other_nodes_are_to_find_it() -> None:
    facts = AddressFacts("n1", ("127.0.1.1",), 40123)
    assert check_address(facts, 1, has_met=False)[0].level == "ok"
    assert check_address(facts, 2, has_met=False)[0].level == "warn"
    # They have found it: these nodes are one machine.
    assert check_address(facts, 2, has_met=True)[0].level == "ok"


def test_the_probe_connects_to_itself() -> None:
    facts = probe_address("localhost")
    assert "127.0.0.1" in facts.addresses
    assert (facts.port is not None, facts.why_not) == (True, "")


def test_the_probe_of_a_name_that_cannot_be_one_finds_no_address() -> None:
    facts = probe_address("a..b")
    assert facts.addresses == ()
    assert check_address(facts, 1, has_met=False)[0].level == "fail"
