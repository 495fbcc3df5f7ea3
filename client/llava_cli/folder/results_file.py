"""The results file: JSON lines, which are also the checkpoint of a run.

Each result is appended as soon as it is available. At the end of a run, the file is replaced by one that is
sorted by name. At any time, the file contains at most one line per image.

A lock prevents two processes from writing the same results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llava_client.errors import ConfigurationError

from llava_cli.append_line import append_line
from llava_cli.atomic_file import replacing
from llava_cli.file_lock import locked
from llava_cli.folder.record import Record, parse_record

__all__ = ["ResultsFile", "open_results"]


class ResultsFile:
    """The results so far, by image name. Create it with ``open_results``."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises OSError, or ConfigurationError if the file contains a line that is not a result. An incomplete
        last line is ignored, because the process may have been killed while it wrote the line.
        """
        self.path = path
        self.records: dict[str, Record] = {}
        *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for number, line in enumerate(lines, 1):
            record = parse_record(line)
            if record is None:
                raise ConfigurationError(
                    f"Line {number} of {str(path)!r} is not a result of this command. Use another --output."
                )
            self.records[record.image] = record
        if (record := parse_record(last)) is not None:
            self.records[record.image] = record

    def rewrite(self, records: dict[str, Record]) -> None:
        """Replace the file by one with ``records``, sorted by name. Raises OSError."""
        self.records = dict(sorted(records.items()))
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            file.writelines(record.line() for record in self.records.values())

    def append(self, record: Record) -> None:
        """Add a result for an image that has none. Raises OSError, for example if the disk is full."""
        append_line(self.path, record.line())
        self.records[record.image] = record


@contextmanager
def open_results(path: Path) -> Iterator[ResultsFile]:
    """Lock and read the results file, which need not exist.

    Raises OSError if it cannot be read or its folder is not writable, and ConfigurationError if another
    process is writing it or if it contains something else.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(path.name + ".lock")))
        except BlockingIOError as exc:
            raise ConfigurationError(
                f"Another process is writing {str(path)!r}. Wait for it to finish, or use another --output."
            ) from exc
        yield ResultsFile(path)
