"""`FieldColumns`: columns of an output that hold fields of the samples' metadata, beside those that a run makes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

METADATA = "metadata"
"""The column of what no column of its own holds exactly: JSON, as `curator_dali.sources.dump_fields` writes it."""

# Of a column's own metadata in an Arrow schema: what it holds, and whether its null is a value of the field.
_ROLE_KEY, _NULL_KEY = b"curator_dali.column", b"curator_dali.null"
_FIELD, _READ_FIELD, _REST, _LAYOUT = b"field", b"field of a stage", b"other fields", b"layout"


@dataclass(frozen=True)
class FieldColumns:
    """Columns that hold fields of the metadata; their names are the fields'.

    Attributes:
        types: Name -> `pyarrow.DataType` of columns that no stage reads.
        read: Names of fields that stages read. Their columns are among those of the stages, with types of `DTYPES`.
        rest: Whether there is the column `metadata`: JSON of what no other column holds exactly, else null.
        layout: Names of columns that are no fields: those that Hugging Face's layout adds.
        nulls: Whether null in a column says that the field is null; else that the sample has no such field.
    """

    types: Mapping[str, Any] = field(default_factory=dict)
    read: frozenset[str] = frozenset()
    rest: bool = False
    nulls: bool = False
    layout: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.types or self.read or self.rest)

    @property
    def names(self) -> list[str]:
        """The columns that are no stage's, in order."""
        return [*self.types, *([METADATA] if self.rest else [])]

    def to_arrow(self) -> list[Any]:
        """The `pyarrow.Field`s of `names`."""
        import pyarrow as pa

        fields = [pa.field(name, kind, metadata=self._mark(_FIELD)) for name, kind in self.types.items()]
        return [*fields, *([pa.field(METADATA, pa.string(), metadata={_ROLE_KEY: _REST})] if self.rest else [])]

    def mark_read(self, column: Any) -> Any:
        """A stage's column, a `pyarrow.Field`, with a mark if it is a field of the metadata."""
        return column.with_metadata(self._mark(_READ_FIELD)) if column.name in self.read else column

    def _mark(self, role: bytes) -> dict[bytes, bytes]:
        return {_ROLE_KEY: role, **({_NULL_KEY: b"value"} if self.nulls else {})}

    @classmethod
    def from_arrow(cls, schema: Any) -> FieldColumns:
        """The columns that a `pyarrow.Schema` marks so."""
        marks = {column.name: column.metadata or {} for column in schema}
        roles = {name: mark.get(_ROLE_KEY) for name, mark in marks.items()}
        return cls(
            types={name: schema.field(name).type for name, role in roles.items() if role == _FIELD},
            read=frozenset(name for name, role in roles.items() if role == _READ_FIELD),
            rest=roles.get(METADATA) == _REST,
            layout=frozenset(name for name, role in roles.items() if role == _LAYOUT),
            nulls=any(mark.get(_NULL_KEY) == b"value" for mark in marks.values()),
        )


def mark_layout(column: Any) -> Any:
    """A `pyarrow.Field` with the mark of a column that a layout adds, and that is no field of the metadata."""
    return column.with_metadata({_ROLE_KEY: _LAYOUT})


@cache
def stored_type(kind: Any) -> Any:
    """The type that a column of a `pyarrow.DataType` has in a Parquet file; None where Parquet has no such column.

    A dictionary is no type of values but an encoding, and Parquet has its own: the type is that of the values.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Arrow computes little with views yet
    kind = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(kind, kind)
    file = io.BytesIO()
    try:
        pq.write_table(pa.table({"x": pa.array([], kind)}), file)
        return pq.read_schema(io.BytesIO(file.getvalue())).field("x").type
    except (pa.ArrowException, OSError):
        return None
