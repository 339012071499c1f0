"""A rank of srun that ends before training tells the others, which would wait for it otherwise."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from resscale.cluster.environment import SlurmJob

_POLL_S = 1.0


class Refusal:
    """Lets all ranks of a start end with the code of the first that cannot begin.

    They wait for each other inside libraries then, where nothing reaches them: a thread looks.

    Args:
        folder: the run directory, on a file system that all nodes share.
        job: this job.
    """

    def __init__(self, folder: Path, job: SlurmJob) -> None:
        name = f"refused-{job.job_id}-{job.restart_count}-{job.step_id}.json"
        self._file = folder / "ranks" / name
        self._over = threading.Event()

    def tell(self, code: int) -> None:
        """Say that this rank ends, unless training has begun or another has said so before.

        Args:
            code: its exit code.
        """
        if self._over.is_set():
            return
        self._over.set()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("x") as file:
                json.dump({"code": code}, file)
        except OSError:
            # Said already, or nobody can write here: srun ends who waits.
            return

    def watch(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._look, name="refusal", daemon=True).start()

    def over(self) -> None:
        """Look no more: training watches its ranks itself."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(_POLL_S):
            try:
                code = int(json.loads(self._file.read_text())["code"])
            except (OSError, ValueError, KeyError):
                continue
            if not self._over.is_set():
                os._exit(code)
