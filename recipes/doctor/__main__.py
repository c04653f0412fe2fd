"""``python -m recipes.doctor``: the same as ``rsgrpo doctor``."""

import sys

from recipes.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
