"""``python -m onnxjl`` is the same as ``onnxjl``."""

import sys

from onnxjl.cli import main

if __name__ == "__main__":
    sys.exit(main())
