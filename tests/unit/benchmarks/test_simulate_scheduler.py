from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from tests.benchmarks.simulate_scheduler import DECODE_CORE_S, INGEST_CORE_S, Outcome, Plan, Simulation, scenarios

SMALL = Plan(collections=60, images=300_000, gpus=16, at_once=32, node_failures_per_day=0)
FAILING = replace(SMALL, node_failures_per_day=200.0)
PARTS = ("utilisation", "loading", "start_up", "redone", "down", "starved", "tail")


def without_seconds(outcome: Outcome) -> dict[str, float]:
    return {name: value for name, value in asdict(outcome).items() if name != "seconds"}


@pytest.mark.parametrize("name", scenarios(SMALL))
def test_every_trial_is_trained_once_and_the_gpus_time_adds_up(name: str) -> None:
    simulation = Simulation(replace(scenarios(SMALL)[name], node_failures_per_day=0))
    outcome = simulation.run()
    assert set(simulation.trained) == set(simulation.training_s)
    assert set(simulation.trained.values()) == {1}
    assert (outcome.trials, outcome.given_up, outcome.redone, outcome.down) == (180, 0, 0, 0)
    assert all(0 <= getattr(outcome, part) <= 1 for part in PARTS)
    assert sum(getattr(outcome, part) for part in PARTS) == pytest.approx(1)
    assert outcome.bound_s <= outcome.makespan_s <= outcome.job_s
    trained_s = outcome.utilisation * SMALL.gpus * outcome.makespan_s
    assert trained_s == pytest.approx(sum(simulation.training_s.values()))


def test_with_equal_trials_and_one_gpu_it_takes_a_start_up_and_all_trials_in_turn() -> None:
    plan = Plan(collections=1, images=256, gpus=1, cores_per_gpu=1, node_failures_per_day=0)
    outcome = Simulation(plan, training_s=lambda collection, trial: 100.0).run()
    ingest_s, load_s = 256 * INGEST_CORE_S, 256 * DECODE_CORE_S
    rest_s = outcome.makespan_s - (ingest_s + load_s + 3 * 100)
    # The rest is the start-up of one group, a little time of the driver, and up to two waits between its polls: one
    # before it starts the group, and one before it notices that the group has ended.
    assert 20 <= rest_s <= 30 + 2.1
    assert outcome.utilisation == pytest.approx(300 / outcome.makespan_s)
    assert outcome.group_starts == 1


def test_failures_cost_time_and_no_trial() -> None:
    simulation = Simulation(FAILING)
    outcome = simulation.run()
    assert outcome.node_failures > 0
    assert outcome.redone > 0
    assert outcome.trained + outcome.given_up == outcome.trials
    assert max(simulation.trained.values()) == 1
    assert outcome.makespan_s > Simulation(SMALL).run().makespan_s


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    first, again, other = (Simulation(replace(FAILING, seed=seed)).run() for seed in (1, 1, 2))
    assert without_seconds(first) == without_seconds(again)
    assert without_seconds(first) != without_seconds(other)


def test_a_start_up_for_each_trial_costs_what_it_costs() -> None:
    shared, own = (Simulation(replace(SMALL, reuse_groups=reuse)).run() for reuse in (True, False))
    assert own.makespan_s > shared.makespan_s
    assert own.start_up > 5 * shared.start_up
