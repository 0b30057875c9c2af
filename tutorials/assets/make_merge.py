"""Make the banks of lesson 8: two cars that merge by joint plans, under other margins, weights and roles of a barrier.

    python tutorials/assets/make_merge.py

The planner is policies/merge-mixed-safety/cbf-diffusion.safetensors. For every braking and clearance a barrier is
learned from the same records, whose costs are told anew; the planner stays. It writes merge.npz (10 drives a setting,
reset seeds 1 to 10), merge-plans.npz (what both cars plan at one moment) and merge-roles.npz (20 drives for each role,
reset seeds 1 to 20). Some three minutes of one processor.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from safediffkit import load, load_policy, rollout, score
from safediffkit.methods.cbf_diffusion import learn_barrier
from safediffkit.policy import History
from safediffkit.widgets import Frame, bank
from safediffkit.widgets.road_banks import fans, from_above
from safediffkit.worlds.merge import LENGTH, SECONDS, STEPS, margins, measures, outcome, positions

ASSETS = Path(__file__).parent
TASK, FIRST, DRIVES, BY_ROLE, SHOWN = "merge-mixed-safety", 1, 10, 20, 4
BRAKINGS, CLEARANCES, WEIGHTS = (1.0, 5.0), (0.0, 2.0, 6.0), (0.0, 1.0, 3.0)
ROLES = ["condition", "filter", "guidance"]
TRUE = {"braking": 5.0, "clearance": 2.0}  # the world's own margin, by which every drive is judged


@cache
def team(braking, clearance):
    """Load the team and let its barrier learn what danger is by this margin."""
    policy, data = load_policy(ASSETS / "policies" / TASK / "cbf-diffusion.safetensors"), load(TASK)
    if {"braking": braking, "clearance": clearance} != TRUE:
        costs = (margins(data.next_observations, braking=braking, clearance=clearance) < 0).float()
        barrier = learn_barrier(replace(data, costs=costs), policy.config)
        policy.barrier.load_state_dict(barrier.state_dict())
    return policy


def told(run):
    """Say in numbers how drives went: safety in the world's own margin, the return, and shares of outcomes in %."""
    said, judged = measures(run), score(run, TASK, budget=0)
    numbers = {
        "safe states (%)": 100 * said.pop("safe"),
        "steps in danger, of both": judged.cost.mean,
        "worst margin (m)": said.pop("margin"),
        "return, of both": judged.reward.mean,
    }
    return numbers | {f"{name} (%)": 100 * share for name, share in said.items()}


def intervals(run):
    """Give 95 % intervals over the drives."""
    judged = score(run, TASK, budget=0)
    pairs = {"danger": judged.cost, "return": judged.reward}
    return {f"{name}, {end}": getattr(each, end) for name, each in pairs.items() for end in ("low", "high")}


def picture(run):
    """Draw the first few drives."""
    drives = [run.where(run.episode == number) for number in range(SHOWN)]
    seen = torch.full((SHOWN, 2, STEPS + 1, run.observations.shape[-1]), torch.nan)
    for k, drive in enumerate(drives):
        both = torch.cat([drive.observations[:1], drive.next_observations])
        seen[k, :, : len(both)] = both.movedim(1, 0)
    return from_above(positions(seen), margins(seen, **TRUE) < 0, [outcome(drive) for drive in drives])


def frame(braking, clearance, weight, *, seed):
    """Show drives under one margin and weight."""
    policy = team(braking, clearance).with_roles(ROLES, guidance_weight=weight)
    run = rollout(policy, TASK, episodes=DRIVES, budget=0, seed=FIRST)
    return Frame(**picture(run), numbers=told(run))


def planned(braking, clearance, weight, *, seed):
    """Show what both cars plan at one moment, each from its own observation alone."""
    policy = team(braking, clearance).with_roles(ROLES, guidance_weight=weight)
    now = History.start(moment(), 1)
    (plans,), (refused,) = refusals(policy, now)
    chosen = policy.choose(policy.scale(plans), policy.ask(now))
    ahead = torch.stack([-plans[0, ..., 6], plans[1, ..., 6]])
    end = SECONDS * (plans.shape[2] - 1)
    numbers = {
        f"refused, car {where} (of 16)": refused[k].sum() for k, where in enumerate(("from the ramp", "on the road"))
    }
    everywhere = refusals(policy, History.start(coming(), 1))[1]
    numbers[f"refused at {len(everywhere)} moments (%)"] = 100 * everywhere.float().mean()
    return Frame(**fans(ahead, refused, chosen, end=end, keep=LENGTH + clearance), numbers=numbers)


@cache
def coming():
    """Give what both cars see at recorded moments on the way to the merge."""
    seen = load(TASK).observations
    return seen[(seen[:, 0, 0] > 60) & (seen[:, 0, 0] < 200)][::160]


def refusals(policy, now):
    """Say which plans of each car the barrier refuses, by the same noise each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        plans = policy.plan(now, policy.config.plans)
        return plans, policy.h(plans[..., 1:, :]).amin(-1) < 0


@cache
def moment():
    """Find one of them at which, over the clearances, about half of each car's plans are refused."""
    now = History.start(coming(), 1)
    told = [refusals(team(TRUE["braking"], clearance).with_roles(ROLES), now)[1] for clearance in CLEARANCES]
    best = (torch.stack(told).float().mean((0, -1)) - 0.5).abs().amax(-1).argmin()
    return coming()[best, None]


def by_role(role, *, seed):
    """Show drives with one role of the barrier, and intervals of their numbers."""
    run = rollout(team(**TRUE).variants()[role], TASK, episodes=BY_ROLE, budget=0, seed=FIRST)
    return Frame(**picture(run), numbers=told(run) | intervals(run))


def main():
    """Make the three banks."""
    torch.set_num_threads(1)
    axes = {"braking (m/s²)": BRAKINGS, "clearance (m)": CLEARANCES, "safety weight": WEIGHTS}
    bank(planned, axes).save(ASSETS / "merge-plans.npz")
    bank(by_role, {"role of the barrier": list(team(**TRUE).variants())}).save(ASSETS / "merge-roles.npz")
    bank(frame, axes).save(ASSETS / "merge.npz")


if __name__ == "__main__":
    main()
