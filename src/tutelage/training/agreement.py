"""What processes that train together decide together: whether a step is applied, to save, and to stop.

All of it goes by one exchange a step, so all act at the same step. Without a launcher there is one process, and nothing
here does anything.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from tutelage.errors import RunError
from tutelage.interruption import Terminated, stop_with_others, uninterrupted
from tutelage.training.deadline import DeadlineExceeded, TimedBatches, exceeded
from tutelage.training.distributed import naming_process, sent, summed
from tutelage.types import Batches


class Agreement:
    """What the processes of a fit, or of all fits in lockstep, decide together.

    Args:
        accelerator: device and processes.
        batches: batches to train on: with a deadline if they are `TimedBatches`, by the clock of the first to reach it.

    Attributes:
        several: whether there are several processes.
    """

    def __init__(self, accelerator: Accelerator, batches: Batches | None = None) -> None:
        self.several = accelerator.num_processes > 1
        self._accelerator = accelerator
        self._deadline = batches.deadline if isinstance(batches, TimedBatches) else None
        self._signals: list[int] = []
        if self.several:
            # What this process asks for (to stop by Ctrl-C, SIGTERM, or the deadline; to save), and how many asked.
            self._asked = torch.zeros(4, device=accelerator.device)
            self._counts = torch.zeros_like(self._asked)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Enter this while several processes train: a signal waits until all stop, and a failed exchange is named.

        Raises:
            ProcessError: if another process is gone, or did not answer in time.
        """
        if not self.several:
            yield
            return
        with naming_process(), uninterrupted() as self._signals:
            try:
                yield
            except (Exception, KeyboardInterrupt):
                self._signals.clear()  # The process ends already.
                raise

    def ask(self, *, save: bool = False, following: Literal["step", "evaluation", "end"] = "step") -> None:
        """Set what this process asks for in the next exchange; its deadline is one for what follows.

        Args:
            save: whether it is time to save.
            following: what follows the exchange.
        """
        deadline, late = self._deadline, False
        if deadline is not None and following != "end":
            late = deadline.over(deadline.evaluation if following == "evaluation" else 0.0)
        numbers = [signal.SIGINT in self._signals, signal.SIGTERM in self._signals, late, save]
        self._asked.copy_(sent(numbers, self._asked), non_blocking=True)

    def exchange(self, finite: Tensor, finite_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether two ``()`` bools are true in all processes, and tell each other what was asked for."""
        if not self.several:
            return finite, finite_loss
        flags = torch.stack([finite, finite_loss]).logical_not().to(self._asked.dtype)
        counts = summed(torch.cat([flags, self._asked]), self._accelerator)
        self._counts += counts[2:]
        return counts[0] == 0, counts[1] == 0

    def act(self, save: Callable[[], object], *, before: str) -> None:
        """Save, or save and stop, if any process has asked for it; the host waits for the device.

        Args:
            save: function that saves, called in all processes.
            before: name of what is not begun if the time is up.

        Raises:
            KeyboardInterrupt: if Ctrl-C came to a process; `Terminated` if SIGTERM did.
            DeadlineExceeded: if the deadline of a process is over.
        """
        interrupted, terminated, late, saves = self._counts.tolist()
        self._counts.zero_()
        stop: KeyboardInterrupt | DeadlineExceeded | None = None
        if interrupted or terminated:
            stop = Terminated() if terminated else KeyboardInterrupt()
            self._signals.clear()
            stop_with_others()
        elif late:
            stop = exceeded(before)
        elif not saves:
            return
        try:
            save()
        except RunError as failure:
            if not isinstance(stop, KeyboardInterrupt):
                raise
            stop.add_note(str(failure))  # The interruption is the reason of the end.
        if stop is not None:
            raise stop

    def meet(self, *, before: str, ends: bool) -> None:
        """Stop between epochs, where all is saved, if any process asks for it; ``ends`` if none follows."""
        self.ask(following="end" if ends else "step")
        self._counts += summed(self._asked, self._accelerator)
        self.act(lambda: None, before=before)
