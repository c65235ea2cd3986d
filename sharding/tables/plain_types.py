"""The few types that values of labels have, whichever file they come from, so that equal values
are equal bytes: texts, whole numbers of 64 bits, fractions, true and false, and lists and objects
of these. Times are texts (ISO 8601), for JSON has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["infer_type", "plain", "plain_text"]


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in its plain type; null where a text is empty or a number is none.

    Raises `TypeError` for a type that JSON cannot hold.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = plain_type(column.type)
    if kind == pa.string():
        texts = plain_text(column)
        return pc.if_else(pc.equal(texts, ""), None, texts)
    try:
        values = column.cast(kind)
    except pa.ArrowInvalid as error:
        if kind == pa.int64():
            return column.cast(pa.string())  # Too large; of CSV's it would be left as text.
        raise TypeError(f"{column.type}") from error
    return pc.if_else(pc.is_finite(values), values, None) if kind == pa.float64() else values


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type for values of a type. Raises `TypeError` if there is none."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([(field.name, plain_type(field.type)) for field in fields])
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_nested(kind) or types.is_duration(kind):
        raise TypeError(f"{kind}")
    return pa.string()


def plain_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of single values as text: `00012` as it is, the number 12 as `12`.

    Raises `TypeError` for lists, objects, and bytes that are no text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return plain_text(column.cast(kind.value_type))
    if types.is_nested(kind):
        raise TypeError(f"{kind}")
    if types.is_timestamp(kind) and kind.tz is not None:
        # In whatever zone it was: which rules a zone follows is for each machine to know.
        column = column.cast(pa.timestamp(kind.unit, "UTC"))
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"{kind}") from error
    if not types.is_temporal(kind):
        return texts
    texts = pc.replace_substring(texts, " ", "T")
    return pc.replace_substring_regex(texts, r"\.0+(Z?)$", r"\1")


def infer_type(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of CSV in the type that all of its texts are written in, if that loses none of
    them: `00012` stays what it is, and so does a number with more digits than fit."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def all_match(pattern: str) -> bool:
        return pc.all(pc.match_substring_regex(texts, pattern)).as_py() is True

    if all_match(r"^(?i:true|false)$"):
        return pc.equal(pc.utf8_lower(texts), "true")
    try:
        if all_match(WHOLE):
            return texts.cast(pa.int64())
        if all_match(NUMBER):
            numbers = texts.cast(pa.float64())
            if pc.all(pc.is_finite(numbers)).as_py():
                return numbers
    except pa.ArrowInvalid:
        pass
    return texts


WHOLE = r"^(0|-?[1-9][0-9]*)$"
NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
