import json
from functools import partial

import pytest

from safediffkit import benchmark, results, selection
from safediffkit.data.tasks import QUALITIES


@pytest.fixture
def chosen(tmp_path):
    results = tmp_path / "assets" / "results"
    results.mkdir(parents=True)
    for task in benchmark.MORE_TASKS:
        record = {"chosen": {"weights": [0.5, 0.1, 0.4], "safest_share": 0.3}}
        (results / f"weights-{task}.json").write_text(json.dumps(record))
        for name in benchmark.PLANNERS:
            setting, weights = selection.GUIDANCE[name]
            record = {"chosen": {"settings": {setting: weights[-1]}}}
            (results / f"weights-{name}-{task}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_table_has_every_method_task_and_seed_once(chosen):
    # [SPI Table 2]
    commands = benchmark.spi_table(chosen / "assets", chosen / "runs", steps=7)
    records = [one[one.index("--record") + 1] for one in commands]
    assert len(set(records)) == len(records) == 5 * 2 * 3
    assert all(one[one.index("--steps") + 1] == "7" for one in commands)
    without = next(one for one in commands if "spi-without-safety-OfflineCarCircle-v0-2" in " ".join(one))
    assert without[without.index("--set") + 1 :] == [
        "imitate=0.8333333333",
        "reward=0.1666666667",
        "safety=0",
        "safest_share=0.3",
    ]


def test_every_method_meets_every_budget_on_every_task(chosen):
    # [TCDP Table 1]
    from safediffkit import train

    commands = benchmark.budgets_table(chosen / "assets", chosen / "runs", steps=7)
    met = {}
    for one in commands:
        given = train._parser().parse_args(one)
        _, config = train._configured(given)
        assert (config.steps, config.seed) == (7, given.seed)
        if given.method in benchmark.PLANNERS:
            setting, weights = selection.GUIDANCE[given.method]
            assert getattr(config, setting) == weights[-1]
        met.setdefault((given.method, given.task, given.seed), []).extend(given.budget)
    assert len(met) == 8 * 4 * 3
    assert all(budgets == [10, 20, 40] for budgets in met.values())
    assert len({one[one.index("--record") + 1] for one in commands}) == len(commands) == 10 * 4 * 3


def test_ablated_and_simplex_weights_are_valid_settings(chosen):
    from safediffkit import train

    spi = benchmark.spi_table(chosen / "assets", chosen / "runs", 1)
    simplex = benchmark.simplex_table(chosen / "assets", chosen / "runs", 1)
    assert len(simplex) == 10
    for command in (*spi, *simplex):
        _, config = train._configured(train._parser().parse_args(command))
        assert config.steps == 1


def test_finished_records_are_not_run_again(chosen, monkeypatch, capsys):
    ran = []

    def pretend(command):
        ran.append(command)
        return 0

    monkeypatch.setattr(benchmark, "_run", pretend)
    arguments = ["spi", "--assets", str(chosen / "assets"), "--runs", str(chosen / "runs")]
    (chosen / "assets" / "results" / "bc-OfflineBallCircle-v0-0.json").write_text("{}")
    assert benchmark.main(arguments) == 0
    assert len(ran) == 29
    assert "1 of 30" in capsys.readouterr().out


def test_only_some_methods_may_be_run(chosen, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(benchmark, "_run", lambda command: ran.append(command[0]) or 0)
    arguments = ["spi", "--assets", str(chosen / "assets"), "--only"]
    assert benchmark.main([*arguments, "bc", "bc-safe"]) == 0
    assert sorted(ran) == ["bc"] * 6 + ["bc-safe"] * 6
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([*arguments, "tcdp"])
    assert "the table has bc, bc-safe, spi" in capsys.readouterr().err


def test_a_failed_run_is_told(chosen, monkeypatch):
    monkeypatch.setattr(benchmark, "_run", lambda command: 1)
    assert benchmark.main(["simplex", "--assets", str(chosen / "assets")]) == 1


def test_without_chosen_weights_it_says_what_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["spi", "--assets", str(tmp_path)])
    assert "python -m safediffkit.selection OfflineBallCircle-v0 --out" in capsys.readouterr().err


def test_without_a_planners_weight_it_says_what_to_run(chosen, capsys):
    missing = chosen / "assets" / "results" / "weights-trebi-OfflineBallRun-v0.json"
    missing.unlink()
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["budgets", "--assets", str(chosen / "assets")])
    command = f"safediffkit.selection OfflineBallRun-v0 --method trebi --budget 10 20 40 --out {missing}"
    assert command in capsys.readouterr().err


def test_records_become_a_table(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for seed, reward in ((0, 0.2), (1, 0.6)):
        score = {key: {"mean": reward} for key in ("normalised_reward", "cost", "within_budget")}
        record = {"task": "OfflineBallRun-v0", "config": {"seed": seed}, "scores": {"safest": score}}
        (folder / f"spi-OfflineBallRun-v0-{seed}.json").write_text(json.dumps(record))
    table = results.markdown(sorted(folder.glob("*.json")))
    cell = "0.40 (0.20 to 0.60)"
    assert table.splitlines()[2] == f"| OfflineBallRun-v0 | spi | safest | 2 | {cell} | {cell} | {cell} |"


def test_the_table_of_budgets_sets_methods_side_by_side(tmp_path):
    def write(name, seed, *scores, task="OfflineBallRun-v0"):
        named = {
            rule: {"budget": budget, "normalised_reward": {"mean": reward}, "cost": {"mean": cost}}
            for rule, budget, reward, cost in scores
        }
        record = {"task": task, "config": {"seed": seed}, "scores": named}
        (tmp_path / f"{name}-{task}-{seed}.json").write_text(json.dumps(record))

    write("tcdp", 0, ("policy at 10", 10.0, 0.2, 4.0), ("policy at 20", 20.0, 0.4, 30.0))
    write("tcdp", 1, ("policy at 10", 10.0, 0.4, 16.0), ("policy at 20", 20.0, 0.6, 30.0))
    write("bc-safe-10", 0, ("policy", 10.0, 0.7, 10.5))
    write("spi", 0, ("reward at 10", 10.0, 0.9, 90.0), ("safest at 10", 10.0, 0.1, 0.0), task="OfflineCarCircle-v0")
    assert results.by_budget(sorted(tmp_path.glob("*.json"))).splitlines() == [
        "| task | budget | tcdp | spi | bc-safe |",
        "|---|---|---|---|---|",
        "| OfflineCarCircle-v0 | 10 | - | 0.10 @ 0.0* | - |",
        "| OfflineBallRun-v0 | 10 | 0.30 @ 10.0* | - | 0.70 @ 10.5 |",
        "| OfflineBallRun-v0 | 20 | 0.50 @ 30.0 | - | - |",
    ]


def test_selection_chooses_the_best_that_is_predicted_safe_on_held_out_episodes(monkeypatch):
    from builders import make_dataset

    from safediffkit.methods import spi
    from safediffkit.safety import evaluation

    monkeypatch.setattr("safediffkit.data.sources.load", lambda task: make_dataset(episodes=10, obs=7))
    held_out = []

    def predict(policy, dataset, *, visited, horizon, seed):
        assert policy.extraction == "safest"
        held_out.append((policy.safest_share, int(dataset.episode[-1]) + 1))
        return evaluation.Prediction(reward=100.0 * len(held_out), cost=5.0 * len(held_out))

    monkeypatch.setattr(evaluation, "fitted_q_evaluation", predict)
    monkeypatch.setattr(spi, "Config", partial(spi.Config, hidden=8, batch=8))
    choose = partial(selection.select, "OfflineBallRun-v0", steps=1, seed=0)
    weights = ((0.5, 0.1, 0.4), (0.3, 0.3, 0.4))
    record = choose(budget=12, weights=weights)
    assert held_out == [(0.4, 3), (0.5, 3), (0.6, 3)] * 2
    assert [one["predicted_cost"] for one in record["candidates"]] == [5, 10, 15, 20, 25, 30]
    chosen = record["chosen"]
    assert (chosen["weights"], chosen["safest_share"]) == ([0.5, 0.1, 0.4], 0.5)  # the next would earn more and cost 15
    json.dumps(record)
    with pytest.raises(ValueError, match="no candidate is predicted to cost at most 12"):
        choose(budget=12, weights=weights)  # the predictions have gone up to 35 and more


@pytest.fixture
def planner(monkeypatch):
    """Make selection's planner quick, and its imagined episodes cost 3 and earn 10 more with every weight tried."""
    import torch
    from builders import make_dataset

    from safediffkit.methods import tcdp
    from safediffkit.safety import imagination

    monkeypatch.setattr("safediffkit.data.sources.load", lambda task: make_dataset(episodes=10, obs=7))
    small = {"horizon": 4, "network": "mlp", "hidden": 8, "patch": 1, "batch": 8, "groups": 2, "candidates": 4}
    monkeypatch.setattr(tcdp, "Config", partial(tcdp.Config, **small, budgets=3, calls=2, imagined=0))
    learn, tried = tcdp.train, []

    def train(dataset, config, watch):
        tried.append(("trained on", len(dataset.episode_costs())))
        return learn(dataset, config, watch)

    def calibrate(policy, world, asked, episodes, seed):
        tried.append((policy.safety_weight, world))

    def imagined(policy, world, asked, *, seed):
        assert world == 3  # episodes that it was not trained on
        weighed = sum(weight != "trained on" for weight, _ in tried)
        return asked + 3.0 * (weighed - 2), torch.full((len(asked),), 10.0 * weighed)

    monkeypatch.setattr(tcdp, "train", train)
    monkeypatch.setattr(imagination, "fit_world", lambda dataset, *, seed: len(dataset.episode_costs()))
    monkeypatch.setattr(imagination, "spending", imagined)
    monkeypatch.setattr(tcdp.TCDP, "calibrate_budget", calibrate)
    return tried


def test_a_planners_weight_is_chosen_by_imagined_episodes_on_held_out_ones(planner):
    record = selection.select_guidance("OfflineBallRun-v0", "tcdp", budgets=[5.0, 10.0], steps=1, seed=0)
    # the second weight spends each budget to the last, the third earns more and breaks both
    assert planner == [("trained on", 7), (2.0, 7), (3.0, 7), (4.0, 7)]
    assert record["chosen"]["settings"] == {"safety_weight": 3.0}
    assert record["candidates"][2]["imagined_cost"] == [8.0, 13.0]
    assert record["episodes"] == {"trained_on": 7, "held_out": 3}
    json.dumps(record)


def test_where_no_weight_keeps_the_budgets_the_nearest_is_chosen(planner):
    planner.extend([(0.0, 0)] * 3)
    record = selection.select_guidance("OfflineBallRun-v0", "tcdp", budgets=[5.0], steps=1, seed=0)
    assert record["chosen"] == record["candidates"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "10", "20"], "SPI knows no budget"),
        (["--method", "tcdp", "--budget", "10", "10"], "each budget once"),
        (["--budget", "-5"], "0 or more is needed"),
        (["--budget", "nan"], "0 or more is needed"),
        (["--steps", "0"], "at least 1 update"),
    ],
)
def test_selection_refuses_what_makes_no_sense(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        selection.main(["OfflineBallRun-v0", *arguments, "--out", str(tmp_path / "w.json")])
    assert message in capsys.readouterr().err


def test_teams_meet_every_quality_and_share_with_every_method(tmp_path):
    # [DOM2 Sec. 5.3]
    from safediffkit import train

    commands = benchmark.landmarks_table(tmp_path / "assets", tmp_path / "runs", steps=7)
    assert len({one[one.index("--record") + 1] for one in commands}) == len(commands) == 5 * (5 * 6 + 2 * 6 + 4)
    assert len({one[one.index("--out") + 1] for one in commands}) == len(commands)  # a share's name holds a dot
    met = []
    for one in commands:
        given = train._parser().parse_args(one)
        _, config = train._configured(given)
        assert (config.steps, config.seed, given.budget) == (7, given.seed, [0])
        met.append((given.task, given.share))
    assert {share for _, share in met} == {1, 0.2, 0.05}
    assert {task for task, _ in met} == {f"landmarks-{quality}" for quality in QUALITIES}
    ablations = [one for one in commands if "dom2-without-imitation" in " ".join(one)]
    assert all("imitate=0" in one for one in ablations)
    assert len(ablations) == 5


def test_the_table_of_teams_stars_the_first_and_whoever_is_within_its_interval(tmp_path):
    def write(name, returns, task="landmarks-expert"):
        for seed, (six, three) in enumerate(returns):
            scores = {"policy": {"reward": {"mean": six}}, "policy, three dismissed": {"reward": {"mean": three}}}
            record = {"task": task, "config": {"seed": seed}, "scores": scores}
            (tmp_path / f"{name}-{task}-{seed}.json").write_text(json.dumps(record))

    # two seeds: Student's quantile is 12.7, and the standard error of (100, 102) is 1
    write("dom2", [(100.0, 50.0), (102.0, 60.0)])
    write("omar", [(89.0, 400.0), (89.0, 400.0)])
    write("madiff", [(80.0, 0.0)])
    write("dom2-share-0.2", [(7.0, 8.0)])
    assert results.by_quality(sorted(tmp_path.glob("*.json")), methods=("dom2", "omar", "madiff")).splitlines() == [
        "| data | landmarks | dom2 | omar | madiff |",
        "|---|---|---|---|---|",
        "| expert | six | 101 ± 13* | 89 ± 0* | 80 |",
        "| expert | three dismissed | 55 ± 64 | 400 ± 0* | 0 |",
        "| expert, share 0.2 | six | 7* | - | - |",
        "| expert, share 0.2 | three dismissed | 8* | - | - |",
    ]


def test_ablations_are_shown_beside_the_whole_on_the_mixture_alone(tmp_path, capsys):
    folder = tmp_path / "results" / "landmarks"
    folder.mkdir(parents=True)
    tasks = {"dom2": ["medium-expert", "expert"], "dom2-unet": ["medium-expert"], "dom2-share-0.2": ["medium-expert"]}
    for reward, (name, qualities) in enumerate(tasks.items()):
        for quality in qualities:
            task = f"landmarks-{quality}"
            record = {"task": task, "config": {"seed": 0}, "scores": {"policy": {"reward": {"mean": reward}}}}
            (folder / f"{name}-{task}-0.json").write_text(json.dumps(record))
    assert benchmark.main(["landmarks", "--show", "--what", "ablations", "--assets", str(tmp_path)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    names = "dom2 | without imitation | without values | without copies | unet"
    assert head == f"| data | landmarks | {names} |"
    assert rows == ["| medium-expert | six | 0 | - | - | - | 1* |"]


def test_ways_are_counted_from_few_starts_and_carry_no_stars(tmp_path):
    scores = {"policy, four starts": {"ways": 3.5}, "policy": {"ways": 40.0, "cost": {"mean": 2.25}}}
    record = {"task": "landmarks-expert", "config": {"seed": 0}, "scores": scores}
    (tmp_path / "dom2-landmarks-expert-0.json").write_text(json.dumps(record))
    files = [tmp_path / "dom2-landmarks-expert-0.json"]
    assert results.by_quality(files, "ways", ("dom2",)).splitlines()[2:] == ["| expert | six | 3.5 |"]
    assert results.by_quality(files, "cost", ("dom2",)).splitlines()[2:] == ["| expert | six | 2.2 |"]


def test_the_table_of_roles_has_imitation_beside_and_says_how_it_went(tmp_path):
    from safediffkit import train

    commands = benchmark.roles_table(tmp_path / "assets", tmp_path / "runs", steps=7)
    assert len({one[one.index("--record") + 1] for one in commands}) == len(commands) == 2 * 2 * 3
    for one in commands:
        _, config = train._configured(train._parser().parse_args(one))
        assert config.steps == {"landmarks-mixed-safety": 9000, "merge-mixed-safety": 2500}[one[1]]
        assert getattr(config, "world", "landmarks") in one[1] or config.value_weight == 0

    score = {"reward": {"mean": 100.0}, "cost": {"mean": 0.25}, "within_budget": {"mean": 0.9}, "safe": 0.99}
    cars = score | {"margin": -1.5, "leader first": 0.5, "follower first": 0.25, "slow": 0.25, "crash": 0.0}
    for seed, more in ((0, 0.0), (1, 2.0)):
        scores = {"none": cars | {"reward": {"mean": 100.0 + more}}, "filter": cars}
        record = {"task": "merge-mixed-safety", "config": {"seed": seed}, "scores": scores}
        (tmp_path / f"cbf-diffusion-merge-mixed-safety-{seed}.json").write_text(json.dumps(record))
    record = {"task": "landmarks-mixed-safety", "config": {"seed": 0}, "scores": {"policy": score | {"gap": 0.1}}}
    (tmp_path / "imitation-landmarks-mixed-safety-0.json").write_text(json.dumps(record))
    lines = results.by_role(sorted(tmp_path.glob("*.json"))).splitlines()[2:]
    ends = "0.25 (0.25 to 0.25) | 0.90 | 0.990 | -1.50 | 0.50 / 0.25 / 0.25 / 0.00 |"
    assert lines == [
        f"| merge | cbf-diffusion | none | 101 (100 to 102) | {ends}",
        f"| merge | cbf-diffusion | filter | 100 (100 to 100) | {ends}",
        "| landmarks | imitation | - | 100 (100 to 100) | 0.25 (0.25 to 0.25) | 0.90 | 0.990 | 0.10 | - |",
    ]
