"""`python -m outbox_worker`: the same as the command outbox-worker."""

from outbox_worker.cli import main

main()
