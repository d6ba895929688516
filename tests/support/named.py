"""Tables as pandas makes them, without pandas: what is known of them is what they offer."""

import numpy as np


class Table:
    """Columns by name; as an array they stand in their own order."""

    def __init__(self, **columns):
        self._columns = {name: np.asarray(values) for name, values in columns.items()}

    def __dataframe__(self, *_):
        raise NotImplementedError

    @property
    def columns(self):
        return np.array(list(self._columns), object)

    def __getitem__(self, name):
        return self._columns[name]

    def to_numpy(self):
        return np.stack(list(self._columns.values()), axis=-1)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.to_numpy(), dtype)

    def renamed(self, *names):
        """Return the same columns under other names, of any type."""
        other = Table()
        other._columns = dict(zip(names, self._columns.values(), strict=True))
        return other


class Series:
    """Values with labels: a row of a table, or one of its columns."""

    def __init__(self, values, index):
        self.index = index
        self._values = np.asarray(values)

    def to_numpy(self):
        return self._values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)
