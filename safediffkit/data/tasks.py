"""The tasks: DSRL's in Bullet, and ours for teams. What each one's episodes look like and how they are scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Task:
    """Facts of one task. Rewards and costs are sums over an episode and a team; Bullet's are DSRL's (dsrl.infos).

    A team's task is a world and the quality of what was recorded there: "landmarks-medium" is landmarks of medium
    quality. All of one world share one scale.
    """

    name: str
    obs: int
    act: int
    horizon: int  # steps in an episode, which only cars end truly, by a crash; the time limit cuts all others
    rewards: tuple[float, float]  # 0 and 1 of the normalised reward; DSRL's are the least and greatest of its data
    costs: tuple[float, float]  # least and greatest episode cost in the data
    file: str = ""  # DSRL's name for its data file, where DSRL has one
    box: tuple[float, float] = (-1.0, 1.0)  # bounds of every action component
    agents: tuple[int, ...] = ()  # length of the agents axis, if there is one
    world: str = "bullet.make"  # module and function of `safediffkit.worlds` that make its world
    keywords: Mapping[str, Any] = field(default_factory=dict)  # of that function
    # other worlds to evaluate in: names, and what of the keywords changes; of several starts each has its turn
    shifts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measures: str = ""  # module and function of `safediffkit.worlds` that say more of episodes than sums do

    @property
    def pack(self) -> str:
        """Name of the bundled pack, ours and not DSRL's: a file in dsrl's cache loads as if it were theirs."""
        return f"safediffkit-{self.name.removeprefix('Offline').removesuffix('-v0')}.hdf5"


BULLET = {
    task.name: task
    for task in (
        Task(
            "OfflineBallCircle-v0",
            8,
            2,
            200,
            (0.38312244415283203, 881.46337890625),
            (0.0, 80.0),
            "SafetyBallCircle-v0-80-886.hdf5",
        ),
        Task(
            "OfflineBallRun-v0",
            7,
            2,
            100,
            (26.339754104614258, 1327.445556640625),
            (0.0, 80.0),
            "SafetyBallRun-v0-80-940.hdf5",
        ),
        Task(
            "OfflineCarCircle-v0",
            8,
            2,
            300,
            (3.484419822692871, 534.3060913085938),
            (0.0, 100.0),
            "SafetyCarCircle-v0-100-1450.hdf5",
        ),
        Task(
            "OfflineCarRun-v0",
            7,
            2,
            200,
            (204.28726196289062, 574.6533203125),
            (0.0, 40.0),
            "SafetyCarRun-v0-40-651.hdf5",
        ),
        Task(
            "OfflineDroneCircle-v0",
            18,
            4,
            300,
            (207.794189453125, 996.38916015625),
            (0.0, 100.0),
            "SafetyDroneCircle-v0-100-1923.hdf5",
        ),
        Task(
            "OfflineDroneRun-v0",
            17,
            4,
            200,
            (10.557029724121094, 682.8330078125),
            (0.0, 140.0),
            "SafetyDroneRun-v0-140-1990.hdf5",
        ),
        Task(
            "OfflineAntCircle-v0",
            34,
            8,
            500,
            (0.0177031010389328, 460.7091979980469),
            (0.0, 200.0),
            "SafetyAntCircle-v0-200-5728.hdf5",
        ),
        Task(
            "OfflineAntRun-v0",
            33,
            8,
            200,
            (0.001767391717990563, 955.4818725585938),
            (0.0, 150.0),
            "SafetyAntRun-v0-150-1816.hdf5",
        ),
    )
}


QUALITIES = ("random", "medium-replay", "medium", "medium-expert", "expert")

# 0 and 1 are the mean returns of our random and expert data, which `python -m safediffkit.data.collect NAME --seed 0
# --compact --out FILE` records and prints; cars have no expert: least and greatest of their data, as DSRL's.
# Costs are least and greatest over all qualities.
_STARTS = {"start": (0, 1, 2, 3)}
_SHIFTS: dict[str, dict[str, Any]] = {
    "three dismissed": {"dismissed": 3}, "three far": {"dismissed": 3, "absent": "far"}, "slow": {"v_min": 0.3},
    "four starts": _STARTS, "four starts, three dismissed": _STARTS | {"dismissed": 3},
}  # fmt: skip
_LANDMARKS = Task(
    "", 20, 2, 25, (217.9, 656.8), (0.0, 30.0), agents=(3,), world="landmarks.landmarks", measures="landmarks.measures"
)
_NAVIGATION = Task("", 14, 2, 25, (464.2, 1733.0), (0.0, 34.0), agents=(3,), world="landmarks.cooperative_navigation")
_MERGE = Task("", 10, 1, 80, (-12.5, 154.1), (0.0, 116.0), agents=(2,), world="merge.merge", measures="merge.measures")
TEAMS = {
    task.name: task
    for task in (
        *(replace(_LANDMARKS, name=f"landmarks-{quality}", shifts=_SHIFTS) for quality in QUALITIES),
        # a barrier must see how fast team mates come
        replace(_LANDMARKS, name="landmarks-mixed-safety", obs=24, keywords={"velocities": True}),
        *(
            replace(_NAVIGATION, name=f"cooperative-navigation-{quality}", shifts={"slow": {"v_min": 0.3}})
            for quality in QUALITIES
        ),
        replace(_MERGE, name="merge-mixed-safety"),
    )
}
TASKS = BULLET | TEAMS


def find_task(name: str, among: Mapping[str, Task] = TASKS) -> Task:
    """Look a task up by its full id.

    Raises:
        ValueError: there is no such task; the message names the nearest one and lists all.
    """
    if name in among:
        return among[name]
    lower = {known.lower(): known for known in among}
    lower |= {known.lower().removeprefix("offline").removesuffix("-v0"): known for known in among}
    near = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(among)}")
