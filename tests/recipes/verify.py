from standardwebhooks import Webhook


def verify(secret: str, headers: dict[str, str], body: str) -> dict:
    return Webhook(secret).verify(body, headers)
