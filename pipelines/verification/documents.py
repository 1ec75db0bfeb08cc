"""Source rows read again, as a run reads them, wherever a table's rows say that they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError, expand, redact_url, storage_errors
from workers.documents import Document, read_document
from workers.image_reader import ImageReader

from ..columns import check_columns
from ..damage import damage
from ..errors import SourceError
from ..job import SourceSpec
from ..read import Read, as_units
from ..source import RowGroup

_NOTHING_CARRIED = pa.schema([])
# A row may have as many images as it likes here: whether it has too many was decided when it was made.
_MANY = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReader:
    """Reads documents of a job's source by file and row; the job's filter, carried columns and tasks are left aside."""

    spec: SourceSpec

    @classmethod
    def of(cls, source: SourceSpec) -> SourceReader:
        """A reader of what makes a document: its id, text and images."""
        return cls(spec=source.model_copy(update={"filter": None, "carry": ()}))

    def listed(self) -> dict[str, FileInfo]:
        """The source's files now, by the path that a table holds of them; empty when the source is gone."""
        try:
            return {redact_url(file.url): file for file in expand(self.spec.path)}
        except StorageError as error:
            if error.problem is not Problem.MISSING:
                raise
            return {}

    def row_groups(self, url: str) -> list[RowGroup] | None:
        """A file's row groups, without duplicates; None when it is no Parquet file with the job's columns."""
        with storage_errors(url), Location(url).open_input() as opened, damage() as found:
            footer = pq.read_metadata(opened)
        if found or not self._fits(url, footer.schema.to_arrow_schema()):
            return None
        groups, first = [], 0
        for index in range(footer.num_row_groups):
            rows = footer.row_group(index).num_rows
            groups.append(RowGroup(url=url, index=index, first_row=first, rows=rows, documents=rows))
            first += rows
        return groups

    def _fits(self, url: str, schema: pa.Schema) -> bool:
        try:
            check_columns(self.spec, [(url, schema)])
        except SourceError:
            return False
        return True

    def tables(self, groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
        """The groups' rows under the stages' own source schema, some at a time."""
        return Read(self.spec, _NOTHING_CARRIED)(as_units(groups))

    def documents(self, groups: Sequence[RowGroup]) -> Iterator[Document]:
        """The groups' documents, each with its content hash, or an error of its own without one."""
        images = ImageReader(self.spec.path, self.spec.image_roots)
        for table in self.tables(groups):
            for batch in table.to_batches():
                for i in range(batch.num_rows):
                    yield read_document(batch, i, images, _MANY)


def only_row(groups: Sequence[RowGroup], row: int) -> list[RowGroup]:
    """The one row group that holds a physical row, to be read for this row alone; [] when there is none."""
    return [
        dataclasses.replace(group, only=(row - group.first_row,), documents=1)
        for group in groups
        if group.first_row <= row < group.first_row + group.rows
    ]
