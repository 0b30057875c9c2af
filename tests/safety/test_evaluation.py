import pytest
import torch
from builders import make_dataset
from torch import nn

from safediffkit.safety.evaluation import fitted_q_evaluation


class Always(nn.Module):
    def __init__(self, action):
        super().__init__()
        self.action = torch.tensor(action)

    def act(self, history):
        return self.action.expand(len(history.budget), 2)


@pytest.mark.parametrize(("push", "reward", "cost"), [(0.7, 1.7, 1.0), (-0.7, 0.3, 0.0)])
def test_the_prediction_is_that_of_the_policy_and_not_of_the_data(push, reward, cost):
    # a_0 + 1 is the reward, a_0 > 0 costs 1; the data push evenly in both directions
    data = make_dataset(episodes=60)
    predicted = fitted_q_evaluation(
        Always([push, 0.0]), data, visited=data.observations, horizon=10, steps=800, discount=0.5
    )
    assert predicted.reward == pytest.approx(10 * reward, abs=1.5)
    assert predicted.cost == pytest.approx(10 * cost, abs=1.5)


def test_the_same_seed_predicts_the_same():
    data = make_dataset()
    one, two = (
        fitted_q_evaluation(Always([0.1, 0.0]), data, visited=data.observations, horizon=5, steps=3) for _ in range(2)
    )
    assert one == two
