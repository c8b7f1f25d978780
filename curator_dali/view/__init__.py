"""Pictures and HTML of pixels, arrays and plain values, for notebooks and terminals.

`draw_contact_sheet` draws a picture, `Sheet` is HTML (`curator_dali.html`). Only thumbnails leave the device.
"""

from curator_dali.view.drawing import draw_contact_sheet, thumbnail
from curator_dali.view.sheets import Sheet

__all__ = ["Sheet", "draw_contact_sheet", "thumbnail"]
