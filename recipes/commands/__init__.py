"""The ``rsgrpo`` command: :mod:`recipes.commands.table` lists what it can do, ``program`` finds and runs it."""
