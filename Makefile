# `make check` changes nothing: format, lint, import directions, types, fast tests.
.PHONY: check format
check:
	uv run --no-sync ruff format --check .
	uv run --no-sync ruff check .
	uv run --no-sync lint-imports
	uv run --no-sync mypy
	uv run --no-sync pytest -q -m "not engine and not gpu"

format:
	uv run --no-sync ruff check --fix .
	uv run --no-sync ruff format .
