"""The Bullet tasks of DSRL: what each one's episodes look like and how DSRL scores them."""

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Task:
    """Facts of one task. Rewards and costs are sums over an episode; the ranges are DSRL's (dsrl.infos)."""

    name: str
    obs: int
    act: int
    horizon: int  # steps in an episode, cut by the time limit and never by a true end
    rewards: tuple[float, float]  # least and greatest episode reward in DSRL's data: 0 and 1 of the normalised reward
    costs: tuple[float, float]  # least and greatest episode cost in DSRL's data
    file: str  # DSRL's name for its data file
    box: tuple[float, float] = (-1.0, 1.0)  # bounds of every action component

    @property
    def pack(self) -> str:
        """Name of the bundled pack, ours and not DSRL's: a file in dsrl's cache loads as if it were theirs."""
        return f"safediffkit-{self.name.removeprefix('Offline').removesuffix('-v0')}.hdf5"


TASKS = {
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


def find_task(name: str) -> Task:
    """Look a task up by its full id.

    Raises:
        ValueError: there is no such task; the message names the nearest one and lists all.
    """
    if name in TASKS:
        return TASKS[name]
    lower = {known.lower(): known for known in TASKS} | {known.lower()[7:-3]: known for known in TASKS}
    near = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(TASKS)}")
