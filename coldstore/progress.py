"""How a long operation tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """All numbers are increments. Called from one thread at a time."""

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        """A new step begins; `total_bytes` where it is known."""
        ...

    def advance(self, *, rows: int = 0, size: int = 0) -> None: ...

    def note(self, sentence: str) -> None:
        """Something a person should know, and no reason to stop."""
        ...


class _Silent:
    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        pass

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass


silent: Progress = _Silent()
