"""The worker and the receiver of the flow tests, to be broken here."""

from tests.flow.conftest import receiver, shop, vault_key, working

__all__ = ["receiver", "shop", "vault_key", "working"]
