"""How a page looks, in light and in dark."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #59636e; --line: #d5dae0;
  --bar: #bcd9f2; --tile: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e4e8ec; --dim: #98a3ae;
  --line: #353c44; --bar: #24557d; --tile: #1d2227; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1340px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
.line { color: var(--dim); margin: .3rem 0 1.2rem; overflow-wrap: anywhere; }
.unit { color: var(--dim); margin: .5rem 0 0; font-size: .85rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
.tiles div { background: var(--tile); border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem .9rem; }
dt { color: var(--dim); font-size: .85rem; }
dd { margin: 0; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: .8rem; color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, .facts td { text-align: left; }
th { font-weight: 500; } thead th { color: var(--dim); }
.facts th { color: var(--dim); vertical-align: top; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.bar { min-width: 9rem;
  background: linear-gradient(to right, var(--bar) var(--v), transparent var(--v)); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .4rem;
  padding: 0; font-size: .9rem; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em;
  border: 1px solid var(--dim); vertical-align: -.1em; }
figure { margin: 1rem 0 1.4rem; }
figcaption { margin-bottom: .3rem; overflow-wrap: anywhere; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; }
.panels img { display: block; max-width: 100%; border: 1px solid var(--line); }
.panels span { color: var(--dim); font-size: .8rem; }
"""
