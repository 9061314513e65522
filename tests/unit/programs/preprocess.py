"""persia-hpc, as a rank."""

import sys

from persia_hpc.cli import main

sys.exit(main())
