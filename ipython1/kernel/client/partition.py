"""Cutting sequences into parts, one an engine, and joining parts again.

Pure arithmetic, without I/O. NumPy and pandas are never imported here: an
object of theirs can only come from a process in which they are loaded.

Two distributions: ``'b'``, contiguous blocks of which the first
``len % n`` are one longer, and ``'r'``, round robin, part ``i`` has the
items ``i, i + n, i + 2 n, ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise, zip_longest
from typing import Any

from ipython1.kernel.client.joined import join_plain

#: The distributions.
DISTRIBUTIONS = ("b", "r")

_MISSING = object()


def check_dist(dist: str) -> str:
    """Return `dist` if it is one of `DISTRIBUTIONS`, else raise ValueError."""
    if dist not in DISTRIBUTIONS:
        raise ValueError(f"dist must be 'b' (blocks) or 'r' (round robin), not {dist!r}")
    return dist


def slices(length: int, n: int, dist: str = "b") -> list[slice]:
    """The `n` slices that cut a sequence of `length` items.

    Returns
    -------
    list of slice
        Disjoint, together they take every item once; some may be empty.
    """
    check_dist(dist)
    if n < 1:
        raise ValueError(f"cannot cut a sequence into {n} parts")
    if dist == "r":
        return [slice(i, None, n) for i in range(n)]
    size, longer = divmod(length, n)
    starts = [i * size + min(i, longer) for i in range(n + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


def split(seq: Any, n: int, dist: str = "b") -> list[Any]:
    """Cut `seq` into `n` parts.

    Parameters
    ----------
    seq : sequence or iterable
        Anything that can be sliced: list, tuple, str, bytes, a NumPy array
        (along axis 0), a DataFrame or Series (rows). A range and any other
        iterable is made a list first; a mapping is refused.
    n : int
        Number of parts.
    dist : {'b', 'r'}

    Returns
    -------
    list
        `n` parts, the last ones empty where there are fewer items than parts.
        They may be views of `seq`.

    Raises
    ------
    TypeError
        `seq` has no items in an order.
    """
    check_dist(dist)
    seq = _sliceable(seq)
    rows = _rows(seq)
    return [rows[cut] for cut in slices(len(seq), n, dist)]


def flatten(part: Any) -> Any:
    """The one item of a part of length 1, the part itself otherwise."""
    return _rows(part)[0] if len(part) == 1 else part


def same_length(sequences: Iterable[Iterable[Any]]) -> list[Any]:
    """The iterables given to ``map``, as sequences that `split` can cut.

    Iterating over the parts gives what iterating over the whole would give:
    a dict gives its keys, a DataFrame its column names.

    Returns
    -------
    list of sequence
        All of one length.

    Raises
    ------
    ValueError
        The lengths differ.
    TypeError
        One of them is not iterable.
    """
    columns: list[Any] = [seq if _maps_as_it_is(seq) else list(seq) for seq in sequences]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"map needs sequences of one length, got {', '.join(map(str, lengths))}")
    return columns


def join(parts: Iterable[Any], dist: str = "b") -> Any:
    """Put together what `split` made, or whatever engines made out of it.

    Arrays are concatenated along axis 0, pandas objects by rows, str and
    bytes to one of their kind, tuples to a tuple, everything else to a list.
    A part that is no sequence (see `flatten`) counts as one item.

    Raises
    ------
    ValueError
        Arrays whose shapes do not fit.
    """
    check_dist(dist)
    parts = list(parts)
    if any(_is(part, "numpy", "ndarray", "generic") for part in parts):
        if all(_is(part, "numpy", "ndarray", "generic") for part in parts):
            return _join_arrays(parts, dist)
    elif _all(parts, str):
        return "".join(_merge(parts, dist))
    elif any(isinstance(part, (bytes, bytearray)) for part in parts):
        # An element of bytes is an int: a flattened part.
        if all(isinstance(part, (bytes, bytearray)) or _is_byte(part) for part in parts):
            kind = bytearray if any(isinstance(part, bytearray) for part in parts) else bytes
            return kind(_merge([(part,) if isinstance(part, int) else part for part in parts], dist))
    elif any(_all_pandas(parts, name) for name in ("DataFrame", "Series", "Index")):
        return _join_rows(parts, dist)
    elif any(map(_is_extension, parts)) and not any(isinstance(part, (list, tuple)) for part in parts):
        return _join_extensions(parts, dist)
    if any(type(part) is tuple for part in parts) and not any(_is_list_like(part) for part in parts):
        return tuple(_merge([part if type(part) is tuple else (part,) for part in parts], dist))
    return _merge([part if _is_list_like(part) else (part,) for part in parts], dist)


def _merge(parts: Sequence[Iterable[Any]], dist: str) -> list[Any]:
    """All items of all parts, in the order of the sequence that was split."""
    if dist == "b":
        return list(chain.from_iterable(parts))
    rounds = zip_longest(*parts, fillvalue=_MISSING)
    return [item for one_round in rounds for item in one_round if item is not _MISSING]


def _join_arrays(parts: list[Any], dist: str) -> Any:
    numpy = sys.modules["numpy"]
    ndim = max(1, *(part.ndim for part in parts))
    arrays = [numpy.asanyarray(part) for part in _with_masked_items(parts)]
    arrays = [
        array[numpy.newaxis] if array.ndim == ndim - 1 and _is_item(array, ndim) else array
        for array in arrays
    ]
    # np.array([]) on an engine without items would turn everybody's ints into floats.
    arrays = [array for array in arrays if len(array)] or arrays[:1]
    whole = join_plain(arrays, _places(arrays, dist)) if dist == "b" or _dealt_out(arrays) else None
    if whole is not None:
        return whole
    masked = any(isinstance(array, numpy.ma.MaskedArray) for array in arrays)
    whole = numpy.ma.concatenate(arrays) if masked else numpy.concatenate(arrays)
    if all(_is(part, "numpy", "recarray", "record") for part in parts):
        whole = whole.view(numpy.recarray)
    return whole if dist == "b" else whole[_round_robin_order(arrays)]


def _places(arrays: list[Any], dist: str) -> list[slice]:
    """Where in the whole the items of each stand."""
    lengths = [len(array) for array in arrays]
    if dist == "r":
        return slices(sum(lengths), len(arrays), dist)
    return [slice(stop - length, stop) for stop, length in zip(accumulate(lengths), lengths, strict=True)]


def _dealt_out(arrays: list[Any]) -> bool:
    """Whether the lengths are those of parts made by round robin."""
    lengths = [len(array) for array in arrays]
    return all(longer - 1 <= lengths[-1] <= longer for longer in lengths) and lengths == sorted(
        lengths, reverse=True
    )


def _with_masked_items(parts: list[Any]) -> list[Any]:
    """The parts with the constant `numpy.ma.masked`, a float, made an item of the others' dtype."""
    numpy = sys.modules["numpy"]
    others = [part.dtype for part in parts if part is not numpy.ma.masked]
    if not others or len(others) == len(parts):
        return parts
    item = numpy.ma.masked_all(1, numpy.result_type(*others))
    return [item if part is numpy.ma.masked else part for part in parts]


def _is_item(array: Any, ndim: int) -> bool:
    """Whether an array of less dimensions than the others is one row, not an empty part."""
    return ndim == 1 or len(array) > 0


def _join_rows(parts: list[Any], dist: str) -> Any:
    pandas = sys.modules["pandas"]
    parts = [part for part in parts if len(part)] or parts[:1]
    whole = parts[0].append(parts[1:]) if isinstance(parts[0], pandas.Index) else pandas.concat(parts)
    return whole if dist == "b" else _rows(whole)[_round_robin_order(parts)]


def _is_extension(part: Any) -> bool:
    """Whether it is an array of pandas's own, such as a Categorical."""
    return _is(part, "pandas.api.extensions", "ExtensionArray")


def _join_extensions(parts: list[Any], dist: str) -> Any:
    pandas = sys.modules["pandas"]
    dtype = next(part.dtype for part in parts if _is_extension(part))
    columns = [
        pandas.Series(part) if _is_extension(part) else pandas.Series([part], dtype=dtype) for part in parts
    ]
    columns = [column for column in columns if len(column)] or columns[:1]
    whole = pandas.concat(columns, ignore_index=True).array
    return whole if dist == "b" else whole[_round_robin_order(columns)]


def _round_robin_order(parts: list[Any]) -> Any:
    """Where in the concatenated parts the items 0, 1, 2, ... stand."""
    numpy = sys.modules["numpy"]
    rounds = numpy.concatenate([numpy.arange(len(part)) for part in parts])
    return numpy.argsort(rounds, kind="stable")


def _sliceable(seq: Any) -> Any:
    if _is(seq, "pandas", "DataFrame", "Series"):
        return seq
    if isinstance(seq, memoryview):  # cannot be pickled
        return seq.tobytes() if seq.itemsize == 1 and seq.ndim == 1 else seq.tolist()
    try:
        if isinstance(seq, Mapping):
            raise TypeError("no order")
        if isinstance(seq, range) or not hasattr(seq, "__getitem__") or not hasattr(seq, "__len__"):
            return list(seq)
    except TypeError:
        raise TypeError(f"{type(seq).__name__} objects cannot be cut into parts: give a sequence") from None
    try:
        seq[0:0]
    except (TypeError, LookupError):  # a deque has items, but no slices
        try:
            return list(seq)
        except TypeError:
            raise TypeError(f"this {type(seq).__name__} cannot be cut into parts: give a sequence") from None
    return seq


def _maps_as_it_is(seq: Any) -> bool:
    """Whether slices of `seq`, iterated over, give the items of `seq`."""
    return type(seq) in (list, tuple, str, bytes, range) or (_is(seq, "numpy", "ndarray") and seq.ndim > 0)


def _rows(seq: Any) -> Any:
    """What takes positions of rows in brackets."""
    return seq.iloc if _is(seq, "pandas", "DataFrame", "Series") else seq


def _is(obj: Any, module: str, *names: str) -> bool:
    """``isinstance`` of a class of a module that may not be loaded."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(obj, tuple(getattr(loaded, name, ()) for name in names))


def _all(parts: Sequence[Any], kind: type) -> bool:
    return bool(parts) and all(isinstance(part, kind) for part in parts)


def _all_pandas(parts: Sequence[Any], name: str) -> bool:
    return bool(parts) and all(_is(part, "pandas", name) for part in parts)


def _is_byte(part: Any) -> bool:
    return type(part) is int and 0 <= part < 256


def _is_list_like(part: Any) -> bool:
    if _is(part, "numpy", "ndarray"):
        return bool(part.ndim)
    if _is(part, "pandas", "Series", "Index"):
        return True
    return isinstance(part, Sequence) and not isinstance(part, (str, bytes, bytearray, memoryview, tuple))
