"""
Rows as Parquet, from their lines of JSON.

A block of lines is a row group, so that a file of any size takes the same memory. Metadata is
JSON in a column of text: it has no one type.
"""

from pathlib import Path
from typing import Any, BinaryIO

from worker.core.exports import Subject
from worker.core.progress import Progress, Watch
from worker.errors import ConfigError

_BLOCK_BYTES = 8 * 2**20


def check_parquet() -> None:
    """
    Refuse to begin where Parquet cannot be written.

    Raises:
        ConfigError: the library is missing.
    """
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--metadata parquet needs pyarrow: pip install 'embedfleet[parquet]'"
        ) from None


def write_parquet(lines: Path, file: BinaryIO, subject: Subject, watch: Watch) -> None:
    """Write all rows into an open file."""
    import pyarrow.json
    from pyarrow.parquet import ParquetWriter

    schema = _schema(content=subject.content)
    options = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="error"
    )
    total = lines.stat().st_size
    file.truncate(0)
    with lines.open("rb") as source, ParquetWriter(file, schema) as writer:
        while block := source.read(_BLOCK_BYTES) + source.readline():
            reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            table = pyarrow.json.read_json(pyarrow.BufferReader(block), reading, options)
            writer.write_table(table)
            watch(Progress("writing Parquet", source.tell() / total))


def _schema(*, content: bool) -> Any:
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    fields = {
        "tenant": pa.string(),
        "document_id": pa.string(),
        "seq": pa.int32(),
        "version": pa.int64(),
        "chunk_hash": pa.string(),
        "heading": pa.string(),
        "span_start": pa.int32(),
        "span_end": pa.int32(),
        "content_type": pa.string(),
        "metadata": pa.string(),
        "occurred_at": moment,
        "stored_at": moment,
    }
    if content:
        fields["content"] = pa.string()
    return pa.schema(list(fields.items()))
