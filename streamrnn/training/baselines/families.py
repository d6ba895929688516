"""All baselines: fitted to a dataset, and stored in a model's report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from streamrnn.errors import ModelFileError
from streamrnn.model.checks import shown
from streamrnn.model.spec import ModelSpec
from streamrnn.training.baselines.autoregression import Autoregression
from streamrnn.training.baselines.bigram import Bigram
from streamrnn.training.baselines.constant import Constant
from streamrnn.training.baselines.persistence import ClassPersistence, Persistence
from streamrnn.training.baselines.regression import LinearRegression, LogisticRegression
from streamrnn.training.baselines.seasonal import Seasonal
from streamrnn.training.baselines.shifted import Shifted, needs_shift
from streamrnn.training.baselines.target import Baseline, Target, targets_of
from streamrnn.training.data.dataset import Dataset

__all__ = ["FAMILIES", "baselines_from_dict", "baselines_to_dict", "fit_baselines"]

Fitted = dict[str, list[Baseline]]  # by the target's name

FAMILIES: tuple[type[Baseline], ...] = (
    Constant,
    Persistence,
    ClassPersistence,
    Seasonal,
    LinearRegression,
    LogisticRegression,
    Autoregression,
)
TEXT_FAMILIES: tuple[type[Baseline], ...] = (Constant, Bigram)


def fit_baselines(dataset: Dataset) -> Fitted:
    """Fit every baseline that makes sense of every target, without a look at the test part."""
    fitted: Fitted = {}
    families = TEXT_FAMILIES if _is_text(dataset.spec) else FAMILIES
    bases: dict[tuple[str, int], list[Baseline]] = {}  # one fit for all quantiles of a target
    for target in targets_of(dataset.config, dataset.spec):
        key = (target.column, target.horizon)
        if key not in bases:
            found = (family.fit(dataset, target) for family in families if family is not Constant)
            bases[key] = [baseline for baseline in found if baseline is not None]
        own: list[Baseline] = [replace(cast(Any, base), target=target) for base in bases[key]]
        if needs_shift(target):  # the constant is the quantile itself
            own = [_shifted(Shifted.fit(base, dataset)) for base in own]
        fitted[target.name] = [Constant.fit(dataset, target), *own]
    return fitted


def _shifted(baseline: Shifted) -> Baseline:
    """Return it as what it is: its names are those of its base, not of its class."""
    return cast(Baseline, baseline)


def _is_text(spec: ModelSpec) -> bool:
    return spec.is_token and bool(spec.inputs[0].unit)


def baselines_to_dict(fitted: Fitted) -> dict[str, dict[str, Any]]:
    """Return plain JSON types: target -> name of the baseline -> what was fitted."""
    return {
        target: {baseline.name: baseline.to_dict() for baseline in baselines}
        for target, baselines in fitted.items()
    }


def baselines_from_dict(plain: Any, targets: tuple[Target, ...]) -> Fitted:
    """Take them back for some targets, or raise `ModelFileError`."""
    fitted: Fitted = {}
    for target in targets:
        stored = plain.get(target.name) if isinstance(plain, dict) else None
        if not isinstance(stored, dict) or not all(isinstance(v, dict) for v in stored.values()):
            raise ModelFileError(
                f"the model's report holds no fitted baselines of {target.name!r}; train the model "
                "again with this version"
            )
        fitted[target.name] = [_from_dict(name, stored[name], target) for name in stored]
    return fitted


def _from_dict(name: str, plain: dict[str, Any], target: Target) -> Baseline:
    """Choose the family that bears the name and fits the kind of the target."""
    if _is_text(target.spec):
        for family in TEXT_FAMILIES:
            if family.name == name:
                return family.from_dict(plain, target)
    for family in FAMILIES:
        is_of_classes = family in (ClassPersistence, LogisticRegression)
        is_of_numbers = family not in (Constant, ClassPersistence, LogisticRegression)
        if family.name != name or (is_of_numbers if target.num_classes else is_of_classes):
            continue
        needs_past = family in (Persistence, ClassPersistence, Seasonal, Autoregression)
        if not needs_past or target.source is not None:
            base: Baseline = family.from_dict(plain, target)
            if needs_shift(target) and family is not Constant:
                return _shifted(Shifted.from_dict(plain, base))
            return base
    raise ModelFileError(
        f"the model's report holds the baseline {shown(name)}, which makes no sense of "
        f"{target.name!r}; was the file changed? Train the model again"
    )
