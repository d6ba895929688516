"""What a model's outputs of numbers are: a target, how far ahead, and which quantile."""

from __future__ import annotations

from typing import NamedTuple

from streamrnn.training.config import TrainingConfig

__all__ = ["Forecast", "forecasts_of"]


class Forecast(NamedTuple):
    """One output; with cross-entropy the target whose classes are the outputs."""

    name: str  # as ``co2+24 q0.9``
    column: str
    horizon: int  # rows ahead
    quantile: float | None = None

    @property
    def target_name(self) -> str:
        """The name without a quantile."""
        return _name(self.column, self.horizon)


def forecasts_of(config: TrainingConfig) -> tuple[Forecast, ...]:
    """List what is predicted, in the order of the outputs; the horizon must have been chosen."""
    return tuple(
        Forecast(_name(column, horizon, quantile), column, horizon, quantile)
        for column in config.predict
        for horizon in config.horizon
        for quantile in config.quantiles or (None,)
    )


def _name(column: str, horizon: int, quantile: float | None = None) -> str:
    ahead = f"+{horizon}" if horizon else ""
    return column + ahead + ("" if quantile is None else f" q{quantile:g}")
