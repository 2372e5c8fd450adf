"""A folder that is saved when it changes: looked at every second, saved once it is quiet, or at the latest after a minute.

Files are told by inode, size, times and mode, and not read until something changed. What fails is said and tried again, each time after a
longer pause; the watch itself goes on until it is stopped, and then saves what is not saved yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldstore.errors import ColdStoreError, SuspectSnapshot
from coldstore.files.tree import File, Marks, Tree, marks, read_tree

_SHARE = 20  # a look may cost a twentieth of the time
_LONGEST_PAUSE = 300.0
_DOUBLINGS = 20


@dataclass(slots=True)
class Watch:
    """`save` is given the folder and a label. `known`: the files of the newest snapshot, None when there is none. All times in seconds.
    `quiet`: without a change, before it is saved; `at_most`: how long changes may go on unsaved."""

    folder: Path
    save: Callable[[Tree, str | None], None]
    known: Callable[[], Mapping[str, File] | None]
    say: Callable[[str], None]
    poll: float = 1.0
    quiet: float = 2.0
    at_most: float = 60.0
    failed: int = 0  # in a row
    _stopped: threading.Event = field(default_factory=threading.Event)
    _saved_marks: Marks | None = None
    _said: str = ""

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Until `stop`. Raises what the last save of all raises."""
        self._recall()
        seen: Marks | None = None
        first = last = next_try = time.monotonic()
        pause = self.poll
        while not self._stopped.wait(pause):
            begun = time.monotonic()
            now = self._look()
            took = time.monotonic() - begun
            pause = max(self.poll, took * _SHARE)
            if now is None or now == self._saved_marks:
                seen = None
                continue
            if now != seen:
                first, last = (begun if seen is None else first), begun
                seen = now
            if begun >= next_try and (begun - last >= self.quiet or begun - first >= self.at_most):
                self._try()
                seen = None if not self.failed else seen
                next_try = time.monotonic() + min(_LONGEST_PAUSE, self.poll * 2 ** min(self.failed, _DOUBLINGS))
        self._finish()

    def _recall(self) -> None:
        """What is as the newest snapshot has it need not be saved again."""
        try:
            tree = read_tree(self.folder)
            if tree.files == (self.known() or {}):
                self._saved_marks = tree.marks
        except ColdStoreError as exc:
            self._say_once(str(exc))

    def _look(self) -> Marks | None:
        try:
            return marks(self.folder)
        except ColdStoreError as exc:  # a folder that is gone is not an empty memory
            self._say_once(str(exc))
            return None

    def _try(self) -> None:
        try:
            self._save(None)
        except SuspectSnapshot as exc:
            self._say_once(str(exc))
        except ColdStoreError as exc:
            self.failed += 1
            self._say_once(f"not saved, and tried again: {exc}")

    def _say_once(self, sentence: str) -> None:
        if sentence != self._said:
            self.say(sentence)
        self._said = sentence

    def _save(self, label: str | None) -> None:
        tree = read_tree(self.folder)
        # Those from before it was read: what was written meanwhile counts as a change.
        try:
            self.save(tree, label)
        except SuspectSnapshot:  # it is stored; the same again would be as suspect
            self._saved_marks = tree.marks
            raise
        self._saved_marks = tree.marks
        self.failed, self._said = 0, ""

    def _finish(self) -> None:
        if marks(self.folder) != self._saved_marks:
            self._save("shutdown")
