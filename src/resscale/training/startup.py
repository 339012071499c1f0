"""A request to stop that comes before training: there is nothing to save, so the process ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from resscale.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Startup:
    """Ends this process with 75 on SIGTERM or SIGUSR2, until training takes the signals over.

    The main thread may be waiting for other ranks inside a library, where Python's handlers do not
    run: a thread hears of the signal from the interpreter's own handler, which does.
    """

    def __init__(self) -> None:
        # Called first, such as to end the ranks that this process has started.
        self.before_end: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._writer: socket.socket | None = None

    def watch(self) -> None:
        """Take the signals; for the main thread, others leave them as they are."""
        if self._writer is not None or threading.current_thread() is not threading.main_thread():
            return
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._heard)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(reader,), name="startup-signals")
        thread.daemon = True
        thread.start()

    def over(self) -> None:
        """Give the signals back, but for those that somebody has taken since.

        Who has taken them may have put them back here later: then they go on to whom they came
        from, and a second call gives them back for good.
        """
        if self._writer is not None:
            signal.set_wakeup_fd(-1)
            self._writer.close()
            self._writer = self.before_end = None
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._heard:
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Do nothing while the thread listens, which the interpreter has told."""
        if self._writer is None:
            signal.signal(number, self._before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    def _listen(self, reader: socket.socket) -> None:
        with reader:
            while heard := reader.recv(1):
                # SIGINT and others come here too, and are for the main thread.
                if heard[0] in SIGNALS:
                    self._leave(signal.Signals(heard[0]).name)

    def _leave(self, name: str) -> None:
        try:
            # Not print: the main thread may be in the middle of one.
            os.write(2, f"{name}: stopped before training; nothing to save\n".encode())
            if self.before_end is not None:
                self.before_end()
        finally:
            os._exit(Preempted.exit_code)


# A process has one start and one set of signals.
STARTUP = Startup()
