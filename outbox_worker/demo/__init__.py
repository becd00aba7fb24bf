"""The main job from end to end on this machine: a real PostgreSQL, workers, a receiver that checks everything."""

from outbox_worker.demo.stage import run

__all__ = ["run"]
