"""DALI's own index beside each shard: `python dali_index.py SHARDS/anything`."""

from __future__ import annotations

import sys
from pathlib import Path

from wds2idx import IndexCreator

for shard in Path(sys.argv[1]).parent.glob("*.tar"):
    with IndexCreator(str(shard), f"{shard}.dali") as creator:
        creator.create_index()
