# `make check` changes nothing: format, lint, import directions, types, fast tests.
.PHONY: check format docs
check:
	uv run --no-sync ruff format --check .
	uv run --no-sync ruff check .
	uv run --no-sync lint-imports
	uv run --no-sync mypy
	uv run --no-sync pytest -n 2 -q -m "not engine and not gpu and not slow"

format:
	uv run --no-sync ruff check --fix .
	uv run --no-sync ruff format .

docs:
	NO_MKDOCS_2_WARNING=1 uv run --no-sync mkdocs build --strict --quiet
