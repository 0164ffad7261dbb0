"""Add the counts of new nets to `golden_costs.json`: `python tests/models/make_golden_costs.py`; it takes seconds.

`... all` counts every net anew; read the difference then: the figures of a net that is there already must not move.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from convatlas.catalogue import count, list_models, read_about

FILE = Path(__file__).with_name("golden_costs.json")

if __name__ == "__main__":
    known = {} if sys.argv[1:] == ["all"] else json.loads(FILE.read_text())
    names = list_models()
    golden = {name: known.get(name) or count(name, read_about(name)["input_size"]) for name in names}
    FILE.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{FILE.name}: {len(golden)} nets, new: {', '.join(name for name in names if name not in known) or 'none'}")
