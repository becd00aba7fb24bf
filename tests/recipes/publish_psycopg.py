import psycopg
from psycopg.types.json import Jsonb


def pay(connection: psycopg.Connection, order_id: int, amount: int) -> None:
    event = {"order": {"id": order_id, "paid": amount}}
    with connection.transaction():
        connection.execute("select outbox.publish('ws_42', 'order.paid', %s)", [Jsonb(event)])
        connection.execute("update orders set owed = owed - %s where id = %s", [amount, order_id])
