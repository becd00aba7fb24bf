import json

from django.db import connection, transaction


def pay(order_id: int, amount: int) -> None:
    event = {"order": {"id": order_id, "paid": amount}}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("select outbox.publish('ws_42', 'order.paid', %s::jsonb)", [json.dumps(event)])
        cursor.execute("update orders set owed = owed - %s where id = %s", [amount, order_id])
