"""What customers can read of a failure tells them nothing about our own network."""

from __future__ import annotations

from ipaddress import ip_network

from tests.support.factories import LOOPBACK, SHORT, make_endpoint, publish, state_of
from tests.support.waiting import eventually

TENANT_VIEWS = ("tenant_events", "tenant_endpoints", "tenant_deliveries", "tenant_attempts")
OURS = ip_network("127.0.0.0/9")


async def test_no_customer_reads_which_networks_are_denied(shop, receiver, working):
    """Operators see the address and the network that refused it; tenants' views and operational events only the kind."""
    shop.execute("update outbox.settings set failing_notice_after = '1 ms'")
    shop.execute("insert into outbox.tenant_logins values (session_user, 'ws_1')")
    endpoint, _ = make_endpoint(shop, receiver.url, ["message.*", "delivery.dead"], retry_schedule=SHORT[:2])
    async with working(deny_networks=(OURS,), allow_networks=LOOPBACK):
        event = publish(shop)
        await eventually(lambda: state_of(shop, event, endpoint) == "dead")
        told = "select payload ->> 'last_error' from outbox.event_log where event_type = %s"
        for event_type in ("delivery.dead", "endpoint.failing"):
            found = await eventually(lambda told=told, kind=event_type: shop.execute(told, [kind]).fetchone())
            assert found == ("blocked_address",)
    assert receiver.connections == 0
    seen = str([shop.execute(f"select * from outbox.{view}").fetchall() for view in TENANT_VIEWS])
    assert "blocked_address" in seen
    assert str(OURS) not in seen
    assert "denied" not in seen
    (error,) = shop.execute("select error from outbox.attempt_log limit 1").fetchone()
    assert f"127.0.0.1 is in {OURS}, a denied network" in error
