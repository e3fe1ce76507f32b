"""Rows of data sets of the Hugging Face hub and of Parquet files: what needs `datasets` and `pyarrow`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from alignstar.errors import OptionError


def hub_rows(name: str, *, config: str | None, split: str | None) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of a data set's split. Raises OptionError without a split, or where it cannot be had."""
    if split is None:
        raise OptionError(f"data.split is missing: {name!r} is a hub data set; name a split, such as test.")
    try:
        rows: Any = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, LookupError) as error:  # no such id or split, no connection
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise OptionError(
            f"Data {name!r} is no file and cannot be fetched as split {split!r} of a hub data set ({reason}); correct "
            "the path, or the id and the connection."
        ) from error
    return ((f"{name} [{split}], row {n}", row) for n, row in enumerate(rows, start=1))


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of a Parquet file, a batch in memory at a time."""
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in cast("Any", batch).to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pa.ArrowInvalid as error:
        raise OptionError(f"Data file {str(path)!r} is no Parquet ({error}); check the path.") from error
