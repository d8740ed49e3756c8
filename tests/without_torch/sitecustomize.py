"""Programs that tests start do not find torch, as those of a user do not.

Transformers and tensorboardX would import it where it is installed.
"""

import sys

sys.modules["torch"] = None
