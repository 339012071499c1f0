"""A request to stop that comes before training: there is nothing to save, so the process ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from resscale.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_POLL_S = 0.05


class Startup:
    """Ends this process with 75 on SIGTERM or SIGUSR2, until training takes the signals over.

    `before_end` is called first, such as to end the ranks that this process has started, or to let
    those know that wait for it.

    The main thread may be waiting for other ranks inside a library, where Python's handlers do not
    run: a thread hears of the signal from the interpreter's own handler, which does.
    """

    def __init__(self) -> None:
        self.before_end: Callable[[], None] | None = None
        self._patience_s = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._writer: socket.socket | None = None

    def watch(self, patience_s: float = 0.0) -> None:
        """Take the signals; for the main thread, others leave them as they are.

        Args:
            patience_s: how long a process that is told to end waits for a `before_end`: it has
                only begun, and does not know yet how to tell the ranks that will wait for it.
        """
        if self._writer is not None or threading.current_thread() is not threading.main_thread():
            return
        self._patience_s = patience_s
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
            deadline_s = time.monotonic() + self._patience_s
            while self.before_end is None and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
            if self.before_end is not None:
                self.before_end()
        finally:
            os._exit(Preempted.exit_code)


# A process has one start and one set of signals.
STARTUP = Startup()
