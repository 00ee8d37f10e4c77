"""Media inside of shards: cells that say where the bytes lie."""

import pyarrow as pa


def is_place(kind: pa.DataType) -> bool:
    """Whether cells of this type say where in a shard media lie."""
    return pa.types.is_struct(kind) and {"path", "offset", "size"} <= {field.name for field in kind}
