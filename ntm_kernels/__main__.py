"""``python -m ntm_kernels``."""

import sys

from ntm_kernels.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
