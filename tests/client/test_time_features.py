"""Inputs made of the time, against the standard library."""

import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_client import time_features
from streamrnn_client.times import TIME_FEATURES

ALL = [name for names in TIME_FEATURES.values() for name in names]
MOMENTS = st.datetimes(datetime(1901, 1, 1), datetime(2199, 1, 1), timezones=st.sampled_from([UTC]))


@given(moment=MOMENTS, hours=st.integers(-12, 12))
def test_a_time_in_any_zone_gives_what_the_standard_library_says_of_utc(moment, hours):
    found = time_features(ALL, moment.astimezone(timezone(timedelta(hours=hours))))
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    for name, share in (
        ("hour", (moment - day).total_seconds() / 86_400),
        ("weekday", moment.weekday() / 7),
        ("month", (moment.month - 1) / 12),
    ):
        assert found[f"{name} sin"] == pytest.approx(math.sin(2 * math.pi * share), abs=1e-9)
        assert found[f"{name} cos"] == pytest.approx(math.cos(2 * math.pi * share), abs=1e-9)
    assert math.isnan(found["elapsed s"])


@given(moments=st.lists(MOMENTS, min_size=2, max_size=20))
def test_one_step_after_the_other_gives_the_bits_of_all_at_once(moments):
    whole = time_features(ALL, moments)
    at_once = np.array([moment.timestamp() for moment in moments])
    for name, values in time_features(ALL, at_once).items():
        np.testing.assert_array_equal(values, whole[name])
    for k, moment in enumerate(moments):
        one = time_features(ALL, moment, moments[k - 1] if k else None)
        assert {name: np.float64(values[k]).tobytes() for name, values in whole.items()} == {
            name: np.float64(value).tobytes() for name, value in one.items()
        }


def test_every_form_of_a_time_is_the_same_time():
    forms = [
        datetime(2024, 2, 29, 6, 0),
        datetime(2024, 2, 29, 8, 0, tzinfo=timezone(timedelta(hours=2))),
        "2024-02-29T06:00:00",
        np.datetime64("2024-02-29T06"),
        1709186400,
    ]
    for form in forms:
        found = time_features(["hour sin", "elapsed s", "y"], form, forms[0])
        assert found == {"hour sin": 1.0, "elapsed s": 0.0}


@pytest.mark.parametrize("time", ["noon", None, float("nan"), np.datetime64("NaT"), [[1.0]], True])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(ValueError, match=r"time|isoformat"):
        time_features(ALL, time)
