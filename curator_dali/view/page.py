"""The frame around every display, and its one style sheet.

A notebook's output stands in somebody else's page, so everything is within `.cd`, the text takes that page's colour
and all other shades are made of the text's: light and dark themes work alike, also those nobody has heard of. Where
a viewer strips styles (code hosts do), what is left are plain tables, images and lists, which read well too.
"""

from __future__ import annotations

from collections.abc import Iterable

from curator_dali.view.text import escape

__all__ = ["block", "page"]

# `.cd` is repeated where JupyterLab's own rules for tables (.jp-RenderedHTMLCommon td) would win otherwise.
_STYLE = """
.cd{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));
font:13px/1.45 var(--jp-content-font-family,system-ui,-apple-system,"Segoe UI",sans-serif);
--cd-faint:color-mix(in srgb,currentColor 66%,transparent);--cd-line:color-mix(in srgb,currentColor 16%,transparent);
--cd-plate:color-mix(in srgb,currentColor 7%,transparent);--cd-bar:#4c86d8;--cd-good:#2f9e62;--cd-bad:#d9534f;
text-align:left;max-width:1240px;overflow-wrap:anywhere}
.cd p,.cd h3,.cd h4{margin:0 0 8px;padding:0}.cd h3{font-size:14px;font-weight:600}
.cd h4{font-size:13px;font-weight:600}
.cd h3:not(:first-of-type),.cd h4:not(:first-of-type){margin-top:18px}
.cd .cd-note,.cd h3 span,.cd h4 span{color:var(--cd-faint);font-weight:400}
.cd.cd.cd table{border:0;border-spacing:0;margin:0 0 8px;table-layout:auto;font-size:12px;background:none}
.cd.cd.cd td,.cd.cd.cd th{background:none;text-align:left;vertical-align:top;white-space:normal;max-width:none}
.cd.cd.cd tr{background:none}
.cd.cd.cd table.cd-table{display:block;overflow-x:auto;border-collapse:collapse;max-width:100%}
.cd.cd.cd .cd-table td,.cd.cd.cd .cd-table th{padding:4px 14px 4px 0;border:0;border-bottom:1px solid var(--cd-line)}
.cd.cd.cd .cd-table th{color:var(--cd-faint);font-weight:500;white-space:nowrap}
.cd.cd.cd .cd-table td{overflow-wrap:break-word;min-width:3em}
.cd.cd.cd .cd-table .cd-num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.cd.cd.cd table.cd-sheet{display:flex;flex-wrap:wrap;gap:14px 10px;width:100%;--h:132px}
.cd.cd.cd .cd-sheet tbody,.cd.cd.cd .cd-sheet tr{display:contents}
.cd.cd.cd table.cd-sheet::after{content:"";flex:9999 0 0px}
.cd.cd.cd .cd-sheet td{display:block;box-sizing:border-box;padding:0;margin:0;border:0;min-width:0;
flex:var(--a) 0 calc(var(--a)*var(--h));max-width:min(100%,calc(var(--a)*var(--h)*1.4))}
.cd.cd.cd img{display:block;box-sizing:border-box;width:100%;height:auto;aspect-ratio:var(--a);max-width:100%;margin:0;
object-fit:contain;background:var(--cd-plate);border-radius:4px}
.cd.cd.cd img.cd-small{image-rendering:pixelated}
.cd .cd-none{box-sizing:border-box;width:100%;aspect-ratio:var(--a);background:var(--cd-plate);border-radius:4px;
border:1px dashed var(--cd-line);color:var(--cd-faint);display:flex;align-items:center;justify-content:center;
font-size:11px;padding:6px;text-align:center}
.cd .cd-id{font-size:12px;font-weight:600;margin-top:5px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.cd .cd-facts{font-size:11px;color:var(--cd-faint);font-variant-numeric:tabular-nums}
.cd .cd-facts span{display:inline-block;max-width:100%}
.cd .cd-text{font-size:11.5px;line-height:1.35;display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;
overflow:hidden;unicode-bidi:isolate}
.cd .cd-mark{font-size:11px;font-weight:600}.cd .cd-mark.cd-kept{color:var(--cd-good)}
.cd .cd-mark.cd-dropped{color:var(--cd-bad)}
.cd .cd-kept img{outline:2px solid var(--cd-good)}
.cd.cd.cd .cd-one{display:flex;flex-wrap:wrap;gap:8px 22px;align-items:flex-start}
.cd .cd-one>div{flex:1 1 280px;min-width:0}.cd .cd-one>.cd-pic{flex:0 1 auto;max-width:100%}
.cd .cd-one>.cd-pic img{width:auto;max-height:300px}
.cd.cd.cd .cd-bars td{vertical-align:middle}.cd .cd-bar{display:block;height:10px;min-width:1px;border-radius:2px;
background:var(--cd-bar)}
.cd.cd.cd .cd-bars td.cd-track{width:45%;min-width:90px}
.cd svg{display:block;max-width:100%;height:auto;overflow:visible}.cd svg .cd-b{fill:var(--cd-bar)}
.cd svg .cd-o{fill:var(--cd-line)}.cd svg line{stroke:var(--cd-faint)}.cd svg .cd-t{stroke:var(--cd-bad);stroke-width:2}
.cd svg text{fill:var(--cd-faint);font:11px system-ui,sans-serif}
.cd.cd.cd .cd-bars th{white-space:normal;overflow-wrap:break-word}
.cd.cd.cd .cd-flow th{min-width:76px}.cd.cd.cd .cd-flow td{overflow-wrap:anywhere}
.cd.cd.cd .cd-flow th+td{min-width:7em}
@media(max-width:560px){.cd.cd.cd .cd-flow td.cd-track{display:none}
.cd.cd.cd .cd-table td,.cd.cd.cd .cd-table th{padding-right:9px}
.cd.cd.cd table.cd-sheet{--h:92px;gap:12px 8px}}
"""
_PAGE = """:root{color-scheme:light dark;--cd-page:#fff;--cd-ink:#1f2328;--cd-link:#2460b8}
@media(prefers-color-scheme:dark){:root{--cd-page:#0f1216;--cd-ink:#e4e8ec;--cd-link:#7db0f5}}
body{margin:0;padding:20px clamp(14px,4vw,48px) 48px;background:var(--cd-page);color:var(--cd-ink)}
.cd{margin:0 auto}.cd h1{font-size:22px;line-height:1.3;margin:0 0 4px}
.cd h2{font-size:17px;line-height:1.3;margin:0 0 10px;padding-top:22px;border-top:1px solid var(--cd-line)}
.cd section{margin-top:30px}.cd h2 span{color:var(--cd-faint);font-weight:400;font-size:13px}
.cd section h3{margin-top:18px}.cd h2+h3,.cd section figure h3,.cd section .cd-note+h3{margin-top:0}
.cd nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:16px 0 0;padding:0}
.cd a{color:var(--cd-link)}
.cd .cd-tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:16px 0 0}
.cd .cd-tiles>div{background:var(--cd-plate);border-radius:6px;padding:10px 14px}
.cd .cd-tiles dt{color:var(--cd-faint)}.cd .cd-tiles dd{margin:0;font-size:22px;line-height:1.3;font-weight:600;
font-variant-numeric:tabular-nums}.cd .cd-tiles dd span{font-size:13px;font-weight:400;color:var(--cd-faint)}
.cd .cd-figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:26px 40px}
.cd figure{margin:0;min-width:0}.cd figcaption{color:var(--cd-faint);font-size:12px;margin-top:4px}
.cd .cd-warn{border-left:3px solid var(--cd-bad);padding:2px 0 2px 12px;margin:16px 0 0}
.cd .cd-figures svg{width:100%}
.cd .cd-beside{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:20px 32px}
.cd .cd-beside h3{margin:0 0 8px}.cd .cd-beside>div{min-width:0}
@media(max-width:560px){.cd .cd-tiles{grid-template-columns:1fr 1fr}.cd .cd-figures svg text{font-size:16px}}
@media print{:root{color-scheme:light;--cd-page:#fff;--cd-ink:#1f2328}body{padding:0}.cd nav{display:none}
.cd figure,.cd .cd-sheet td,.cd tr{break-inside:avoid}.cd h2,.cd h3{break-after:avoid}
.cd *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}"""


def block(*parts: str) -> str:
    """A cell's output: parts that the other functions made, under the style sheet.

    The classes keep a notebook's MathJax from reading `$` in a caption as mathematics.
    """
    return f'<div class="cd tex2jax_ignore mathjax_ignore"><style>{_compact(_STYLE)}</style>{"".join(parts)}</div>'


def page(title: str, parts: Iterable[str]) -> str:
    """A file for a browser that needs nothing else, light or dark as the reader's system is.

    Args:
        title: Text.
        parts: What the other functions made.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Whatever slipped through: no script runs, nothing is loaded from elsewhere.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_compact(_PAGE)}</style></head>\n"
        f"<body>{block(f'<h1>{escape(title)}</h1>', *parts)}</body></html>\n"
    )


def _compact(style: str) -> str:
    return style.replace("\n", "")
