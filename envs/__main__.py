"""`python -m envs` lists the games: knobs with defaults, sizes, returns known, capabilities."""

from __future__ import annotations

from dataclasses import fields

import envs
from envs.base import capabilities


def main() -> None:
    """Print a few lines on every registered game."""
    for name in envs.GAMES:
        game = envs.rules(name)
        knobs = ", ".join(f"{f.name}={getattr(game, f.name)!r}" for f in fields(game) if f.init)  # type: ignore[arg-type]
        known = {
            "optimal": game.optimal_return,
            "reachable": game.reachable_return,
            "random": game.random_return,
        }
        returns = ", ".join(f"{k} {v:.4g}" for k, v in known.items() if v is not None) or "not known"
        print(f"{envs.game_id(name)}   {(type(game).__doc__ or '').strip().splitlines()[0]}")
        print(f"  knobs         {knobs}")
        print(f"  sizes         N={game.n_agents} A={game.n_actions} O={game.obs_size} T={game.horizon}")
        print(f"  returns       {returns}")
        print(f"  capabilities  {', '.join(capabilities(game)) or 'none'}\n")


if __name__ == "__main__":
    main()
