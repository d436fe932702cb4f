"""Requests to stop a run, made at a known moment instead of by a signal."""

from apd_jax.runtime.preemption import StopFlag


class FlagAfter(StopFlag):
    """A flag that is requested once it has been read `looks` times."""

    def __init__(self, looks: int):
        self._looks = looks

    @property
    def requested(self) -> bool:
        self._looks -= 1
        return self._looks < 0
