import json

from sqlalchemy import text
from sqlalchemy.orm import Session

PUBLISH = text("select outbox.publish('ws_42', 'order.paid', cast(:payload as jsonb))")
PAY = text("update orders set owed = owed - :amount where id = :id")


def pay(session: Session, order_id: int, amount: int) -> None:
    event = {"order": {"id": order_id, "paid": amount}}
    with session.begin():
        session.execute(PUBLISH, {"payload": json.dumps(event)})
        session.execute(PAY, {"id": order_id, "amount": amount})
