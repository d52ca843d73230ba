"""Reading of the user's own files: TSV, CSV, JSON lines, Parquet, plain text and `label text` lines.

Every reader gives one row after the other and holds one line, one paragraph or one batch in memory, however large the
file. Lines end at a line feed and nowhere else: public corpora hold bytes such as 0x85 and 0x1c, at which
`str.splitlines` would cut a sentence in two. TSV files are read without quoting, because public corpora hold lone
quotation marks.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reclaim.errors import InputError
from reclaim.io import sha256

LONGEST_LINE = 64 * 1024 * 1024
BATCH_ROWS = 2000
# Which keys of a local data set go with which format; the others go with all.
FORMAT_KEYS = {
    "tsv": {"encoding", "header", "quoting", "columns", "extra_columns"},
    "csv": {"encoding", "header", "quoting", "columns", "extra_columns"},
    "jsonl": {"encoding", "columns", "extra_columns"},
    "parquet": {"columns", "extra_columns"},
    "text": {"encoding", "unit", "drop_headings"},
    "label_text": {"encoding"},
}


def expand_path(text: str, place: str) -> Path:
    """Put environment variables and `~` into a path; an unset variable is an InputError."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)\}?", expanded)
    if unset:
        raise InputError(
            place,
            f"{text!r}, whose environment variable {unset[1]} is not set",
            "a path whose variables are set",
            f"Run `export {unset[1]}=FOLDER` first, or write the folder itself.",
        )
    return Path(expanded)


class LocalSource:
    """The files of one local data set.

    `rows(name)` gives (line, row) pairs: `line` is the 1-based line on which the row starts (the 0-based row of a
    Parquet file), and `row` maps column names, or positions in a file without header, to values. It can be called again
    and again.
    """

    class_names = None

    def __init__(self, spec: dict[str, Any], place: str, columns: list[str | int]):
        self.spec, self.columns, self.format = spec, columns, spec["format"]
        self.paths = {name: expand_path(text, f"{place}.files.{name}") for name, text in spec["files"].items()}
        for name, path in self.paths.items():
            if not path.is_file():
                raise InputError(
                    f"{place}.files.{name}",
                    f"no file {path}",
                    "a file that exists",
                    f"{_neighbours(path)} Relative paths start at the working directory, {Path.cwd()}.",
                )
        self.encoding = _line_encoding(spec.get("encoding", "utf-8"), f"{place}.encoding")

    def rows(self, name: str) -> Iterator[tuple[int, dict]]:
        """Give (line or row, row) pairs of one of the named files; raises InputError for what cannot be read."""
        path = self.paths[name]
        if self.format in ("tsv", "csv"):
            return self._table(path)
        return {"jsonl": self._jsonl, "parquet": self._parquet, "text": self._text, "label_text": self._label_text}[
            self.format
        ](path)

    def place(self, name: str, number: int) -> str:
        """Say where a row is, for error messages."""
        return f"{self.paths[name]}, {'row' if self.format == 'parquet' else 'line'} {number}"

    def files(self) -> dict[str, str]:
        """Give the SHA-256 of every file, under its path as the config has it."""
        return {self.spec["files"][name]: sha256(path) for name, path in self.paths.items()}

    def _table(self, path: Path) -> Iterator[tuple[int, dict]]:
        delimiter = "\t" if self.format == "tsv" else ","
        if self.spec.get("quoting", self.format == "csv"):
            records = _quoted_records(path, self.encoding, delimiter)
        else:
            lines = read_lines(path, self.encoding)
            records = ((number, line.split(delimiter)) for number, line in lines if line.strip())
        names: list[str | int] | None = None
        for number, fields in records:
            if names is None:
                header = self.spec.get("header", True)
                names = [field.strip() for field in fields] if header else list(range(len(fields)))
                if len(set(names)) < len(names):
                    raise InputError(
                        f"{path}, line {number}", f"a header that repeats a name: {names}", "names once each"
                    )
                self._check_columns(names, path)
                if header:
                    continue
            if len(fields) != len(names):
                raise InputError(
                    f"{path}, line {number}",
                    f"{len(fields)} fields",
                    f"{len(names)} as in the first line",
                    "A delimiter inside a field needs quotation marks around the field and `quoting: true`.",
                )
            yield number, dict(zip(names, fields, strict=True))

    def _jsonl(self, path: Path) -> Iterator[tuple[int, dict]]:
        for number, line in read_lines(path, self.encoding):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number}",
                    f"malformed JSON ({error})",
                    "one JSON object per line",
                    "If the file is one JSON document over many lines, write it as JSON lines first.",
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}", f"JSON of type {type(row).__name__}", "a JSON object")
            yield number, row

    def _parquet(self, path: Path) -> Iterator[tuple[int, dict]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                self._check_columns(names, path)
                tops = list(dict.fromkeys(top_column(column, names) for column in self.columns))
                number = 0
                for batch in file.iter_batches(BATCH_ROWS, columns=tops):
                    for row in batch.to_pylist():
                        yield number, row
                        number += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise InputError(
                str(path), f"a file that cannot be read as Parquet ({error})", "a whole Parquet file", "Copy it again."
            ) from None

    def _text(self, path: Path) -> Iterator[tuple[int, dict]]:
        headings = not self.spec.get("drop_headings", False)
        lines = ((number, line.strip(" \t")) for number, line in read_lines(path, self.encoding))
        # A heading counts as a blank line: it ends a paragraph.
        lines = ((number, line if headings or not is_heading(line) else "") for number, line in lines)
        if self.spec.get("unit", "line") == "line":
            yield from ((number, {"text": line}) for number, line in lines if line)
            return
        start, size = 0, 0
        paragraph: list[str] = []
        for number, line in lines:
            if line:
                start = start if paragraph else number
                paragraph.append(line)
                size += len(line) + 1
                if size > LONGEST_LINE:
                    raise InputError(
                        f"{path}, line {start}",
                        f"a paragraph of more than {LONGEST_LINE} characters",
                        "paragraphs divided by blank lines",
                        "Use `unit: line`.",
                    )
            elif paragraph:
                yield start, {"text": "\n".join(paragraph)}
                paragraph, size = [], 0
        if paragraph:
            yield start, {"text": "\n".join(paragraph)}

    def _label_text(self, path: Path) -> Iterator[tuple[int, dict]]:
        for number, line in read_lines(path, self.encoding):
            if line.strip():
                label, _, text = line.lstrip(" \t").partition(" ")
                yield number, {"label": label, "text": text}

    def _check_columns(self, names: list[str | int], path: Path) -> None:
        for column in self.columns:
            if top_column(column, names) not in names:
                raise InputError(
                    str(path),
                    f"no column {column!r} among {[str(name)[:40] for name in names]}",
                    "every column that the config names",
                    "Correct `columns` or `header` of this data set.",
                )


def top_column(column: str | int, names: list[str | int]) -> str | int:
    """Give the column of the file that holds `column`: itself, or the part before the dot of a nested one."""
    return column if column in names or not isinstance(column, str) else column.split(".")[0]


def is_heading(line: str) -> bool:
    """Say whether a line is a heading of WikiText, ` = Title = ` or ` = = Section = = `."""
    line = line.strip(" \t")
    return len(line) > 4 and line.startswith("= ") and line.endswith(" =")


def read_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Give (1-based number, text without line end) of each line; a line may end in CR LF.

    Raises InputError at a byte that the encoding does not have, with its offset, and at a line over 64 MiB.
    """
    offset = 0
    with open(path, "rb") as handle:
        number = 0
        while line := handle.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{path}, line {number}",
                    f"a line of more than {LONGEST_LINE} bytes",
                    "lines of text",
                    "Break it up.",
                )
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}",
                    f"byte 0x{line[error.start]:02x} at byte offset {offset + error.start}, which is not {encoding}",
                    f"text in {encoding}",
                    _encoding_hint(line[error.start]),
                ) from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            yield number, text.removesuffix("\n").removesuffix("\r")


def _quoted_records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give (line on which it starts, fields) of each record of a file with quoted fields, which may hold line feeds."""
    reader = csv.reader((text + "\n" for _, text in read_lines(path, encoding)), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, line {start}",
                f"a record that cannot be read ({error})",
                'fields whose quotation marks are closed and doubled inside ("")',
                "If the marks are part of the text, set `quoting: false`; fields over 131,072 characters need jsonl.",
            ) from None
        if fields:
            yield start, fields


def _line_encoding(encoding: str, place: str) -> str:
    """Refuse encodings that Python does not know and those whose line feed is not the one byte 0x0a."""
    try:
        name = codecs.lookup(encoding).name
        if name == "utf-8-sig":
            return "utf-8"
        if "a\tb\n".encode(name) == b"a\tb\n":
            return name
    except LookupError:
        pass
    raise InputError(
        place,
        repr(encoding),
        "a text encoding in which ASCII characters are one byte each (utf-8, latin-1, cp1252, ...)",
        "Convert other files first, for example with iconv.",
    )


def _encoding_hint(byte: int) -> str:
    likely = "cp1252 (or latin-1)" if 0x80 <= byte < 0xA0 else "latin-1 (or cp1252)"
    return (
        f"If the file is in another encoding, say so with `encoding:`; for Western European text most likely {likely}."
    )


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    names = sorted(entry.name for entry in path.parent.iterdir())
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"The folder holds: {shown or 'nothing'}."
