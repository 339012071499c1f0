"""The frame of a report: one HTML file that asks the network for nothing."""

from __future__ import annotations

from string import Template

# The policy lets a browser load nothing, whatever a configuration may have put into the text.
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="facts">$facts</p>
</header>
<main>
$sections
</main>
</body>
</html>
""")

STYLE = """\
:root {
  --paper: #ffffff; --ink: #1d2430; --soft: #5b6472; --line: #d9dce2; --tint: #f4f6f8;
  --warn: #9a4a00; --warn-tint: #fdf1e3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191e; --ink: #e6e8ec; --soft: #a2abb8; --line: #363c46; --tint: #1f242b;
    --warn: #ffb968; --warn-tint: #33271a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 3rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.6rem; }
p { margin: 0.4rem 0; max-width: 75ch; }
.facts, .note, figcaption { color: var(--soft); font-size: 0.9rem; }
table {
  border-collapse: collapse; width: 100%; font-size: 0.94rem; font-variant-numeric: tabular-nums;
}
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.7rem 0.4rem 0; }
thead th { border-bottom: 2px solid var(--line); font-size: 0.9em; color: var(--soft); }
tbody th, tbody td { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
.number + :not(.number) { padding-left: 0.9rem; }
.whole { white-space: nowrap; }
table.cards tbody th { min-width: 12rem; }
.wide { overflow-x: auto; }
.wide code { overflow-wrap: normal; }
.swatch {
  display: inline-block; width: 0.8em; height: 0.8em; border-radius: 0.2em; margin-right: 0.5em;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
.missing { color: var(--soft); }
.warn {
  color: var(--warn); background: var(--warn-tint); padding: 0 0.35em; border-radius: 0.25em;
}
code { font: 0.88em/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 0 2rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pictures section:first-child { grid-column: 1 / -1; }
figure { margin: 0; }
/* White in the dark scheme too: the curves' colours are chosen for it. */
figure img {
  display: block; width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 0.4rem; padding: 0.4rem;
}
figcaption { margin-top: 0.4rem; max-width: 75ch; }
a { color: inherit; }
.tiles {
  display: grid; gap: 0.8rem 1.5rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
}
.tiles dt { color: var(--soft); font-size: 0.85rem; }
.tiles dd { margin: 0; overflow-wrap: anywhere; }
.sheet {
  display: grid; gap: 1.1rem; margin: 0.8rem 0 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
}
.sheet li { font-size: 0.88rem; line-height: 1.35; overflow-wrap: anywhere; }
.sheet p { margin: 0.15rem 0 0; }
.sheet span, .sheet code { color: var(--soft); }
.sheet img {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--tint);
  border-radius: 0.3rem;
}
.sheet img.tiny { image-rendering: pixelated; }
.matrix { width: auto; }
.matrix th, .matrix td {
  padding: 0.3rem 0.5rem; text-align: right; vertical-align: middle; min-width: 2.6rem;
}
.matrix thead td { text-align: left; padding-left: 0; border-bottom: 2px solid var(--line); }
.matrix tbody th {
  position: sticky; left: 0; background: var(--paper); text-align: left; padding-left: 0;
  max-width: 15rem; font-weight: 400;
}
.matrix td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.matrix .hit { background: rgb(11 98 164 / var(--heat)); }
.matrix .miss { background: rgb(209 89 11 / var(--heat)); }
.matrix abbr { text-decoration: none; }
@media (min-width: 60rem) {
  .pictures section:first-child figure {
    display: grid; gap: 1.5rem; grid-template-columns: minmax(0, 52rem) minmax(12rem, 1fr);
  }
}
@media (max-width: 46rem) {
  .pictures { grid-template-columns: minmax(0, 1fr); }
  table.cards thead { position: absolute; overflow: hidden; clip-path: inset(50%); }
  table.cards tr { display: block; padding: 0.7rem 0; border-bottom: 1px solid var(--line); }
  table.cards tbody th, table.cards tbody td {
    display: flex; gap: 1rem; border: 0; padding: 0.1rem 0; text-align: left;
  }
  table.cards td::before { content: attr(data-label); color: var(--soft); flex: 0 0 11rem; }
  table.cards tbody th { align-items: baseline; gap: 0; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: 0.9rem; }
  .matrix tbody th { max-width: 8rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  section, tr { break-inside: avoid; }
  h2 { margin-top: 1.2rem; }
  table, .facts, .note, figcaption { font-size: 0.9em; }
  .pictures section:first-child figure { display: block; }
  .pictures section:first-child img { width: auto; max-width: 100%; max-height: 11cm; }
}
"""
