"""What `import onnxjl` takes in a fresh process, told in one line of JSON."""

import time

begin = time.perf_counter()
import onnxjl  # noqa: E402, F401

seconds = time.perf_counter() - begin
print(f'{{"seconds": {seconds}}}')
