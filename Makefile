# `make compare` and `make test` are all a newcomer needs; both set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: compare test test-slow lint figures figures-spatial figures-temporal gifs clean

compare: $(STAMP)
	$(BIN)/python -m benchmarks.compare --quick

test: lint
	$(BIN)/python -m pytest -n auto

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The pictures that the README shows, from the full grid (an hour or more; a killed run goes on where it was).
figures: $(STAMP)
	$(BIN)/python -m benchmarks.compare --seeds 10 --steps 300000 --out results/compare-full
	cp $(addprefix results/compare-full/figures/,phase_map.png credit_heatmap.png) benchmarks/images/
	$(BIN)/python -m benchmarks.difficulty --seeds 5 --out results/difficulty
	cp results/difficulty/figures/difficulty.png envs/images/
	$(BIN)/python -m benchmarks.gradient --quick
	cp results/gradient-quick/figures/gradient_order.png benchmarks/images/

# The episodes that the README shows.
gifs: $(STAMP)
	mkdir -p envs/images
	$(BIN)/python -m envs play walking_robot --policy random --seed 2 --fps 3 --gif envs/images/walking_robot.gif \
		n_agents=4 horizon=40 delay=12
	$(BIN)/python -m envs play rover_grid --policy optimal --seed 2 --fps 2 --gif envs/images/rover_grid.gif \
		n_agents=4 size=10 n_points=6 horizon=12

# What team size costs: the sweep (hours), and the cost of difference rewards (a minute on an idle machine).
figures-spatial: $(STAMP)
	$(BIN)/python -m benchmarks.spatial
	cp results/spatial/figures/spatial.png benchmarks/images/
	$(BIN)/python -m benchmarks.throughput --what cost --figure benchmarks/images/cost_of_spatial_credit.png

# What delay costs, and whether spatial and temporal credit compose (about an hour each).
figures-temporal: $(STAMP)
	$(BIN)/python -m benchmarks.temporal
	cp results/temporal/figures/temporal.png benchmarks/images/
	$(BIN)/python -m benchmarks.spacetime
	cp results/spacetime/figures/spacetime.png benchmarks/images/

$(STAMP): setup.cfg constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info
