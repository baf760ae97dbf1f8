"""Claims of papers, a file a group. Each file has its ENTRIES; a new claim is one entry in one of them."""

from __future__ import annotations

from benchmarks.claims import contribution, decomposition, hindsight, payoffs, redistribution, spatial
from benchmarks.claims.base import Entry

GROUPS = (decomposition, payoffs, spatial, contribution, redistribution, hindsight)
ENTRIES: dict[str, Entry] = {name: entry for group in GROUPS for name, entry in group.ENTRIES.items()}
