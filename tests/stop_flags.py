"""Requests to stop a run, made at a known moment instead of by a signal."""

from apd_jax.runtime.preemption import StopFlag


class FlagAfter(StopFlag):
    """A flag that is requested once it has been read `looks` times."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0
