"""Choice of a model's inputs and outputs from columns, and of their transforms.

Everything that is measured here (centres, scales, whether a series drifts) is measured on the
training part only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, TrainingError, listed, suggestion
from streamrnn.model.checks import MAX_SIZE
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.categories import known_categories
from streamrnn.training.data.forecasts import forecasts_of
from streamrnn.training.data.table import MAX_VALUE, Column, Table
from streamrnn.training.data.times import feature_names, is_time_feature

__all__ = [
    "check_spread",
    "choose_columns",
    "choose_loss",
    "drifts",
    "fill_forward",
    "is_named",
    "numeric_input",
    "origin_of",
    "output_names",
    "regression_output",
    "resolve_names",
]

Floats = NDArray[Any]

AUTO = "auto"
_LISTS = ("predict", "inputs", "categorical", "group", "difference", "difference_target")
# How far a level must leave its own past, in that past's standard deviations, to count as drift.
DRIFT = 1.5
SHORT_STEPS = 100
COARSENESS = 1e-3  # of float32 to the usual change, from which on a column has an origin
MAX_SPREADS = 1e18  # from the mean; the square of more leaves float32
_LEAST_SCALE = 1e-30  # of a series that is no constant: weights divided by less may overflow


def choose_columns(config: TrainingConfig, table: Table) -> TrainingConfig:
    """Fill in targets, inputs, time, group and horizon; check that columns exist.

    Raises `DataError` if a column does not exist or no target is named, `TrainingError` if choices
    contradict each other.
    """
    config = config.replace(
        **{name: resolve_names(getattr(config, name), table) for name in _LISTS}
    )
    predict = config.predict or table.targets
    if not predict and len(table.columns) == 1:
        predict = tuple(table.columns)
    if not predict:
        raise DataError(
            f"which column of {table.path} shall be predicted? Name it with --predict (predict = "
            f"[...] in a configuration); there are {listed(table.columns)}"
        )
    group = config.group or tuple(filter(None, (table.group,)))
    horizon = config.horizon or ((0,) if table.targets else (1,))
    of_time = feature_names(config.time_features)
    # A configuration that was written has the features of time among its inputs.
    given = tuple(
        name for name in config.inputs if name in table.columns or not is_time_feature(name)
    )
    for name in (*predict, *given, *config.categorical, *group, *config.split_column):
        table.column(name)
    time = config.time
    if time == AUTO:
        time = _only_dates(table, exclude={*group, *predict, *config.inputs})
    elif time:
        table.column(time)
    for name in of_time:
        if name in table.columns:
            raise DataError(
                f"{table.path} has a column {name!r}, which is the name of a feature of time; "
                "rename it, or leave the feature out (--time-features)"
            )
    inputs = (
        given
        if config.inputs
        else _default_inputs(
            table,
            {
                time,
                *group,
                *config.split_column,
                *(predict if 0 in horizon else ()),
                *table.targets,
            },
            config,
        )
    )
    if not inputs and not of_time:
        raise DataError(f"{table.path} has no column left for the network to see; name --inputs")
    both = sorted(set(inputs) & set(predict))
    if 0 in horizon and both:
        raise TrainingError(
            f"column {both[0]!r} is input and target of the same row (horizon 0), which there is "
            "nothing to learn from; leave it out of the inputs or predict rows ahead"
        )
    for what, names in (("predict", predict), ("inputs", inputs)):
        if len(names) > MAX_SIZE:
            raise DataError(
                f"{table.path}: {len(names)} columns are {what}; a model has at most {MAX_SIZE}: "
                f"name fewer (--{what})"
            )
        if len(set(names)) != len(names):
            raise TrainingError(f"{what} names a column twice: {listed(names)}")
        for name in names:
            if table.usable(name).times is not None:
                raise DataError(
                    f"column {name!r} of {table.path} holds dates, which are no {what}; say "
                    f"--time {name!r} if it orders the rows, or name other columns (--{what})"
                )
    inputs += of_time
    seen = set(inputs)
    for what, named, known, role in (
        ("missing", config.missing, seen, "input"),
        ("difference", config.difference, seen, "input"),
        ("difference_target", config.difference_target, set(predict), "target"),
    ):
        for name in named:
            if name not in known and name != AUTO and not is_time_feature(name):
                raise TrainingError(
                    f"{what} names {name!r}, which is no {role}{suggestion(name, known)}; {role}s "
                    f"are {listed(inputs if known is seen else predict)}"
                )
    return config.replace(predict=predict, inputs=inputs, time=time, group=group, horizon=horizon)


def resolve_names(names: tuple[str, ...], table: Table) -> tuple[str, ...]:
    """Put names together again that hold commas and were split at them.

    ``("Temp", "min")`` is column ``Temp, min``, if there is one and none of the parts is a column.
    """
    by_letters = {_without_spaces(name): name for name in reversed(table.columns)}
    found: list[str] = []
    k = 0
    while k < len(names):
        name, size = names[k].strip(), 1
        if name not in table.columns:
            for stop in range(len(names), k + 1, -1):
                whole = ",".join(names[k:stop]).strip()
                known = whole if whole in table.columns else by_letters.get(_without_spaces(whole))
                if known:
                    name, size = known, stop - k
                    break
        found.append(name)
        k += size
    return tuple(found)


def _without_spaces(name: str) -> str:
    """Return a name without the blanks beside its commas, which are lost where it is split."""
    return ",".join(part.strip() for part in name.split(","))


def _default_inputs(table: Table, hidden: set[str], config: TrainingConfig) -> tuple[str, ...]:
    """Return all columns but those hidden, of dates, or of one value only."""
    chosen = []
    for column in table.columns.values():
        if column.name in hidden or column.times is not None:
            continue
        is_wanted = column.name in (*config.predict, *config.missing, *config.difference)
        if is_wanted or column.problem or not column.is_constant():
            chosen.append(column.name)
    return tuple(chosen)


def _only_dates(table: Table, exclude: set[str]) -> str:
    """Return the column of dates, if there is one; raise `DataError` if there are several."""
    found = [
        column.name
        for column in table.columns.values()
        if column.times is not None and column.name not in exclude
    ]
    if len(found) > 1:
        raise DataError(
            f"{table.path} has {len(found)} columns of dates, {listed(found)}: say which one "
            f"orders the rows, as --time {found[0]!r}, or --time '' if they are in order"
        )
    return found[0] if found else ""


def is_named(column: Column, config: TrainingConfig) -> bool:
    """Tell whether a column holds names (or tokens) and not quantities."""
    return (
        column.indices is not None or bool(column.num_tokens) or column.name in config.categorical
    )


def choose_loss(config: TrainingConfig, table: Table) -> str:
    """Return the loss that fits the targets.

    One column of text (or of names written as numbers): cross-entropy over its classes. Columns
    that hold only 0 and 1: binary cross-entropy. Other numbers: mean squared error. Raises
    `TrainingError` if the loss asked for does not fit.
    """
    targets = [table.usable(name) for name in config.predict]
    names = [column.name for column in targets if is_named(column, config)]
    if config.quantiles:
        config = config.replace(loss="pinball")
    if config.loss == "cross_entropy" or (config.loss == "auto" and names):
        if len(targets) > 1:
            raise TrainingError(
                f"cross_entropy predicts one column of classes, but {len(targets)} are named "
                f"({listed(config.predict)}); train one model for each"
            )
        if len(config.horizon) > 1:
            raise TrainingError(
                "cross_entropy predicts the classes of one row, but "
                f"{len(config.horizon)} horizons are named; train one model for each"
            )
        return "cross_entropy"
    if names:
        raise TrainingError(
            f"column {names[0]!r} holds names, not numbers; {config.loss} cannot predict it, use "
            "cross_entropy"
        )
    binary = all(
        set(np.unique(column.numbers[~np.isnan(column.numbers)])) == {0.0, 1.0}
        for column in targets
        if column.numbers is not None
    )
    if config.loss == "binary_cross_entropy" and not binary:
        raise TrainingError("binary_cross_entropy needs targets that hold 0 and 1, and only those")
    if config.loss == "auto":
        return "binary_cross_entropy" if binary else "mse"
    return config.loss


def output_names(config: TrainingConfig, table: Table) -> tuple[str, ...]:
    """Name the outputs: the classes, or the targets with their horizon.

    ``co2+1`` is column ``co2``, one row ahead of the input, ``co2+1 q0.9`` its quantile. Raises
    `DataError` if there are not at least two classes, or too many.
    """
    if config.loss != "cross_entropy":
        return tuple(forecast.name for forecast in forecasts_of(config))
    return known_categories(table.column(config.predict[0]), table.path, least=2)


def fill_forward(values: Floats, fill: float) -> Floats:
    """Replace each missing value of a series, [T], by the one before, at first `fill`."""
    last = np.where(np.isnan(values), -1, np.arange(len(values)))
    np.maximum.accumulate(last, out=last)
    return np.where(last < 0, values.dtype.type(fill), values[last])


def drifts(series: list[Floats]) -> bool:
    """Tell whether the level of a series leaves its own past (use its changes then).

    The mean of the first two thirds is used to predict the last third. The series drifts if that
    error is more than `DRIFT` times the spread of the first two thirds about their own mean, and if
    the last value seen (persistence) predicts better. A season alone, however smooth, passes for
    stationary; a trend or a random walk does not. It is a rule of thumb, not a test with a p-value.
    The training parts of all streams, [T] with NaN where missing, are taken together. Several
    streams that are short show no drift: it could not be told from how they differ.
    """
    if len(series) > 1 and np.median([len(values) for values in series]) < SHORT_STEPS:
        return False
    spread = error = persistence = 0.0
    num_early = num_late = 0
    for values in series:
        known = values[~np.isnan(values)].astype(np.float64)
        cut = 2 * len(known) // 3
        if cut < 3 or len(known) == cut:
            continue
        early, late = known[:cut], known[cut:]
        spread += float(np.sum((early - early.mean()) ** 2))
        error += float(np.sum((late - early.mean()) ** 2))
        persistence += float(np.sum((late - known[cut - 1 : -1]) ** 2))
        num_early, num_late = num_early + len(early), num_late + len(late)
    if num_early == 0:
        return False
    beyond = error / num_late > DRIFT**2 * spread / num_early
    return beyond and persistence < error


def numeric_input(
    name: str, series: list[Floats], policy: str, differenced: tuple[str, ...]
) -> InputSpec:
    """Describe an input of numbers, with the transforms that suit its training part.

    ``series`` is the training part of every stream, NaN where missing; ``policy`` is what a missing
    value means; ``differenced`` names the inputs seen as changes, or is ``("auto",)``. Raises
    `DataError` if the training part holds no value.
    """
    known = np.concatenate([np.zeros(0), *(values[~np.isnan(values)] for values in series)])
    if not len(known):
        raise DataError(
            f"column {name!r} holds no number in its training part: leave it out of --inputs (and "
            "--predict), or let that part be longer (--split)"
        )
    fill = float(np.float32(known.mean()))
    if differenced == ("auto",):
        difference = policy != "mean" and drifts(series)
    else:
        difference = name in differenced
    if difference:
        known = np.concatenate([np.diff(fill_forward(_from_first(v), fill)) for v in series])
    center, scale = _center_and_scale(known)
    return InputSpec(
        name, difference=difference, center=center, scale=scale, missing=policy, fill=fill,
        starts_known=difference and policy in ("hold", "mask"),
    )  # fmt: skip


def _from_first(values: Floats) -> Floats:
    """Leave out what is missing before the first value: from there to the value is no change."""
    present = np.flatnonzero(~np.isnan(values))
    return values[present[0] :] if len(present) else values[:0]


def origin_of(series: list[NDArray[np.float64]]) -> float:
    """Return what is subtracted from a column before it becomes float32; 0 for nearly all.

    Where float32 at the column's size is coarser than a thousandth of what it changes by, as with a
    counter at 1e9, seconds since 1970 or a position on the globe: about its middle.
    """
    known = [values[~np.isnan(values)] for values in series]
    values = np.concatenate([np.zeros(0), *known])
    changes = np.concatenate([np.zeros(0), *map(np.diff, known)])
    sizes = [part.std() for part in (values, changes) if len(part) and part.std() > 0]
    if not sizes or np.abs(values).max() > MAX_VALUE:
        return 0.0
    coarseness = float(np.spacing(np.float32(np.abs(values).max())))
    return float(np.median(values)) if coarseness > COARSENESS * min(sizes) else 0.0


def regression_output(name: str, values: list[Floats], difference_of: str | None) -> OutputSpec:
    """Describe an output of numbers, centred and scaled by its training part.

    ``values`` are the head's targets in the training part of every stream, NaN where missing;
    ``difference_of`` names the input whose level is added. Raises `DataError` if there is no
    target.
    """
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    if not len(known):
        raise DataError(f"there is no value of {name!r} in the training part")
    center, scale = _center_and_scale(known)
    return OutputSpec(name, center=center, scale=scale, difference_of=difference_of)


def _center_and_scale(values: NDArray[Any]) -> tuple[float, float]:
    """Return mean and standard deviation, 1 for a constant, as float32 values."""
    if not len(values):
        return 0.0, 1.0
    values = values.astype(np.float64)
    center, scale = float(values.mean()), float(values.std())
    if scale <= max(1e-6 * float(np.abs(values).max()), _LEAST_SCALE):
        scale = 1.0
    return float(np.float32(center)), float(np.float32(scale))


def check_spread(
    name: str, raw: NDArray[Any], standardised: NDArray[Any], item: InputSpec | OutputSpec
) -> None:
    """Raise `DataError` if a value is so far from the training part's that float32 ends.

    ``raw`` and ``standardised`` are a column's values, [T], NaN where missing, and what ``item``
    makes of them.
    """
    bad = ~(np.abs(standardised) <= MAX_SPREADS) & ~np.isnan(raw)
    if bad.any():
        is_change = item.difference if isinstance(item, InputSpec) else item.difference_of
        changes = ", as changes," if is_change else ""
        raise DataError(
            f"column {name!r} holds {raw[np.argmax(bad)]:g}; in its training part{changes} it is "
            f"{item.center:g} +- {item.scale:g}, and float32 has no room for what is so far off. "
            "Leave the cell empty if it stands for a missing value (or name it with --na), or let "
            "the training part hold such values too (--split, --split-by)"
        )
