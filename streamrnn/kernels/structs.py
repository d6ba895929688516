"""Structs in memory that compiled code and Python share, by the names of their fields.

A struct is declared like a NamedTuple::

    class Header(Struct):
        last_seq: I64
        flags: U8

NumPy has its layout as ``Header.dtype``. Compiled code reads and writes it through a pointer
(`streamrnn.kernels.pointers`). Nothing here loads Numba.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import numpy as np

__all__ = ["I8", "I16", "I32", "I64", "U8", "Struct"]

I64 = Annotated[int, np.int64]
I32 = Annotated[int, np.int32]
I16 = Annotated[int, np.int16]
I8 = Annotated[int, np.int8]
U8 = Annotated[int, np.uint8]  # for flags and bytes; see `streamrnn.kernels.pointers`


class Struct:
    """Base of all structs: turns the annotations of a subclass into a NumPy dtype.

    A field is one of `I64` to `I8`, an array of them (``Annotated[Any, np.uint8, (16,)]``), or
    another struct, which lies inside.

    Attributes
    ----------
    dtype : numpy.dtype
        The fields in their order, aligned as in C unless ``packed`` is asked for.
    """

    dtype: ClassVar[np.dtype[Any]]

    def __init_subclass__(cls, packed: bool = False) -> None:
        fields: list[Any] = []
        hints = get_type_hints(cls, include_extras=True)
        for name in cls.__annotations__:
            hint = hints[name]
            inner = isinstance(hint, type) and issubclass(hint, Struct)
            fields.append((name, hint.dtype) if inner else (name, *get_args(hint)[1:]))
        cls.dtype = np.dtype(fields, align=not packed)

    @classmethod
    def one(cls) -> Any:
        """Return a zeroed struct that Python owns and reads and writes by name."""
        return np.zeros(1, cls.dtype)[0]
