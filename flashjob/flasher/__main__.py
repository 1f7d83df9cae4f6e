# SPDX-License-Identifier: Apache-2.0
"""`python -m flashjob.flasher`"""

import sys

from flashjob.flasher.main import main

if __name__ == "__main__":
    sys.exit(main())
