"""What a run says while it trains: a bar or plain lines, ``metrics.csv``, and TensorBoard on
request.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deepgen_ext.recipes import RecipeError, require

__all__ = ["Meter", "MetricsFile", "Rows"]

COLUMNS = (
    "step",
    "epoch",
    "train",
    "test",
    "unit",
    "gradient_norm",
    "learning_rate",
    "steps_per_second",
)


class MetricsFile:
    """``metrics.csv``, one row every few steps, and the same numbers for TensorBoard if
    ``tensorboard`` is set.

    On resuming, the rows after the checkpoint are dropped: those steps are about to be done again.
    """

    def __init__(
        self,
        out: Path,
        *,
        first_step: int,
        tensorboard: bool,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        self._columns = tuple(columns)
        self._path = out / "metrics.csv"
        rows = self._rows_before(first_step) if first_step else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        partial = self._path.with_name("metrics.csv.partial")
        try:
            partial.write_text(text.getvalue())
            os.replace(partial, self._path)
        except OSError as error:
            raise RecipeError(
                f"{self._path}: cannot be written: {error.strerror or error}"
            ) from None
        self._board: Any = None
        if tensorboard:
            require("tensorboard", "--tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)

    def _rows_before(self, first_step: int) -> list[dict[str, str]]:
        try:
            with open(self._path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if set(row) == set(self._columns)]
        except FileNotFoundError:
            return []
        # the last row may have been cut in the middle by a kill
        whole = [row for row in rows if row["steps_per_second"] and (row["step"] or "").isdigit()]
        return [row for row in whole if int(row["step"]) <= first_step]

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; ``row`` has the keys of the columns, None where nothing was measured."""
        shown = {
            key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()
        }
        try:
            with open(self._path, "a", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(shown)
        except OSError as error:
            raise RecipeError(
                f"{self._path}: cannot be written: {error.strerror or error}"
            ) from None
        if self._board is not None:
            for key, value in row.items():
                if isinstance(value, float) and key != "epoch":
                    self._board.add_scalar(key, value, row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class Meter:
    """A progress bar on a terminal, else one line every ``line_every`` steps."""

    def __init__(
        self, console: Console, unit: str, *, first_step: int, last: int | None, line_every: int
    ) -> None:
        self._console, self._unit = console, unit
        self._last, self._line_every = last, line_every
        self._start = time.monotonic()
        self._last_line = first_step
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(bar_width=None), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=False)
            self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        (self._bar.console if self._bar is not None else self._console).print(
            text, soft_wrap=True, highlight=False
        )

    def update(self, step: int, row: dict[str, Any], fraction: float) -> None:
        """``fraction`` of the work is done after ``step`` steps; ``row`` as in
        `MetricsFile.write`.
        """
        elapsed = time.monotonic() - self._start
        left = elapsed * (1 - fraction) / fraction if fraction > 0 else 0.0
        of = "" if self._last is None else f"/{self._last}"
        text = f"step {step}{of}  {self._loss(row)}  {row['steps_per_second']:.1f} steps/s  {_clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, description=text)
        elif step >= self._last_line + self._line_every or fraction >= 1:
            self._last_line = step
            self.say(text)

    def _loss(self, row: dict[str, Any]) -> str:
        if "critic" in row:
            return f"critic {row['critic']:.3f}  generator {row['generator']:.3f}"
        test = "" if row["test"] is None else f" (test {row['test']:.3f})"
        return f"{row['train']:.3f}{test} {self._unit}"


class Rows:
    """On a terminal a bar over the rows of images that are drawn pixel by pixel, in chunks."""

    def __init__(self, console: Console | None, chunks: Sequence[int]) -> None:
        self._chunks = list(chunks)
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("row {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("rows", total=None, visible=False)

    def __enter__(self) -> Rows:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def of(self, chunk: int) -> Callable[[int, int], None] | None:
        """What a model calls with (rows done, rows in all) while it draws this chunk."""
        if self._bar is None:
            return None
        bar, before = self._bar, self._chunks.index(chunk)

        def on_row(done: int, rows: int) -> None:
            total = rows * len(self._chunks)
            bar.update(self._task, completed=before * rows + done, total=total, visible=True)

        return on_row


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
