"""Write `golden_costs.json`, the counts of every net as they are now: `python tests/models/make_golden_costs.py`.

Run it when a net is added, and read the difference: the figures of a net that is there already must not move.
"""

from __future__ import annotations

import json
from pathlib import Path

from convatlas.catalogue import describe_model
from convatlas.core.composing import conf_dir

if __name__ == "__main__":
    names = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    rows = {name: describe_model(name, costs=True) for name in names}
    golden = {name: {"parameters": row["parameters"], "macs": row["macs"]} for name, row in rows.items()}
    Path(__file__).with_name("golden_costs.json").write_text(json.dumps(golden, indent=1) + "\n")
