"""Notices that the process at the other end of a link hangs: the socket to one that is stopped or stuck stays open."""

from collections.abc import Callable

from service.common.clock import Clock, Timer

BEAT_S = 1.0
"""Each process says that often that its event loop turns."""

SILENT_BEATS = 10
"""An other that lets so many of this process's beats go by without a word hangs."""


class Pulse:
    """Calls `beat` once a second, which tells the other; and `on_silence` once the other has been silent too long.

    `silent` tells whether it is. Time is counted in this process's own beats, so none passes while both are stopped, as
    with a machine that sleeps.
    """

    def __init__(self, clock: Clock, beat: Callable[[], None], on_silence: Callable[[], None]) -> None:
        self._clock = clock
        self._beat = beat
        self._on_silence = on_silence
        self._unheard = 0
        self._timer: Timer | None = None

    @property
    def silent(self) -> bool:
        """Whether it hangs, as far as can be seen from here."""
        return self._unheard >= SILENT_BEATS

    def start(self) -> None:
        """Begin."""
        self._timer = self._clock.call_at(self._clock.now() + BEAT_S, self._next)

    def heard(self) -> None:
        """The other has said something."""
        self._unheard = 0

    def stop(self) -> None:
        """Neither beat nor listen any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _next(self) -> None:
        self.start()
        self._beat()
        self._unheard += 1
        if self._unheard == SILENT_BEATS:
            self._on_silence()
