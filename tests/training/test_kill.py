"""A run that is killed anywhere goes on to the very bits of the run that was left alone."""

import json
import os
from pathlib import Path

import kill_points
import pytest
from two_ranks import run_script


def storm(*options: str) -> dict:
    told = run_script(Path(kill_points.__file__), *options, timeout=600)
    return json.loads(told[0].splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("points", ["1", pytest.param("4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", list(kill_points.RUNS))
def test_killed_runs_end_in_the_same_bits(run, points):
    # Random steps and random operations of saving, with 0 and 2 workers in turn.
    found = storm("--run", run, "--steps", points, "--saves", points, "--seed", "7")
    assert set(found["results"].values()) == {"exact"}, found
    assert len(found["results"]) == 2 * int(points)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_comparison_notices_a_forgotten_random_state():
    found = storm("--steps", "1", "--saves", "0", "--forget")
    assert set(found["results"].values()) == {"differs"}
