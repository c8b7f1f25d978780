"""HTML for notebooks and reports: pure functions on plain text and numbers, which know nothing of batches.

`block` makes what a notebook shows in a cell's output, `page` a file for a browser; both take parts that the other
functions make. All of them escape every text that they are given.
"""

from curator_dali.errors import count
from curator_dali.view.charts import bars, flow, histogram
from curator_dali.view.layout import beside, contents, figures, section, tiles
from curator_dali.view.page import block, page
from curator_dali.view.sheet import Card, data_uri, group, sheet
from curator_dali.view.tables import facts, table
from curator_dali.view.text import escape, note, number

__all__ = [
    "Card",
    "bars",
    "beside",
    "block",
    "contents",
    "count",
    "data_uri",
    "escape",
    "facts",
    "figures",
    "flow",
    "group",
    "histogram",
    "note",
    "number",
    "page",
    "section",
    "sheet",
    "table",
    "tiles",
]
