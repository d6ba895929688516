"""Streams ready for training: three parts in time order, in network units."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, TrainingError, counted
from streamrnn.model.spec import HeadSpec, InputSpec, ModelSpec, OutputSpec
from streamrnn.training.config import PARTS, TrainingConfig
from streamrnn.training.data.categories import categorical_input, category_codes
from streamrnn.training.data.class_weights import class_weights
from streamrnn.training.data.columns import (
    check_spread,
    choose_columns,
    choose_loss,
    fill_forward,
    is_named,
    numeric_input,
    origin_of,
    output_names,
    regression_output,
)
from streamrnn.training.data.forecasts import Forecast, forecasts_of
from streamrnn.training.data.split import MANY_STREAMS, Split, Stops, split_streams
from streamrnn.training.data.streams import rows_of_streams
from streamrnn.training.data.table import Table
from streamrnn.training.data.times import (
    ELAPSED,
    feature_names,
    is_time_feature,
    with_time_features,
)
from streamrnn.training.data.vocabulary import with_vocabulary
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network.losses import LOSSES, PLAIN, LossSettings
from streamrnn.training.network.network import Chunk

__all__ = ["PARTS", "Dataset", "Stream", "encode", "make_dataset"]

Floats = NDArray[np.float32]
Index = NDArray[np.intp]

# Chosen by the validation parts of spoken vowels and of written digits (docs/decisions.md).
NOISE_OF_SEQUENCES = 0.6


@dataclass(frozen=True)
class Stream:
    """One stream: T rows in time order."""

    name: str  # its value in the group column; empty if there is only one stream
    x: Floats  # [T, I], raw inputs as they are sent to a server (less origins; categories by index)
    chunk: Chunk  # the same as features and codes, [T, 1, ...]
    # [T, O] or, with classes, [T, 1], in network units; NaN where missing or beyond the end
    target: Floats
    level: Floats  # [T, O], what the transforms of the outputs add back; 0 without difference
    stops: Stops  # rows before which the targets of the training, validation and test part end

    def rows(self, part: str) -> slice:
        """Return the rows whose targets lie in a part, one of `PARTS`."""
        k = PARTS.index(part)
        return slice(self.stops[k - 1] if k else 0, self.stops[k])


@dataclass(frozen=True)
class Dataset:
    """Streams to learn from, and the specification of the model to be trained."""

    config: TrainingConfig  # with every choice made that depends on the data
    spec: ModelSpec  # of the model to be trained
    streams: tuple[Stream, ...]
    table: Table
    split: Split
    loss_settings: LossSettings = PLAIN

    @property
    def loss(self) -> str:
        """The loss, never ``auto``."""
        return self.config.loss


def make_dataset(config: TrainingConfig, table: Table) -> Dataset:
    """Choose inputs, outputs and transforms, and cut the streams into their parts.

    Raises `DataError` if a column is unknown or cannot be used, or a part holds no target, and
    `TrainingError` if the configuration contradicts itself.
    """
    config = choose_columns(config.with_defaults(), table)
    config = config.replace(loss=choose_loss(config, table))
    forecasts = forecasts_of(config)
    rows = rows_of_streams(table, config.time, config.group)
    table = with_time_features(table, feature_names(config.time_features), config.time, rows)
    split = split_streams(config, table, rows)
    stops = split.stops
    for k, part in enumerate(PARTS):  # before each column is looked at: there may be thousands
        num_rows = sum(stop[k] - (stop[k - 1] if k else 0) for stop in stops.values())
        _check_part(table, split, part, num_rows * len(forecasts))
    config, table = with_vocabulary(config, table, sum(s[0] for s in stops.values()) + 1)
    given = table
    origins = _origins(config, table, rows, stops)
    table = table.shifted(origins)
    inputs, raw = [], []
    for name in config.inputs:
        item, values = _input(name, config, table, rows, stops)
        inputs.append(replace(item, origin=origins.get(name, 0.0)))
        raw.append(values)
    x = {name: np.stack([v[index] for v in raw], axis=1) for name, index in rows.items()}
    targets = {name: _ahead(config, table, index) for name, index in rows.items()}
    for name, target in targets.items():
        _leave_out_earlier_parts(target, forecasts, stops[name], split.ends[name])
    loss_on = _loss_on(config, targets)
    if loss_on == "last":
        for target in targets.values():
            target[:-1] = np.nan
    settings = _loss_settings(config, table, targets, stops)
    outputs, levels = _outputs(config, table, tuple(inputs), x, targets, stops)
    if LOSSES[config.loss] == "identity":
        outputs = tuple(
            replace(item, origin=origins.get(forecast.column, 0.0))
            for item, forecast in zip(outputs, forecasts, strict=True)
        )
    spec = ModelSpec(
        inputs=tuple(inputs),
        layers=parse_layers(config.layers, config.feedback),
        outputs=outputs,
        head=HeadSpec(LOSSES[config.loss]),
    )
    streams = tuple(
        Stream(name, x[name], encode(spec, x[name]), targets[name], levels[name], stops[name])
        for name in rows
    )
    config = config.replace(
        loss_on=loss_on,
        noise=_noise(config, loss_on),
        split_by=config.split_by if split.kind == "column" else split.kind,
        difference=tuple(item.name for item in inputs if item.difference),
        missing={item.name: item.missing for item in inputs if item.kind == "numeric"},
        difference_target=tuple(
            name for name in config.predict if name in {item.difference_of for item in outputs}
        ),
    )
    dataset = Dataset(config, spec, streams, given, split, settings)
    for part in PARTS:
        of_part = (stream.target[stream.rows(part)] for stream in streams)
        counts = np.sum([np.count_nonzero(~np.isnan(v), axis=0) for v in of_part], axis=0)
        _check_part(table, split, part, int(counts.sum()))
        if not counts.all():
            raise DataError(
                f"the {part} part of {table.path} holds no value of the target "
                f"{forecasts[int(np.argmin(counts))].name!r}; leave it out of --predict, or split "
                "the rows otherwise (--split, --split-by)"
            )
    return dataset


def _origins(
    config: TrainingConfig, table: Table, rows: dict[str, Index], stops: dict[str, Stops]
) -> dict[str, float]:
    """Return the origins of columns that float32 would blur, measured in the training part.

    Classes have none, whatever their names look like.
    """
    origins = {}
    are_classes = LOSSES[config.loss] != "identity"
    for name in dict.fromkeys((*config.inputs, *config.predict)):
        column = table.column(name)
        if column.numbers is None or is_named(column, config):
            continue
        if are_classes and name in config.predict:
            continue
        series = [
            column.numbers[index[: stops[key][0] + config.farthest]]
            for key, index in rows.items()
            if stops[key][0]
        ]
        if origin := origin_of(series):
            origins[name] = origin
    return origins


def _input(
    name: str,
    config: TrainingConfig,
    table: Table,
    rows: dict[str, Index],
    stops: dict[str, Stops],
) -> tuple[InputSpec, Floats]:
    """Describe an input and return its raw values, [num_rows]."""
    column = table.usable(name)
    if is_named(column, config):
        is_training = np.zeros(table.num_rows, bool)
        for key, index in rows.items():
            is_training[index[: stops[key][0]]] = True
        item = categorical_input(column, config, table, is_training)
        return item, category_codes(column, item.categories).astype(np.float32)
    assert column.numbers is not None  # is_named has seen to it
    values = column.numbers.astype(np.float32)
    gaps = bool(np.isnan(values).any())
    usual = "mean" if name == ELAPSED else "hold"  # a stream's first row has no row before
    policy = config.missing.get(name, usual if gaps else "error")
    if gaps and policy == "error":
        raise DataError(
            f"{table.path}, {table.place(int(np.argmax(np.isnan(values))))}: column {name!r} is "
            f"missing, and missing of {name!r} is 'error'; choose 'hold', 'mean' or 'mask'"
        )
    training = [
        values[index[: stops[key][0] + config.farthest]]
        for key, index in rows.items()
        if stops[key][0]
    ]
    difference = config.difference
    if is_time_feature(name) and name in feature_names(config.time_features):
        difference = () if difference == ("auto",) else difference
        known = np.concatenate([np.zeros(0, np.float32), *training])
        known = known[~np.isnan(known)]
        if not len(known) or known.min() == known.max():
            raise DataError(
                f"{name!r} is the same in all of the training part of {table.path}, and so tells "
                "nothing; leave it out (--time-features)"
            )
    return numeric_input(name, training, policy, difference), values


def _loss_on(config: TrainingConfig, targets: dict[str, Floats]) -> str:
    """Return which rows have a target that counts: every one, or the last of each stream."""
    if config.loss_on != "auto":
        return config.loss_on
    if config.farthest or len(targets) < MANY_STREAMS:
        return "every"
    is_one = all(
        bool((np.isnan(target[:-1]) | (target[:-1] == target[-1:])).all())
        for target in targets.values()
        if len(target)
    )
    return "last" if is_one else "every"


def _noise(config: TrainingConfig, loss_on: str) -> float:
    """Return the noise of the inputs: without it a few hundred sequences are learned by heart."""
    if config.noise >= 0:
        return config.noise
    return NOISE_OF_SEQUENCES if loss_on == "last" and LOSSES[config.loss] != "identity" else 0.0


def _outputs(
    config: TrainingConfig,
    table: Table,
    inputs: tuple[InputSpec, ...],
    x: dict[str, Floats],
    targets: dict[str, Floats],
    stops: dict[str, Stops],
) -> tuple[tuple[OutputSpec, ...], dict[str, Floats]]:
    """Describe the outputs, convert the targets to network units, return the levels."""
    names = output_names(config, table)
    levels = {key: np.zeros_like(target) for key, target in targets.items()}
    if LOSSES[config.loss] != "identity":
        return tuple(OutputSpec(name) for name in names), levels
    outputs = []
    sources = {item.name: k for k, item in enumerate(inputs)}
    for o, (_, column, _, _) in enumerate(forecasts_of(config)):
        source = sources.get(column)
        item = inputs[source] if source is not None else None
        is_change = _is_change(column, item, config)
        if item is not None and is_change:
            for key, level in levels.items():
                values = x[key][:, source]
                level[:, o] = current_level(item, values)
                # From what stands for a value to the first one that is known is no change.
                is_known = np.maximum.accumulate(~np.isnan(values))
                targets[key][~is_known, o] = np.nan
        changes = {key: target[:, o] - levels[key][:, o] for key, target in targets.items()}
        training = [change[: stops[key][0]] for key, change in changes.items()]
        outputs.append(regression_output(names[o], training, column if is_change else None))
        for key, change in changes.items():
            with np.errstate(over="ignore"):  # it is told
                own = (change - np.float32(outputs[o].center)) / np.float32(outputs[o].scale)
            check_spread(column, change, own, outputs[o])
            targets[key][:, o] = own
    return tuple(outputs), levels


def _ahead(config: TrainingConfig, table: Table, index: Index) -> Floats:
    """Return a stream's targets: the values a forecast's horizon later, [T, forecasts]."""
    found = forecasts_of(config)
    target = np.full((len(index), len(found)), np.nan, np.float32)
    for k, (_, name, horizon, _) in enumerate(found):
        column, later = table.column(name), index[horizon:]
        if config.loss == "cross_entropy" and not column.num_tokens:
            target[: len(later), k] = column.codes(column.categories())[later]
        elif column.numbers is not None:
            target[: len(later), k] = column.numbers[later]
    return target


def _leave_out_earlier_parts(
    target: Floats, forecasts: tuple[Forecast, ...], stops: Stops, ends: Stops
) -> None:
    """Set to NaN the near targets of a part's first rows, which lie in the part before.

    With several horizons a row belongs to the part that its farthest target lies in.
    """
    for k, forecast in enumerate(forecasts):
        for stop, end in zip(stops[:2], ends[:2], strict=True):
            target[stop : max(stop, end - forecast.horizon), k] = np.nan


def _is_change(column: str, item: InputSpec | None, config: TrainingConfig) -> bool:
    """Tell whether a target is learned as its change from the row's own value."""
    told = config.difference_target
    is_differenced = item is not None and bool(item.difference)
    if column in told and not is_differenced:
        raise TrainingError(
            f"the target {column!r} cannot be learned as a change: the network does not see its "
            "changes. Name it in difference too (--difference), or leave it out of "
            "--difference-target"
        )
    return is_differenced and (told == ("auto",) or column in told)


def _loss_settings(
    config: TrainingConfig, table: Table, targets: dict[str, Floats], stops: dict[str, Stops]
) -> LossSettings:
    quantiles = tuple(f.quantile for f in forecasts_of(config) if f.quantile is not None)
    if not config.class_weights:
        return LossSettings(quantiles, config.huber_delta)
    if config.loss not in ("cross_entropy", "binary_cross_entropy"):
        raise TrainingError(
            f"class_weights are given, but {config.loss} learns numbers; leave them out, or name "
            "the target in --categorical if its numbers are names of classes"
        )
    is_binary = config.loss == "binary_cross_entropy"
    names = ("0", "1") if is_binary else output_names(config, table)
    training = [target[: stops[key][0]].ravel() for key, target in targets.items()]
    weights = class_weights(config.class_weights, names, training)
    return LossSettings(class_weights=weights)


def _check_part(table: Table, split: Split, part: str, num_targets: int) -> None:
    least = 8 if part == "train" else 1
    if num_targets < least:
        raise DataError(
            f"the {part} part of {table.path} holds {counted(num_targets, 'target')}, at least "
            f"{least} needed; {counted(table.num_rows, 'row')} in "
            f"{counted(len(split.stops), 'stream')}, split by {split.kind} (--split-by)"
        )


def encode(spec: ModelSpec, x: Floats) -> Chunk:
    """Apply the transforms of the inputs to a whole stream, [T, I].

    The same as what runs inside the step (`streamrnn.reference.transforms`), for all steps from the
    first. Returns a chunk of one row: [T, 1, F].
    """
    num_steps = len(x)
    features = np.zeros((num_steps, 1, spec.num_features), np.float32)
    codes = {}
    start = 0
    for i, item in enumerate(spec.inputs):
        values = x[:, i]
        if item.kind != "numeric":
            index = values.astype(np.int64)
            if item.embedding_size:
                codes[item.name] = index[:, None]
            else:
                features[np.arange(num_steps), 0, start + index] = 1.0
        else:
            missing = np.isnan(values)
            values = current_level(item, values)
            if item.difference:
                values = np.diff(values, prepend=values[:1])
                if item.starts_known:
                    values[1:][~np.logical_or.accumulate(~missing)[:-1]] = 0.0
            with np.errstate(over="ignore"):  # it is told
                features[:, 0, start] = (values - np.float32(item.center)) / np.float32(item.scale)
            check_spread(item.name, x[:, i], features[:, 0, start], item)
            if item.missing == "mask":
                features[:, 0, start + 1] = missing
        start += item.num_features
    return Chunk(features, codes)


def current_level(item: InputSpec, values: Floats) -> Floats:
    """Return a numeric input's values, [T], with what stands for the missing ones."""
    if item.has_memory:
        return fill_forward(values, item.fill)
    return np.where(np.isnan(values), np.float32(item.fill), values)
