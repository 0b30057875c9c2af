import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from safediffkit import load, rollout, score
from safediffkit.data import collect as command
from safediffkit.data import teams
from safediffkit.data.collect import collect, main
from safediffkit.data.sources import load_file
from safediffkit.data.tasks import TEAMS, find_task
from safediffkit.data.teams import CLUMSY, DRIVERS, RANGES, Drivers, LandmarkTeam, Uniform, record, share_out, tune
from safediffkit.data.tuning import improve, named
from safediffkit.policy import History
from safediffkit.worlds.landmarks import near_the_nearest
from safediffkit.worlds.merge import outcome
from safediffkit.worlds.rollout import task_world

BOLD = dict(zip(RANGES, (0.2, 2.0, 1.5, 5.0, 3.0, 0.3, 2.0, 0.0), strict=True))
STILL = BOLD | {"gain": 0.0, "stiffness": 0.0, "strength": 0.0}


def numbers(*values):
    return torch.tensor(values)[:, None]


# ---------------------------------------------------------------- tuning


def test_a_round_asks_for_all_on_one_seed_and_gives_the_best_quarter():
    asked, ranges = [], {"a": (-1.0, 1.0), "b": (0.0, 5.0)}

    def value(guess, seed):
        asked.append((guess, seed))
        return -abs(guess[0] - 0.5)

    mean, spread, best = improve(value, np.zeros(2), np.ones(2), ranges, 12, np.random.default_rng(0))
    guesses = np.array([guess for guess, _ in asked])
    assert len({seed for _, seed in asked}) == 1
    assert guesses[0].tolist() == [0, 0]
    assert (guesses >= [-1, 0]).all()
    assert (guesses <= [1, 5]).all()
    chosen = guesses[np.abs(guesses[:, 0] - 0.5).argsort()[:3]]
    assert mean == pytest.approx(chosen.mean(0))
    assert spread == pytest.approx(chosen.std(0) + np.array([0.02, 0.05]))
    assert best == -np.abs(guesses[:, 0] - 0.5).min()
    assert named(ranges, np.array([0.123456, 2])) == {"a": 0.1235, "b": 2.0}


@pytest.mark.parametrize(("returns", "kept"), [([10, 35, 60, 100, 90], [0, 1, 2, 3]), ([49, 100], [0, 1])])
def test_medium_is_nearest_to_half_way_from_random_to_the_best(returns, kept, monkeypatch):
    judged = iter([0, *returns])
    monkeypatch.setattr(teams, "_judged", lambda policy, task, seed: next(judged))
    rounds = [BOLD | {"gain": float(number)} for number in range(len(returns))]
    monkeypatch.setattr(teams, "_training", lambda task, seed: ((each, []) for each in rounds))
    assert tune("landmarks-expert", 0) == [rounds[number] for number in kept]


def test_replay_is_evenly_what_tuning_ran_up_to_medium(make_dataset, monkeypatch):
    task, tuned = "landmarks-medium-replay", [BOLD] * 3  # medium is that of the second round
    ran = [make_dataset((2,) * teams.TRIES, obs=20, agents=(3,), seed=seed) for seed in range(6)]
    rounds = [(BOLD, ran[:2]), (BOLD, ran[2:4]), (BOLD, ran[4:])]
    monkeypatch.setattr(teams, "_training", lambda task, seed: iter(rounds))
    total = 4 * teams.TRIES
    everything, half = (record(task, episodes, 0, tuned) for episodes in (total, total // 2))
    assert torch.equal(everything.rewards, torch.cat([each.rewards for each in ran[:4]]))
    assert half.episode_returns()[:, 0].tolist() == everything.episode_returns()[::2, 0].tolist()
    with pytest.raises(ValueError, match=f"tuning up to medium ran {total}"):
        record(task, total + 1, 0, tuned)


# ---------------------------------------------------------------- landmark teams


def test_the_lot_follows_the_ways():
    # one agent: the odds of the nearer landmark are exp(difference / temperature)
    lengths = torch.tensor([[[0.2, 0.5]]]).expand(20_000, 1, 2)
    near = (share_out(lengths, numbers(0.3), numbers(0.0), 0) == 0).float().mean()
    assert near == pytest.approx(1 / (1 + math.exp(-1)), abs=0.012)
    # two agents and one good landmark: sharing it costs a clash
    lengths = torch.zeros(20_000, 2, 2)
    together = share_out(lengths, numbers(0.5), numbers(1.0), 0).diff().eq(0).float().mean()
    assert together == pytest.approx(1 / (1 + math.exp(2)), abs=0.012)


def test_a_cold_lot_is_the_best_assignment():
    lengths = torch.rand(30, 3, 6, generator=torch.Generator().manual_seed(0))
    shared = share_out(lengths, numbers(1e-4), numbers(5.0), 1)
    assert shared.tolist() == [linear_sum_assignment(each.numpy())[1].tolist() for each in lengths]


def seen(velocity, ways, mates):
    """Show one agent's view, the place left out of it, to all three agents of one world."""
    row = torch.tensor([*velocity, 0.0, 0.0, *np.ravel(ways), *np.ravel(mates)], dtype=torch.float32)
    return row.expand(1, 3, -1)


FAR_OFF = [(5.0, 5.0), (5.0, 6.0)]


def act(settings, *rows, seed=0):
    history = History.start(rows[0], 2)
    history = History(torch.stack(rows, 1), history.actions, history.rewards, history.costs, history.budget)
    return LandmarkTeam({name: numbers(value) for name, value in settings.items()}, seed).act(history)[0, 0].tolist()


def test_it_steers_for_its_landmark_at_a_limited_speed():
    one = BOLD | {"stiffness": 0.5}
    # near by: gain x way less the velocity, times stiffness
    assert act(one, seen((0.1, 0), [(0.2, 0.1)], FAR_OFF)) == pytest.approx([0.5 * (1 - 0.1), 0.5 * 0.5])
    # far off: the greatest speed, 1.5
    assert act(one, seen((0, 0), [(3, 4)], FAR_OFF)) == pytest.approx([0.5 * 0.9, 0.5 * 1.2])
    assert act(one, seen((0.9, 1.2), [(3, 4)], FAR_OFF)) == pytest.approx([0, 0], abs=1e-6)


def test_it_keeps_off_mates_within_the_radius():
    settings = STILL | {"strength": 2.0, "radius": 0.5}
    assert act(settings, seen((0, 0), [(0, 0)], [(0.1, 0), (5, 5)])) == pytest.approx([-0.8, 0])
    assert act(settings, seen((0, 0), [(0, 0)], [(0, -0.4), (0.6, 0)])) == pytest.approx([0, 0.2])


def test_it_does_the_same_where_velocities_are_seen():
    settings = BOLD | {"strength": 2.0, "radius": 0.5, "temperature": 0.01}
    ways, mates = [(0.1, 0), (0, 0.9)], [(0.1, 0.2), (-0.3, 0)]
    plain = act(settings, seen((0.1, 0), ways, mates))
    seeing = seen((0.1, 0), ways, [(*mate, 7.0, -7.0) for mate in mates])
    team = LandmarkTeam({name: numbers(value) for name, value in settings.items()}, 0, velocities=True)
    assert team.act(History.start(seeing, 2))[0, 0].tolist() == pytest.approx(plain)


def test_it_keeps_the_landmark_that_it_got_at_the_start():
    settings = BOLD | {"temperature": 0.01, "clash": 0.0}
    start = seen((0, 0), [(0.1, 0), (0, 0.9)], FAR_OFF)
    now = seen((0, 0), [(0.9, 0), (0, 0.1)], FAR_OFF)
    assert act(settings, start, now)[0] > act(settings, start, now)[1] == 0
    assert act(settings, now)[1] > act(settings, now)[0] == 0


# ---------------------------------------------------------------- drivers


def drive(attitude, margin=0.0, window=1.0, speed=25.0, **neighbour):
    """Drive at x = 130 m and 20 m/s, with one neighbour; give the action."""
    other = {"there": 1, "dx": 0, "dy": -10.5, "dv": 0, "counts": 0} | neighbour
    row = torch.tensor([130.0, 14.5, 20.0, 0.0, 2.0, *map(float, other.values())]).expand(1, 1, -1)
    settings = {"speed": speed, "window": window, "margin": margin, "noise": 0.0, "attitude": float(attitude)}
    policy = Drivers({name: torch.tensor([[value]]) for name, value in settings.items()})
    return policy.act(History.start(row, 1)).item()


def test_drivers_meet_as_their_attitude_says():
    assert drive(0) == 1  # 5 m/s too slow: full acceleration
    assert drive(0, speed=21.0) == pytest.approx(0.2)
    # abreast, both 5 s from the merging lane: a yielding one takes 6 s, a pressing one 4 s, which is 25 m/s
    assert drive(1) == pytest.approx((100 / 6 - 20) / 5)
    assert drive(-1, speed=15.0) == pytest.approx((100 / 4 - 20) / 5)
    # who comes late anyway need not yield, and who is early need not press on
    assert drive(1, dx=50.0) == 1
    assert drive(-1, speed=15.0, dx=-90.0) == -1
    assert drive(1, there=0) == 1


def test_drivers_brake_for_whoever_is_ahead_on_their_lane():
    ahead = {"dy": 0.0, "counts": 1.0}
    # a gap of 20 - 5 m, less 10^2 / (2 x 5) m for 10 m/s closing, less 2 m of clearance: a margin of 3 m
    assert drive(0, margin=0.0, dx=20.0, dv=-10.0, **ahead) == 1
    assert drive(0, margin=5.0, dx=20.0, dv=-10.0, **ahead) == pytest.approx(-0.4)
    assert drive(0, margin=5.0, dx=-20.0, dv=-10.0, **ahead) == 1  # behind
    assert drive(0, margin=5.0, dx=20.0, dv=-10.0, dy=0.0) == 1  # its lane does not count


# ---------------------------------------------------------------- worlds and recording


@pytest.mark.parametrize("name", TEAMS)
def test_every_task_lies_in_the_world_that_its_record_says(name):
    facts, world = TEAMS[name], task_world(name)
    assert (len(world.possible_agents),) == facts.agents
    for agent in world.possible_agents:
        assert world.observation_space(agent).shape == (facts.obs,)
        space = world.action_space(agent)
        assert (space.shape, space.low.min(), space.high.max()) == ((facts.act,), *facts.box)


def test_a_tasks_world_can_be_changed():
    world = task_world("landmarks-mixed-safety", dismissed=2)
    assert world.game.dismissed == 2
    assert world.game.velocities
    assert not task_world("landmarks-mixed-safety", velocities=False).game.velocities


@pytest.mark.parametrize("name", ["landmarks-expert", "merge-mixed-safety"])
def test_rollout_and_score_take_the_name(name):
    facts = find_task(name)
    data = rollout(Uniform(facts.act), name, episodes=2, budget=0)
    assert data.observations.shape[1:] == (*facts.agents, facts.obs)
    assert torch.bincount(data.episode).max() <= facts.horizon
    earned = data.episode_returns().double().sum(1).mean().item()
    low, high = facts.rewards
    assert score(data, name, budget=0).normalised_reward.mean == pytest.approx((earned - low) / (high - low))


def test_medium_expert_is_half_and_half():
    data = record("cooperative-navigation-medium-expert", 5, 0, [STILL, BOLD])
    moves = data.actions.abs().sum((1, 2)) > 0
    assert [bool(moves[data.episode == number].any()) for number in range(5)] == [False] * 3 + [True] * 2


def test_mixed_teams_and_drivers_differ_from_episode_to_episode():
    a, b = (teams._drawn_drivers(50, seed) for seed in (0, 1))
    assert set(a) == {*DRIVERS, "attitude"}
    assert not torch.equal(a["speed"], b["speed"])
    for name, (low, high) in DRIVERS.items():
        assert low <= a[name].min() < low + 0.2 * (high - low)
        assert high >= a[name].max() > high - 0.2 * (high - low)
    assert set(a["attitude"].ravel().tolist()) == {-1.0, 0.0, 1.0}
    # force from noise alone: its spread, drawn for each episode, varies more than by chance
    data = record("landmarks-mixed-safety", 6, 0, [STILL, STILL])
    spreads = [data.actions[data.episode == number].std().item() for number in range(6)]
    assert max(spreads) > 1.5 * min(spreads)


@pytest.mark.parametrize(
    ("task", "episodes"), [("landmarks-mixed-safety", 3), ("landmarks-random", 3), ("merge-mixed-safety", 1)]
)
def test_the_command_writes_the_same_bytes_again(task, episodes, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        torch.manual_seed(len(name))
        np.random.seed(len(name))
        out = ["--out", str(tmp_path / name)]
        main([task, "--episodes", str(episodes), "--seed", str(seed), "--compact", *out])
    one, two, other = ((tmp_path / name).read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    data = load_file(tmp_path / "one", find_task(task))
    assert len(data.episode_starts()) == episodes
    assert f"Episodes: {episodes}. Seed 1." in data.provenance


def test_starts_differ_from_task_to_task():
    starts = [collect(task, 1, 0).observations[0] for task in ("landmarks-random", "landmarks-medium")]
    assert not torch.equal(*starts)


def test_tuning_serves_the_whole_world_and_repeats_itself(monkeypatch, tmp_path):
    for name, value in {"ROUNDS": 2, "POPULATION": 8, "TRIES": 1, "JUDGED": 2}.items():
        monkeypatch.setattr(teams, name, value)
    monkeypatch.setattr(command, "CONTROLLERS", tmp_path / "controllers.json")
    with pytest.raises(ValueError, match="add `--tune`"):
        collect("landmarks-medium", 1, 0)
    main(["landmarks-expert", "--tune", "--seed", "3"])
    stored = json.loads((tmp_path / "controllers.json").read_text())
    tuned = tune("landmarks-random", 3)
    assert stored == {"landmarks.landmarks": tuned}
    assert CLUMSY not in tuned
    for settings in tuned:
        assert all(low <= settings[name] <= high for name, (low, high) in RANGES.items())
    collect("landmarks-medium", 1, 0)


def test_cars_have_nothing_to_tune(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["merge-mixed-safety", "--tune"])
    assert exit.value.code == 2
    assert "nothing to tune" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nothing to tune"):
        tune("merge-mixed-safety", 0)


def test_stored_settings_are_in_range():
    stored = json.loads(command.CONTROLLERS.read_text())
    for world in ("landmarks.landmarks", "landmarks.cooperative_navigation"):
        assert len(stored[world]) >= 3
        for settings in stored[world]:
            assert all(low <= settings[name] <= high for name, (low, high) in RANGES.items())
            assert set(settings) == set(RANGES)


# ---------------------------------------------------------------- packs


@pytest.fixture(scope="module")
def packs():
    """Give all that is bundled of teams."""
    return {name: load(name) for name in TEAMS}


@pytest.mark.parametrize("name", TEAMS)
def test_packs_are_small_whole_and_say_what_they_are(name, packs):
    from importlib import resources

    task, data = TEAMS[name], packs[name]
    assert len(resources.files("safediffkit.data").joinpath("packs", task.pack).read_bytes()) <= 2_000_000
    lengths, last = torch.bincount(data.episode), data.terminated[data.episode.diff(append=torch.tensor([-1])) != 0]
    assert len(lengths) == teams.EPISODES[task.world]
    assert (lengths[~last] == task.horizon).all()
    assert last.any() == (task.world == "merge.merge")
    assert set(data.costs.unique().tolist()) == {0.0, 1.0}
    earned, cost = data.episode_returns().sum(1), data.episode_costs().sum(1)
    assert cost.min() == task.costs[0]
    assert cost.max() <= task.costs[1]
    for words in ("Self-collected", name, f"Episodes: {len(lengths)}. Seed 0.", f"mean cost {cost.mean():.2f}"):
        assert words in data.provenance
    told = float(data.provenance.partition("mean return ")[2].partition(",")[0])
    assert told == pytest.approx(earned.mean().item(), abs=0.2)  # half precision


@pytest.mark.parametrize("world", ["landmarks", "cooperative-navigation"])
def test_qualities_are_what_they_are_called(world, packs):
    def quality(name):
        return score(packs[f"{world}-{name}"], f"{world}-{name}", budget=0).normalised_reward.mean

    assert quality("random") == pytest.approx(0, abs=0.01)
    assert quality("expert") == pytest.approx(1, abs=0.01)
    assert quality("medium") == pytest.approx(0.5, abs=0.1)
    assert quality("medium-expert") == pytest.approx((quality("medium") + 1) / 2, abs=0.03)
    assert 0.1 < quality("medium-replay") < quality("medium")


def test_rewards_are_those_of_what_was_seen(packs):
    data = packs["landmarks-mixed-safety"]
    after = data.next_observations
    gaps = after[..., 4:16].unflatten(-1, (6, 2)).norm(dim=-1)
    apart = after[..., 16:].unflatten(-1, (2, 4))[..., :2].norm(dim=-1)
    clear = ((apart - 0.3).abs() > 0.003).all(-1)  # beyond the rounding of the stored numbers
    touched = (apart < 0.3).sum(-1)
    earned = torch.from_numpy(near_the_nearest(gaps.flatten(0, 1).numpy())).view(-1, 3) - 5 * touched
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(data.rewards[clear], earned[clear].float(), rtol=0.01, atol=0.02)
    assert torch.equal(data.costs[clear] == 1, touched[clear] > 0)


def test_teams_are_safe_and_unsafe_at_good_returns(packs):
    data = packs["landmarks-mixed-safety"]
    earned, cost = data.episode_returns().sum(1), data.episode_costs().sum(1)
    assert 1 / 3 <= (cost > 0).float().mean() <= 1 / 2
    low, high = TEAMS["landmarks-expert"].rewards
    for some in (cost == 0, cost > 0):
        assert (earned[some] > low + 0.8 * (high - low)).sum() >= 40


def test_cars_end_in_every_way(packs):
    data = packs["merge-mixed-safety"]
    ends = [outcome(data.where(data.episode == number)) for number in range(int(data.episode[-1]) + 1)]
    for name in ("leader first", "follower first", "slow", "crash"):
        assert ends.count(name) >= 60
        assert f"{name} {ends.count(name)}" in data.provenance
