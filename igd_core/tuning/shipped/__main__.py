"""``python -m igd_core.tuning.shipped`` prints the folder of each model in the package."""

import sys

from igd_core.tuning.shipped import shipped_model, shipped_names

sys.stdout.write("".join(f"{shipped_model(name)}\n" for name in shipped_names()))
