"""How batches, loaders and errors look, in a notebook and in a terminal.

`contact_sheet` draws a picture (the command line's); the rest is what the objects' own methods call: `show`, rich
displays in HTML (`curator_dali.html`), tables and plots. Only thumbnails leave the device.
"""

from curator_dali.display.batches import Sheet, show
from curator_dali.display.drawing import contact_sheet, thumbnail

__all__ = ["Sheet", "contact_sheet", "show", "thumbnail"]
