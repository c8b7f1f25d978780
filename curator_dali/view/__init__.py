"""Pictures and HTML of pixels, arrays and plain values, for notebooks and terminals.

`draw_contact_sheet` draws a picture, `Sheet` is HTML (`curator_dali.html`). Only thumbnails leave the device.
"""

from curator_dali.view.sheets import Sheet
from curator_dali.view.thumbnails import draw_contact_sheet, thumbnail

__all__ = ["Sheet", "draw_contact_sheet", "thumbnail"]
