"""`check_env` passes what is honest and names what is broken: each fault by the check that should see it, in words."""

from __future__ import annotations

import broken_games as games
import pettingzoo
import pytest
from mpe2 import simple_spread_v3

from envs.check import EnvError, check_env, main
from envs.parallel import ParallelGame

BROKEN_RULES = [
    (games.WritesToItsInput, "pure", "step changes its input at step 0"),
    (games.DrawsItsOwnLuck, "deterministic", "randomness must come from the noise argument"),
    (games.Remembers, "deterministic", "differs in reward"),
    (games.PeeksAhead, "past_is_kept", "changing the noise at step 0 changed the past: obs at step 0"),
    (games.ReadsOtherRows, "rows_independent", "row b must not read other rows"),
    (games.ReusesItsBuffer, "pure", "what observe returned at step 0 was overwritten later"),
    (games.ObservesOutsideItsSpace, "inside_spaces", "feature (0,) is 1.5, allowed 0..1"),
    (games.PaysTheDead, "finished_stays_finished", "must pay 0"),
    (games.Revives, "finished_stays_finished", "must stay done"),
    (games.IgnoresItsNoise, "noise_matters", "reset_noise_size=3, step_noise_size=2"),
    (games.ActionsMoveTheCues, "past_is_kept", "moved what is declared exogenous: cue"),
    (games.ForgetsTheBonus, "closed_differences", "simulation says"),
    (games.SharesWrongly, "closed_shapley", "unit_shapley at step"),
    (games.DeclaresTooMuch, "declared_returns", "optimal_return (by scripted_action) is declared 4.6"),
    (games.DeclaresTheWrongChance, "declared_returns", "random_return is declared 2.4"),
    (games.ForgetsACase, "finite_noise", "step_atoms leaves out"),
    (games.BelievesInLongNights, "finite_noise", "reset_atoms gives number"),
    (games.ChancesSumToLess, "finite_noise", "probabilities that sum to 0.9"),
    (games.SeesNoEffect, "light_cone_holds", "at step 1 cannot reach the reward of step 1, but it does"),
    (games.StaysFloat32, "shapes", "critic_view is torch.float32 where the noise was torch.float64"),
    (games.WrongShape, "shapes", "step's reward has shape (6, 1); it must be (6,)"),
    (games.Crashes, "shapes", "the game raised KeyError: 'lantern'"),
    (games.MasksEverything, "capabilities_hold", "without a legal action"),
]

BROKEN_FACES = [
    (games.LosesTheLastReward, "as_the_rules_say", "a reward is lost"),
    (games.LeavesOutTheLastReward, "protocol", "returned no rewards for agent_0, agent_1, who acted in it"),
    (games.CallsTheEndATruncation, "as_the_rules_say", "(terminated, truncated) must be (True, False)"),
    (games.KeepsItsAgents, "protocol", "those neither terminated nor truncated are []"),
    (games.PaysAgentsDifferently, "as_the_rules_say", "each gets the team reward"),
    (games.MakesNewSpaces, "inside_spaces", "action_space('agent_0') must return the same object"),
    (games.ForgetsItsSeed, "seeds_differ", "with the same actions are the same"),
    (games.CopiesFromTheStart, "copies_continue", "a copy by deepcopy after step"),
    (games.SharesItsObservations, "arrays_not_reused", "was overwritten later"),
]

BROKEN_PLAIN = [
    ("draws from the global generator", "same_again", "seed 0 with the same actions"),
    ("leaves out the last reward", "protocol", "returned no rewards for walker_0"),
    ("leaves its space", "inside_spaces", "feature (1,) is 7, allowed 0..6"),
    ("reuses its array", "arrays_not_reused", "was overwritten later"),
]


def failures(game: object) -> str:
    with pytest.raises(EnvError) as caught:
        check_env(game)
    assert caught.value.failures and all(line in str(caught.value) for line in caught.value.failures)
    return str(caught.value)


@pytest.mark.parametrize(
    "game",
    [games.Lanterns(), games.Lanterns(n_agents=1), games.Masked(), games.Corridor()],
    ids=["lanterns", "one lantern", "masked", "corridor"],  # no addresses: workers must agree on names
)
def test_honest_games_pass(game: object) -> None:
    """The control of all the others: the game that they break is whole."""
    check_env(game)


@pytest.mark.parametrize(("game", "check", "words"), BROKEN_RULES, ids=lambda x: getattr(x, "__name__", None))
def test_broken_rules_are_caught(game: type, check: str, words: str) -> None:
    """The right check speaks, and says what is wrong."""
    message = failures(game())
    assert f"- {check}: " in message and words in message


@pytest.mark.parametrize(("face", "check", "words"), BROKEN_FACES, ids=lambda x: getattr(x, "__name__", None))
def test_broken_faces_are_caught(face: type[ParallelGame], check: str, words: str) -> None:
    """The rules are honest, so only the face is accused."""
    message = failures(face(games.Lanterns()))
    assert f"- {check}: " in message and words in message
    assert "closed_differences" not in message and "pure" not in message


@pytest.mark.parametrize(("fault", "check", "words"), BROKEN_PLAIN, ids=lambda x: x if " " in x else None)
def test_broken_plain_faces_are_caught(fault: str, check: str, words: str) -> None:
    """A ParallelEnv without rules is held to what applies."""
    message = failures(games.Corridor(fault))
    assert f"- {check}: " in message and words in message


def test_a_game_of_the_field_passes() -> None:
    """mpe2's simple_spread, which copies badly (EzPickle), is not asked for what only rules can promise."""
    check_env(simple_spread_v3.parallel_env(local_ratio=0.0))


def test_registered_games_are_found_by_name() -> None:
    """Ours by short or full name, others by their id; an object takes no knobs."""
    check_env("matrix_game", payoff="qtran")
    check_env("credit/matrix_game-v0", payoff="two_step")
    pettingzoo.register("parallel", "plain/corridor-v0", games.Corridor)
    check_env("plain/corridor-v0")
    with pytest.raises(EnvError, match="plain/corridor-v0 breaks its contract"):
        check_env("plain/corridor-v0", fault="leaves its space")
    with pytest.raises(ValueError, match="knobs belong to a game given by name"):
        check_env(games.Lanterns(), n_agents=3)
    with pytest.raises(ValueError, match="is no game"):
        check_env(3)  # type: ignore[arg-type]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, 1 or 2, and one sentence on what was wrong with the question."""
    assert main(["el_farol", "n_agents=4", "n_nights=2"]) == 0
    assert "every check passed" in capsys.readouterr().out
    pettingzoo.register("parallel", "plain/broken-v0", lambda: games.Corridor("leaves its space"))
    assert main(["plain/broken-v0"]) == 1
    assert "inside_spaces" in capsys.readouterr().out
    for arguments, words in [
        ([], "usage"),
        (["el_faro"], "did you mean 'el_farol'?"),
        (["el_farol", "nights=3"], "its knobs are n_agents, n_nights, capacity"),
        (["el_farol", "capacity=low"], "capacity='low' is not allowed"),
        (["el_farol", "capacity"], "'capacity' is not knob=value"),
        (["nowhere/corridor-v0"], "there is no game 'nowhere/corridor-v0'"),
    ]:
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
