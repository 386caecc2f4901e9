"""The example of docs/integrations.md that is no script imports what there is."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()


def test_sentence_transformers():
    (code,) = re.findall(r"^## sentence-transformers\n.*?^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^from gh_downstream.*", code, re.MULTILINE)
    assert len(lines) > 1
    for line in lines:
        exec(line)
